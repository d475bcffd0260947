"""Tiny tokenizers and tiny random models, made on the spot without a network, like those of four families (five
tokenizers): how text is cut, which tokens control the model, how the chat template behaves.

    tokenizer("qwen")            420 to 700 tokens, trained once per process on the text below
    model("qwen", seed=1)        2 to 4 layers, width 32, random weights
    folder("qwen", tmp_path)     both, saved as a user's folder would be
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, WordPiece
from tokenizers.trainers import BpeTrainer

KINDS = ("llama", "gpt2", "qwen", "gemma")
PAIRS = ("t5", "marian")  # encoder-decoders
ENCODERS = ("bert", "roberta", "minilm")  # masked encoders, the last without a masked-LM head
TOKENIZERS = (*KINDS, "llama3")
WIDTH = 32
POSITIONS = {"gpt2": 128, "marian": 96, "bert": 128, "roberta": 128, "minilm": 128}  # the others: 256, T5 has no limit

TEXT = """\
The parcel has not arrived. Where is my parcel now? Please translate the sentence into French: the house is red.
Write the opposite of the word hot. The answer is cold. Is the review positive or negative? It is positive.
How do I change the delivery address of my order? Open the order, choose the address and change it before noon.
I want my money back because the lamp is broken. We are sorry; the refund takes three working days.
Below is an instruction that describes a task. Write a response that completes the request.
### Instruction:
### Input:
### Response:
the and ing tion er on at en re st answer question word words text model user assistant system
请把下面的句子翻译成英文：房子是红色的。我的包裹还没有到，现在在哪里？退款需要三个工作日。
你好，请问怎么修改收货地址？打开订单，选择地址，然后修改。这个评价是正面的还是负面的？答案是正面的。
"""

_BYTES = [f"<0x{number:02X}>" for number in range(256)]
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Our own wording of how each family's chat template behaves, only as long as the behaviour needs.
_LLAMA = """\
{%- if messages[0]['role'] == 'system' -%}
{%- set system = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' -%}{%- set turns = messages[1:] -%}
{%- else -%}{%- set system = '' -%}{%- set turns = messages -%}{%- endif -%}
{%- for m in turns -%}
{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) -%}
{{- raise_exception('roles must alternate user/assistant/user/assistant/...') -}}{%- endif -%}
{%- if m['role'] == 'user' -%}
{{- bos_token + '[INST] ' + (system if loop.first else '') + m['content'].strip() + ' [/INST]' -}}
{%- else -%}{{- ' ' + m['content'].strip() + ' ' + eos_token -}}{%- endif -%}
{%- endfor -%}"""

_LLAMA3 = """\
{{- bos_token -}}
{%- for m in messages -%}
{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + m['content'] | trim + '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}{%- endif -%}"""

_QWEN = """\
{%- set ns = namespace(last_query=0) -%}
{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set ns.last_query = loop.index0 -%}{%- endif -%}{%- endfor -%}
{%- for m in messages -%}
{%- set content = m.content -%}
{%- if m.role == 'assistant' -%}
{%- set thought = '' -%}
{%- if '</think>' in content -%}
{%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') -%}
{%- set content = content.split('</think>')[-1].lstrip('\\n') -%}
{%- endif -%}
{{- '<|im_start|>assistant\\n' -}}
{%- if loop.index0 > ns.last_query and (loop.last or thought) -%}
{{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') -}}
{%- else -%}{{- content -}}{%- endif -%}
{%- else -%}{{- '<|im_start|>' + m.role + '\\n' + content -}}{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- if enable_thinking is defined and enable_thinking is false -%}{{- '<think>\\n\\n</think>\\n\\n' -}}{%- endif -%}
{%- endif -%}"""

_GEMMA = """\
{{- bos_token -}}
{%- if messages[0].role == 'system' -%}
{%- set system = messages[0].content + '\\n\\n' -%}{%- set turns = messages[1:] -%}
{%- else -%}{%- set system = '' -%}{%- set turns = messages -%}{%- endif -%}
{%- for m in turns -%}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) -%}
{{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') -}}{%- endif -%}
{%- set role = 'model' if m.role == 'assistant' else m.role -%}
{{- '<start_of_turn>' + role + '\\n' + (system if loop.first else '') + m.content | trim + '<end_of_turn>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<start_of_turn>model\\n' -}}{%- endif -%}"""


def _special(*names: str) -> list[AddedToken]:
    return [AddedToken(name, special=True, normalized=False) for name in names]


def _trained(splitter: pre_tokenizers.PreTokenizer, size: int, alphabet: list[str]) -> tuple[dict[str, int], list[Any]]:
    """Vocabulary and merges learned from TEXT."""
    learner = Tokenizer(BPE())
    learner.pre_tokenizer = splitter
    trainer = BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    # Blank lines between, so that "\n\n" is one token: what is cut before a header then has ids of its own.
    learner.train_from_iterator((line + "\n\n" for line in TEXT.splitlines()), trainer)
    state = json.loads(learner.to_str())["model"]
    return state["vocab"], [tuple(pair) for pair in state["merges"]]


def _byte_level(splitter: Any, added: list[AddedToken]) -> Tokenizer:
    vocab, merges = _trained(splitter, 420, pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(added)
    return tokenizer


def _pieces(first: tuple[str, ...]) -> Tokenizer:
    """BPE as SentencePiece writes it: spaces are ▁, unknown characters fall back to bytes."""
    vocab, merges = _trained(pre_tokenizers.Metaspace(), 460, [])
    words = [*first, *_BYTES, *(word for word in sorted(vocab, key=lambda word: vocab[word]) if word not in _BYTES)]
    numbered = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(BPE(vocab=numbered, merges=merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.add_tokens(_special(*first))
    return tokenizer


def _starts_with(tokenizer: Tokenizer, name: str) -> None:
    number = tokenizer.token_to_id(name)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{name} $A", special_tokens=[(name, number)])


def _build(kind: str) -> tuple[Tokenizer, dict[str, str], str | None]:
    """The tokenizer, its named special tokens, its chat template."""
    if kind == "llama":
        made = _pieces(("<unk>", "<s>", "</s>"))
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        made.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        _starts_with(made, "<s>")
        return made, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}, _LLAMA
    if kind in PAIRS:  # </s> behind every text; the padding is T5's first id and Marian's last
        first = ("<pad>", "</s>", "<unk>") if kind == "t5" else ("</s>", "<unk>")
        made = _pieces(first)
        if kind == "marian":
            made.add_tokens(_special("<pad>"))
        # As SentencePiece has it: new lines are spaces, and spaces at the end of a text are none.
        blank = normalizers.Replace(Regex(r"\s+"), " ")
        made.normalizer = normalizers.Sequence([blank, normalizers.Strip(left=False, right=True)])
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
        made.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        end = ("</s>", made.token_to_id("</s>"))
        made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[end])
        return made, {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}, None
    if kind in ("bert", "minilm"):  # lower case, a token for each Chinese character, unknown ones are [UNK]
        names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
        # Not trained: the trainer's vocabulary is another one each time.
        bare = normalizers.BertNormalizer().normalize_str(TEXT)
        words = [word for word, _ in pre_tokenizers.BertPreTokenizer().pre_tokenize_str(bare)]
        letters = sorted({*bare} - {" ", "\n"})
        every = dict.fromkeys([*names.values(), *letters, *(f"##{one}" for one in letters), *sorted({*words})])
        vocab = {word: number for number, word in enumerate(every)}
        made = Tokenizer(WordPiece(vocab=vocab, unk_token="[UNK]"))
        made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
        made.decoder = decoders.WordPiece()
        made.add_tokens(_special(*names.values()))
        around = [(name, made.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
        made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=around)
        return made, names, None
    if kind == "roberta":  # the mask takes the space before it
        first = ("<s>", "<pad>", "</s>", "<unk>")
        made = _byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), _special(*first))
        made.add_tokens([AddedToken("<mask>", special=True, normalized=False, lstrip=True)])
        around = [(name, made.token_to_id(name)) for name in ("<s>", "</s>")]
        made.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=around)
        names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
        return made, names | {"cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>"}, None
    if kind == "gemma":
        made = _pieces(("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"))
        made.normalizer = normalizers.Replace(" ", "▁")
        made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        made.add_tokens([AddedToken("\n" * length, special=False, normalized=False) for length in range(1, 5)])
        _starts_with(made, "<bos>")
        names = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"}
        return made, names, _GEMMA
    if kind == "gpt2":
        made = _byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), _special("<|endoftext|>"))
        return made, {name: "<|endoftext|>" for name in ("bos_token", "eos_token", "pad_token", "unk_token")}, None
    splitter = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(_SPLIT), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    if kind == "llama3":
        names_added = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
        made = _byte_level(splitter, _special(*names_added))
        _starts_with(made, "<|begin_of_text|>")
        names = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "pad_token": "<|end_of_text|>"}
        return made, names, _LLAMA3
    if kind == "qwen":
        plain = [AddedToken(name, special=False, normalized=False) for name in ("<think>", "</think>")]
        made = _byte_level(splitter, [*_special("<|endoftext|>", "<|im_start|>", "<|im_end|>"), *plain])
        made.normalizer = normalizers.NFC()
        return made, {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}, _QWEN
    raise ValueError(f"unknown kind {kind!r}, want one of {', '.join(TOKENIZERS)}")


@functools.cache
def _built(kind: str) -> tuple[str, dict[str, str], str | None]:
    made, names, template = _build(kind)
    return made.to_str(), names, template


def tokenizer(kind: str) -> Any:
    """A fresh fast tokenizer of one of TOKENIZERS, PAIRS or ENCODERS (fresh, so that a test may change it)."""
    from transformers import PreTrainedTokenizerFast

    state, names, template = _built(kind)
    fast = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(state), **names)
    fast.chat_template = template
    return fast


def model(kind: str, *, dtype: Any = None, seed: int = 0) -> Any:
    """A random model for `tokenizer(kind)`; dtype defaults to torch.float32. The global seed is left as it was."""
    import torch
    import transformers

    numbers = tokenizer(kind)
    ids: dict[str, Any] = {
        "vocab_size": len(numbers),
        "bos_token_id": numbers.bos_token_id,
        "eos_token_id": numbers.eos_token_id,
        "pad_token_id": numbers.pad_token_id,
    }
    sizes: dict[str, Any] = {
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 256,
    }
    config: Any
    if kind == "gpt2":
        drops: dict[str, Any] = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        config = transformers.GPT2Config(n_embd=WIDTH, n_layer=2, n_head=4, n_positions=POSITIONS[kind], **drops, **ids)
    elif kind == "qwen":
        config = transformers.Qwen3Config(num_hidden_layers=2, **sizes, **ids)
    elif kind == "gemma":  # layers take turns: a window of 16 tokens, then all tokens
        layers = ["sliding_attention", "full_attention"] * 2
        config = transformers.Gemma3TextConfig(
            num_hidden_layers=4, layer_types=layers, sliding_window=16, query_pre_attn_scalar=8, **sizes, **ids
        )
    elif kind == "t5":
        t5: dict[str, Any] = {"d_model": WIDTH, "d_kv": 8, "num_heads": 4, "d_ff": 2 * WIDTH, "num_layers": 2}
        config = transformers.T5Config(decoder_start_token_id=ids["pad_token_id"], dropout_rate=0.0, **t5, **ids)
    elif kind in ENCODERS:
        config = _encoder(kind, sizes, ids)
    elif kind == "marian":
        halves = [("layers", 2), ("attention_heads", 4), ("ffn_dim", 2 * WIDTH)]
        half: dict[str, Any] = {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in halves}
        config = transformers.MarianConfig(
            d_model=WIDTH, max_position_embeddings=POSITIONS[kind], decoder_start_token_id=ids["pad_token_id"],
            decoder_vocab_size=len(numbers), forced_eos_token_id=None, dropout=0.0, **half, **ids
        )  # fmt: skip
    else:
        config = transformers.LlamaConfig(num_hidden_layers=2, **sizes, **ids)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        auto: Any = transformers.AutoModelForSeq2SeqLM if kind in PAIRS else transformers.AutoModelForCausalLM
        more: dict[str, Any] = {}
        if kind in ENCODERS:
            auto = transformers.AutoModel if kind == "minilm" else transformers.AutoModelForMaskedLM
            more = {"add_pooling_layer": False} if kind == "minilm" else {}
        made = auto.from_config(config, dtype=torch.float32, **more)
        with torch.no_grad():
            for weight in made.parameters():  # larger than usual, so that logits differ visibly
                if weight.dim() > 1 and weight.requires_grad:  # Marian's positions are sines
                    weight.normal_(0.0, 0.2)
    return made.to(dtype or torch.float32).eval()


def _encoder(kind: str, sizes: dict[str, Any], ids: dict[str, Any]) -> Any:
    import transformers

    kept = {name: size for name, size in sizes.items() if name not in ("num_key_value_heads", "head_dim")}
    drops = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0)
    # RoBERTa's positions begin behind its padding's number, which is 1 in every published one.
    positions = POSITIONS[kind] + (ids["pad_token_id"] + 1 if kind == "roberta" else 0)
    made = transformers.RobertaConfig if kind == "roberta" else transformers.BertConfig
    given = {**kept, "max_position_embeddings": positions, "num_hidden_layers": 2}
    config = made(**given, **drops, **ids)
    if kind == "minilm":
        config.label_head = "mean"
    return config


def folder(kind: str, path: Path, *, dtype: Any = None, seed: int = 0) -> Path:
    """Model and tokenizer saved under `path` as any user's folder; returns `path`."""
    with contextlib.redirect_stderr(io.StringIO()):  # the library's bar would stand among what a test looks at
        model(kind, dtype=dtype, seed=seed).save_pretrained(path)
    tokenizer(kind).save_pretrained(path)
    return path
