"""How much memory a training step takes, from a model's configuration alone: no weights, no torch.

Counted is what is held at the same time at the worst moment. Activations are the tensors that autograd keeps for the
backward pass of this package's step, layer by layer, as transformers' eager modules and `products.attention` make them.

B rows, T tokens of the longest row, N supervised positions, D width, F inner width, H heads, G key/value heads,
E width of a head, L layers, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import InputError

BLOCK, KEPT = 256, 1 << 21  # of products.py, which brings torch; a test holds them to it
# Feed-forward parts without a gate, and how many copies of F a token leaves for the backward pass there.
_UNGATED = {"gpt2": 6, "opt": 2, "gpt_neox": 2, "bloom": 4, "phi": 6, "starcoder2": 6, "gpt_bigcode": 6, "marian": 2}
_FOUR_NORMS = ("gemma2", "gemma3", "gemma3_text")
_HEAD_NORMS = ("qwen3", "gemma3", "gemma3_text", "olmo2")
# Measured (bench/estimate.py): what glibc's allocator keeps in holes too small for the next tensor (an aligned request
# never fits a hole of just its size), as a share of all that the blocks leave behind in a forward pass, in fp32 and in
# bf16, without checkpointing and with it; modules that loading imports, and buffers of the matrix library.
HOLES = {(False, False): 0.75, (True, False): 0.42, (False, True): 0.65, (True, True): 0.13}
LIBRARIES = 80 << 20
PAIRS = ("t5", "mt5", "umt5", "marian", "bart", "mbart", "m2m_100", "pegasus")
ENCODERS = (
    "albert", "bert", "big_bird", "camembert", "convbert", "data2vec-text", "deberta", "deberta-v2", "distilbert",
    "electra", "ernie", "eurobert", "flaubert", "funnel", "gte", "longformer", "luke", "megatron-bert", "mobilebert",
    "modernbert", "mpnet", "nomic_bert", "nystromformer", "rembert", "roberta", "roberta-prelayernorm", "roc_bert",
    "roformer", "squeezebert", "xlm", "xlm-roberta", "xlm-roberta-xl", "xmod",
)  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """A micro-batch: rows [B], tokens of each with padding [T], supervised positions of all [N]; where rows share their
    beginnings (`models.shared_prefix`), how many of these there are and their length."""

    rows: int
    tokens: int
    targets: int
    beginnings: int = 0
    length: int = 0

    @property
    def computed(self) -> int:
        """Tokens that go through the layers."""
        return self.beginnings * self.length + self.rows * (self.tokens - self.length)

    @property
    def attended(self) -> int:
        """Keys that are kept: every row has its whole own, and every beginning."""
        return self.beginnings * self.length + self.rows * self.tokens


@dataclass(frozen=True)
class Architecture:
    """What a decoder's `config.json` says, in plain numbers."""

    kind: str
    width: int
    inner: int
    layers: int
    heads: int
    groups: int
    head: int
    vocabulary: int
    positions: int
    tied: bool
    learned_positions: bool

    @property
    def gated(self) -> bool:
        """Whether the feed-forward part multiplies two projections."""
        return self.kind not in _UNGATED

    @property
    def norms(self) -> int:
        """Norms of a layer over D."""
        return 4 if self.kind in _FOUR_NORMS else 2

    def linear(self) -> dict[str, tuple[int, int]]:
        """Name -> (inputs, outputs) of the linear layers of one block."""
        queries, keys = self.heads * self.head, self.groups * self.head
        if self.kind == "gpt2":
            return {
                "c_attn": (self.width, 3 * self.width),
                "c_proj": (self.width, self.width),
                "c_fc": (self.width, self.inner),
                "mlp.c_proj": (self.inner, self.width),
            }
        found = {"q_proj": (self.width, queries), "k_proj": (self.width, keys), "v_proj": (self.width, keys)}
        found["o_proj"] = (queries, self.width)
        if self.gated:
            found["gate_proj"] = (self.width, self.inner)
        return found | {"up_proj": (self.width, self.inner), "down_proj": (self.inner, self.width)}

    def parameters(self) -> int:
        """Weights of the whole model."""
        block = sum(inputs * outputs for inputs, outputs in self.linear().values()) + self.norms * self.width
        block += 2 * self.head if self.kind in _HEAD_NORMS else 0
        if self.kind == "gpt2":  # biases, also of its norms
            block += sum(outputs for _, outputs in self.linear().values()) + 2 * self.width
        if self.kind.startswith("qwen2"):
            block += (self.heads + 2 * self.groups) * self.head
        tables = self.vocabulary * self.width * (1 if self.tied else 2)
        tables += self.positions * self.width if self.learned_positions else 0
        return self.layers * block + tables + self.width * (2 if self.kind == "gpt2" else 1)


def architecture(config: Mapping[str, Any]) -> Architecture:
    """Raises InputError for a configuration that lacks what is needed, or is of a kind that is not estimated."""
    text = config.get("text_config")
    config = {**config, **text} if isinstance(text, Mapping) else config
    kind = str(config.get("model_type", ""))
    if kind in PAIRS or config.get("is_encoder_decoder"):
        raise InputError(f"estimate: memory of encoder-decoders is not estimated (got {kind})")
    if (kind in ENCODERS and not config.get("is_decoder")) or config.get("label_head"):
        raise InputError(f"estimate: memory of masked encoders is not estimated (got {kind})")

    def first(*names: str) -> int:
        for name in names:
            if isinstance(config.get(name), int):
                return int(config[name])
        raise InputError(f"config.json: none of {', '.join(names)} is given, so memory can't be estimated")

    width, heads = first("hidden_size", "n_embd"), first("num_attention_heads", "n_head")
    inner = config.get("intermediate_size") or config.get("n_inner") or 4 * width
    return Architecture(
        kind=kind,
        width=width,
        inner=int(inner),
        layers=first("num_hidden_layers", "n_layer"),
        heads=heads,
        groups=int(config.get("num_key_value_heads") or heads),
        head=int(config.get("head_dim") or width // heads),
        vocabulary=first("vocab_size"),
        positions=first("max_position_embeddings", "n_positions"),
        tied=bool(config.get("tie_word_embeddings", kind in ("gpt2", "gemma", "gemma2", "gemma3", "gemma3_text"))),
        learned_positions=kind in ("gpt2", "opt"),
    )


@dataclass(frozen=True)
class Method:
    """What is trained.

    parameters: their number.  inputs: names of linear layers whose input is kept for their gradient, None for all.
    dropout: whether such an input is dropped out first.  norms: whether the norms are trained too.
    """

    parameters: int
    inputs: frozenset[str] | None = frozenset()
    dropout: bool = False
    norms: bool = False


def method(model: Architecture, name: str, options: Mapping[str, Any]) -> Method:
    """The method called `name` with its settings."""
    linear, keys = model.linear(), model.groups * model.head
    if name == "full":
        return Method(model.parameters(), None, norms=True)
    if name == "lora":
        target = str(options.get("target", "all-linear"))
        chosen = set(linear) if target == "all-linear" else {part.strip() for part in target.split(",")}
        hit = {key: sizes for key, sizes in linear.items() if key.rpartition(".")[2] in chosen or key in chosen}
        rank = int(options["rank"])
        extra = sum(outputs for _, outputs in hit.values()) if options.get("dora") else 0
        count = model.layers * (sum(rank * sum(sizes) for sizes in hit.values()) + extra)
        return Method(count, frozenset(hit), dropout=bool(options.get("dropout")))
    length = int(options.get("length", 0))
    if name == "prefix_tuning":
        return Method(2 * model.layers * keys * length)
    if name == "ia3":
        return Method(model.layers * (2 * keys + model.inner))
    if name == "adapter":
        width = int(options.get("width", 64))
        places = 2 if options.get("placement") == "houlsby" else 1
        return Method(model.layers * places * (2 * width * model.width + width + model.width))
    if name == "p_tuning":
        width = int(options.get("width") or model.width)
        return Method(length * model.width + 2 * width * model.width + width * width)
    return Method(length * model.width)


def per_layer(model: Architecture, tuned: Method, shape: Shape, half: bool) -> int:
    """Bytes that one block keeps for the backward pass of a micro-batch."""
    size = 2 if half else 4
    queries, keys = model.heads * model.head, model.groups * model.head
    blocks = -(-shape.tokens // BLOCK)
    copies = (blocks + 1) / 2  # each block of queries keeps its own copy of the keys and values that it sees
    kept: float = model.norms * model.width * 4  # a norm works on fp32, and keeps what it was given
    kept += model.norms * model.width * 4 if tuned.norms else 0
    kept += model.norms * model.width * 4 if half else 0  # the stream of the residuals beside its copies in fp32
    kept += queries * size
    if model.kind in _HEAD_NORMS:
        kept += (queries + keys) * 4
    # Inputs of the linear layers: before attention, of its last projection, before and inside of the feed-forward part.
    every = tuned.inputs is None
    names = set(model.linear()) if tuned.inputs is None else tuned.inputs
    groups = (
        ({"q_proj", "k_proj", "v_proj", "c_attn"}, model.width),
        ({"o_proj", "c_proj"}, queries),
        ({"gate_proj", "up_proj", "c_fc"}, model.width),
        ({"down_proj", "mlp.c_proj"}, model.inner),
    )
    for members, inputs in groups:
        if every or members & names:  # dropout leaves a mask and an input of its own for each
            kept += (2 * len(members & names) if tuned.dropout else 1) * inputs * size
    kept += (3 if model.gated else _UNGATED[model.kind]) * model.inner * size
    keys_kept = int(2 * keys * copies * size * shape.attended)
    return int(kept * shape.computed) + keys_kept + _shares(model, shape, size)


def _shares(model: Architecture, shape: Shape, size: int) -> int:
    """Bytes of the attention shares that are kept, if they are; each block of queries looks back to the start."""
    found = 0
    for rows, tokens, before in (
        (shape.beginnings, shape.length, 0),
        (shape.rows, shape.tokens - shape.length, shape.length),
    ):
        starts = range(0, tokens, BLOCK)
        seen = sum(min(BLOCK, tokens - start) * (before + min(start + BLOCK, tokens)) for start in starts)
        found += rows * model.heads * seen * size if seen <= KEPT else 0
    return found


@dataclass(frozen=True)
class Footprint:
    """Bytes by what they are for; `total` is the most that is held at once."""

    weights: int
    trained: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    look: int
    allocator: int
    libraries: int

    @property
    def total(self) -> int:
        """Gradients grow while activations go; a look at held-out rows comes when neither is there."""
        held = self.weights + self.trained + self.optimizer + self.libraries + self.allocator
        return held + max(self.activations + self.logits, self.gradients, self.look)

    @property
    def first(self) -> int:
        """The most that is held until the end of the first step: the optimizer's state comes last."""
        held = self.weights + self.trained + self.libraries + self.allocator
        return held + max(self.activations + self.logits, self.gradients + self.optimizer, self.look)


def footprint(
    model: Architecture,
    tuned: Method,
    shape: Shape,
    *,
    half: bool,
    checkpointing: bool = False,
    look: Shape | None = None,
    processor: bool = True,
) -> Footprint:
    """Memory of training with micro-batches of `shape`.

    half: weights and activations in bf16.  look: the largest batch of held-out rows.  processor: it is the process's
    own memory, whose allocator leaves holes, and not a device's.
    """
    size = 2 if half else 4
    total = model.parameters()
    layer = per_layer(model, tuned, shape, half)
    stream = shape.computed * model.width * size
    activations = stream * model.layers + layer if checkpointing else layer * model.layers + 2 * stream
    logits = 2 * shape.targets * model.vocabulary * size  # logits and probabilities, then those and the gradient
    seen = 0
    if look:
        seen = look.targets * model.vocabulary * size
        seen += look.computed * (3 * model.inner + 4 * model.width) * size
    return Footprint(
        weights=0 if tuned.inputs is None else total * size,  # else they are what is trained, in fp32
        trained=tuned.parameters * 4,
        gradients=tuned.parameters * 4,
        optimizer=tuned.parameters * 8,
        activations=activations,
        logits=logits,
        look=seen,
        allocator=int(HOLES[half, checkpointing] * layer * model.layers) if processor else 0,
        libraries=LIBRARIES,
    )
