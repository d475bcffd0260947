"""Chat formats by the names other programs give them, each with what marks a turn in it.

Such a name means the model's own chat template here, after a look whether that one is of this format.
"""

from __future__ import annotations

_BY_MARK = {
    "<|start_header_id|>": "llama3 llama4",
    "<|im_start|>": "chatml qwen qwen2 qwen2.5 qwen2_5 qwen3 qwen3_nothink smollm smollm2 yi intern2 hermes",
    "<start_of_turn>": "gemma gemma2 gemma3",
    "[INST]": "llama2 mistral mistral_small ministral",
    "<|user|>": "phi phi3 zephyr glm4 olmo tulu tinyllama",
    "<|im_sep|>": "phi4",
    "<｜User｜>": "deepseek3 deepseekr1",
    "<|start_of_role|>": "granite3",
    "<|START_OF_TURN_TOKEN|>": "cohere",
}
MARKS = {name: mark for mark, names in _BY_MARK.items() for name in names.split()}
OWN = ("auto", "model", "alpaca", "plain", "cloze")
# Formats that no model brings as its own.
NOT_OFFERED = (
    "default",
    "empty",
    "vanilla",
    "fewshot",
    "vicuna",
    "openchat",
    "baichuan",
    "baichuan2",
    "xverse",
    "ziya",
)
