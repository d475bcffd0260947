"""A tiny Llama as a GGUF file, written as llama.cpp's converter writes one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import torch

import tiny

_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write(path: Path) -> Any:
    """Write the file; returns the `transformers` model that it holds."""
    model, tokenizer = tiny.model("llama3"), tiny.tokenizer("llama3")
    config = model.config
    out = gguf.GGUFWriter(path, "llama")
    out.add_block_count(config.num_hidden_layers)
    out.add_context_length(config.max_position_embeddings)
    out.add_embedding_length(config.hidden_size)
    out.add_feed_forward_length(config.intermediate_size)
    out.add_head_count(config.num_attention_heads)
    out.add_head_count_kv(config.num_key_value_heads)
    out.add_layer_norm_rms_eps(config.rms_norm_eps)
    out.add_rope_dimension_count(config.head_dim)
    out.add_vocab_size(config.vocab_size)
    state = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    special = {token.content for token in tokenizer.added_tokens_decoder.values()}
    words = [tokenizer.convert_ids_to_tokens(number) for number in range(len(tokenizer))]
    out.add_tokenizer_model("gpt2")
    out.add_token_list(words)
    out.add_token_types([3 if word in special else 1 for word in words])
    out.add_token_merges([" ".join(pair) for pair in state["merges"]])
    out.add_bos_token_id(tokenizer.bos_token_id)
    out.add_eos_token_id(tokenizer.eos_token_id)
    out.add_chat_template(tokenizer.chat_template)
    for name, weight in model.state_dict().items():
        stem = name.removesuffix(".weight")
        block = f"blk.{stem.split('.')[2]}." if ".layers." in stem else ""
        short = next(new for old, new in _NAMES.items() if stem.endswith(old))
        if short in ("attn_q", "attn_k"):  # rotary pairs lie side by side in GGUF, halves apart in transformers
            heads = weight.shape[0] // config.head_dim
            weight = weight.view(heads, 2, config.head_dim // 2, -1).transpose(1, 2).reshape(weight.shape)
        out.add_tensor(f"{block}{short}.weight", weight.contiguous().to(torch.float32).numpy())
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return model
