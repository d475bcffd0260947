"""Soft prompts: P learned positions in front of every row, whose keys and values all layers attend to.

They are put before the keys by the attention function and not before the ids of the row, so that rows, batches,
padding and caches stay what they are. Three kinds of parameters: keys and values themselves (Prefix-Tuning), embeddings
that are read once for all rows (prompt tuning), embeddings that a small network makes (P-tuning). Under a causal mask
nothing in front of a row depends on it, so reading embeddings once is the same as prepending them to each row.

B rows, T tokens, P learned positions, L layers, G key/value heads, E width of a head, D width of the model, K keys.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from ..errors import InputError
from ..prompts.template import Rendered
from .kinds.batch import OWN_MASK
from .loading import BROKEN, first_line, quiet
from .prefix import Layers, Prefix
from .reading.attention import NAME, Sight, Tags
from .reading.plan import ReadingPlan
from .structure import in_mode

FIRST = "default"  # PEFT's name of an adapter that was given none
_COMMON = 5000  # of a vocabulary that is ordered by frequency, as merges are (Lester et al. sample as many)
_PROBED, _AHEAD = 9, 4


def read(model: Any, embeddings: torch.Tensor) -> Layers:
    """Keys and values [1, G, P, E] of every layer, once the backbone has read embeddings [P, D] on their own."""
    own = model.get_input_embeddings().weight
    places = torch.arange(len(embeddings), device=own.device)[None]
    yes = torch.ones_like(places, dtype=torch.bool)
    sight = Sight(ReadingPlan(), Tags(places, torch.ones_like(places), ~yes, yes), None)
    model.base_model(
        inputs_embeds=embeddings[None].to(own.dtype),
        position_ids=places,
        attention_mask=OWN_MASK.to(own.device),
        use_cache=False,
        reading=sight,
    )
    if not sight.read or sorted(sight.read) != list(range(len(sight.read))):
        raise InputError("its layers keep no keys and values that can be learned")
    return sight.memorise(len(sight.read))


@torch.no_grad()
def probe(model: Any) -> Layers:
    """Keys and values of a few tokens, after making sure that they can stand in front of others in their stead.

    Found out by trying, not by the family's name. Raises InputError, the backbone being left as it was.
    """
    before = model.config._attn_implementation
    held = getattr(model, "soft_prompts", None)
    embed = model.get_input_embeddings()
    device = embed.weight.device
    ids = (torch.arange(_PROBED, device=device)[None] * 7 + 3) % min(embed.weight.shape[0], 50)
    places = torch.arange(_PROBED, device=device)[None]
    try:
        with quiet(), in_mode(model, training=False), held.using(None) if held else nullcontext():
            if model.base_model is model:
                raise InputError("it has no part without an output layer")
            plain = model(input_ids=ids, use_cache=False).logits[:, _AHEAD:]  # before the attention is ours
            model.set_attn_implementation(NAME)
            layers = read(model, embed(ids[0, :_AHEAD]))
            given = {"position_ids": places[:, _AHEAD:], "use_cache": False, "prefix": Prefix(layers)}
            apart = float((model(input_ids=ids[:, _AHEAD:], **given).logits - plain).abs().max())
            bound = (1e-3 if plain.dtype == torch.float32 else 0.1) * (float(plain.abs().max()) + 1e-6)
            if not apart <= bound:
                raise InputError("it does not read the same with keys and values put before a row")
    except (InputError, NotImplementedError, *BROKEN) as error:
        model.set_attn_implementation(before)
        why = first_line(error).removeprefix("strokes: ").partition(";")[0]  # where it can't read with a memory at all
        raise InputError(f"method: this model can't have a soft prompt: {why}") from error
    return layers


class Prompt(nn.Module):
    """One soft prompt."""

    @property
    def length(self) -> int:
        """P."""
        raise NotImplementedError

    def prefix(self, model: Any) -> Prefix:
        """Its keys and values, as layers take them."""
        raise NotImplementedError

    def begin(self, model: Any, embeddings: torch.Tensor) -> None:
        """Start from embeddings [P, D]."""
        raise NotImplementedError

    def saved(self) -> torch.Tensor:
        """What PEFT calls `prompt_embeddings`."""
        raise NotImplementedError


class _Kept(Prompt):
    """A prompt whose parameters are what is saved."""

    def __init__(self, embeddings: torch.Tensor) -> None:
        super().__init__()
        self.embeddings = nn.Parameter(embeddings)

    @property
    def length(self) -> int:
        """P."""
        return len(self.embeddings)

    def saved(self) -> torch.Tensor:
        """The parameters."""
        return self.embeddings


class KeysAndValues(_Kept):
    """Prefix-Tuning. embeddings [P, 2 L G E]: as PEFT keeps them, for each position the key and value of each layer."""

    def __init__(self, embeddings: torch.Tensor, layers: int, groups: int) -> None:
        super().__init__(embeddings)
        self.layers, self.groups = layers, groups

    def prefix(self, model: Any) -> Prefix:
        """The parameters as layers take them."""
        parts = self.embeddings.view(self.length, self.layers, 2, self.groups, -1).permute(1, 2, 3, 0, 4)[:, :, None]
        return Prefix(tuple((key, value) for key, value in parts))

    @torch.no_grad()
    def begin(self, model: Any, embeddings: torch.Tensor) -> None:
        """Start from what the backbone keeps of embeddings [P, D]."""
        pairs = [torch.stack([key[0], value[0]]) for key, value in read(model, embeddings)]
        self.embeddings.copy_(torch.stack(pairs).permute(3, 0, 1, 2, 4).reshape(self.length, -1))


class Embeddings(_Kept):
    """Prompt tuning. embeddings [P, D]: as they come out of the embedding layer, a scale of its own included."""

    def __init__(self, embeddings: torch.Tensor) -> None:
        super().__init__(embeddings)
        self._read: Prefix | None = None

    def prefix(self, model: Any) -> Prefix:
        """What the backbone keeps of the embeddings: read anew each time while they are trained, since they change."""
        if self.embeddings.requires_grad:
            return Prefix(read(model, self.embeddings))
        if self._read is None:
            with torch.inference_mode(False), torch.no_grad():  # a later call may be without inference mode
                self._read = Prefix(read(model, self.embeddings))
        return self._read

    def _apply(self, *given: Any, **named: Any) -> Any:
        self._read = None  # moved to another device or dtype
        return super()._apply(*given, **named)

    @torch.no_grad()
    def begin(self, model: Any, embeddings: torch.Tensor) -> None:
        """Start from embeddings [P, D]."""
        self.embeddings.copy_(embeddings)


class Encoded(Prompt):
    """P-tuning: embeddings + encoder(embeddings), the encoder being PEFT's.

    The sum is after Residual Prompt Tuning (arXiv 2305.03937): with the last layer at 0, the start is that of prompt
    tuning, while an encoder alone starts from something that is no word.
    """

    def __init__(self, length: int, width: int, options: Mapping[str, Any], seed: int) -> None:
        """options: kind (mlp, lstm), width (of the hidden layer), layers (of the LSTM), dropout (between them)."""
        super().__init__()
        from peft import PromptEncoder, PromptEncoderConfig

        config = PromptEncoderConfig(
            num_virtual_tokens=length,
            token_dim=width,
            num_transformer_submodules=1,
            encoder_reparameterization_type=options["kind"].upper(),
            encoder_hidden_size=options["width"],
            encoder_num_layers=options["layers"],
            encoder_dropout=options["dropout"],
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.encoder = PromptEncoder(config)
        self.options = dict(options)
        for part in self.encoder.mlp_head[-1].parameters():
            nn.init.zeros_(part)

    @property
    def length(self) -> int:
        """P."""
        return int(self.encoder.total_virtual_tokens)

    def prefix(self, model: Any) -> Prefix:
        """As that of `Embeddings`."""
        return Prefix(read(model, self._embeddings()))

    def _embeddings(self) -> torch.Tensor:
        weight = self.encoder.embedding.weight  # [P, D]
        with torch.autocast(weight.device.type, enabled=False):  # what is saved is computed without it
            places = torch.arange(self.length, device=weight.device)[None]
            made: torch.Tensor = weight + self.encoder(places)[0]
        return made

    @torch.no_grad()
    def begin(self, model: Any, embeddings: torch.Tensor) -> None:
        """Start from embeddings [P, D]."""
        self.encoder.embedding.weight.copy_(embeddings)

    @torch.no_grad()
    def saved(self) -> torch.Tensor:
        """What PEFT calls `prompt_embeddings`: what the encoder makes, without its dropout."""
        training = self.training
        made = self.eval()._embeddings()
        self.train(training)
        return made


class SoftPrompts(nn.Module):
    """The soft prompts of a backbone by name. The active one stands in front of every row that the backbone reads."""

    def __init__(self) -> None:
        super().__init__()
        self.prompts = nn.ModuleDict()
        self.active: str | None = FIRST

    def by_name(self) -> dict[str, Prompt]:
        """All of them."""
        return {name: prompt for name, prompt in self.prompts.items() if isinstance(prompt, Prompt)}

    @property
    def length(self) -> int:
        """Positions that they take."""
        return max(prompt.length for prompt in self.by_name().values())

    @contextmanager
    def using(self, name: str | None) -> Iterator[None]:
        """Another one in front, or none, for as long as the block lasts."""
        before, self.active = self.active, name
        try:
            yield
        finally:
            self.active = before

    def stand_before(
        self, model: Any, args: tuple[Any, ...], given: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """What is done to every call of the backbone's forward: it gets the keyword, and positions that start at P, as
        behind prepended tokens. Positions that the caller left away are counted from the mask, so that padding on the
        left changes nothing either."""
        if self.active is None:
            return None
        prompt = self.by_name()[self.active]
        positions = given.get("position_ids")
        if positions is None:
            tokens = args[0] if args else given.get("input_ids")
            positions = _positions(given["inputs_embeds"] if tokens is None else tokens, given)
        return args, given | {"prefix": prompt.prefix(model), "position_ids": positions + prompt.length}


def _positions(tokens: torch.Tensor, given: Mapping[str, Any]) -> torch.Tensor:
    """Positions [B or 1, T] of tokens [B, T] or [B, T, D]."""
    mask, cache = given.get("attention_mask"), given.get("past_key_values")
    if mask is not None and mask.dim() == 2:
        return (mask.long().cumsum(1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
    past = 0 if cache is None else int(cache.get_seq_length())
    return torch.arange(past, past + tokens.shape[1], device=tokens.device)[None]


def prompts_of(model: Any) -> SoftPrompts:
    """The soft prompts of a backbone, which gets a place for them where it has none."""
    found = getattr(model, "soft_prompts", None)
    if found is None:
        found = model.soft_prompts = SoftPrompts()
        model.register_forward_pre_hook(found.stand_before, with_kwargs=True)
    return found


def embed(model: Any, ids: Sequence[int], size: int) -> torch.Tensor:
    """Embeddings [size, D] of ids, in fp32, from the start again where there are too few."""
    table = model.get_input_embeddings()
    again = (list(ids) * (size // len(ids) + 1))[:size]
    with torch.no_grad():
        made: torch.Tensor = table(torch.tensor(again, device=table.weight.device)).float()
    return made


def common_ids(model: Any, size: int, seed: int) -> list[int]:
    """Ids drawn from the most common tokens of the vocabulary."""
    most = min(_COMMON, model.get_input_embeddings().weight.shape[0])
    drawn = torch.randint(most, (size,), generator=torch.Generator().manual_seed(seed))
    return [int(number) for number in drawn]


_ENOUGH = 10_000  # rows to draw first values from


def ids_of_rows(rows: Sequence[Rendered], size: int, seed: int) -> list[int]:
    """What rows drawn by seed ask, one behind the other, without the beginning that all of them share: a system message
    says nothing about a task. Their first token stays, since models park attention there."""
    generator = torch.Generator().manual_seed(seed)
    if len(rows) > _ENOUGH:
        rows = [rows[place] for place in torch.randint(len(rows), (_ENOUGH,), generator=generator).tolist()]
    asked = [row.ids[: row.instruction_end] for row in rows if row.instruction_end]
    shared = len(os.path.commonprefix(asked)) if len(asked) > 1 else 1
    ids: list[int] = [asked[0][0]] if asked else []
    order = torch.randperm(len(asked), generator=generator) if asked else ()
    for place in order:
        if len(ids) >= size:
            break
        ids += asked[int(place)][shared:]
    return ids[:size]


__all__ = [
    "FIRST", "Embeddings", "Encoded", "KeysAndValues", "SoftPrompts", "common_ids", "embed", "ids_of_rows", "probe",
    "prompts_of", "read",
]  # fmt: skip
