"""What the tests of the reading plan share: rows, plans, tiny models with adapters, and the plan once more, written
slowly from its definition: row by row, stroke by stroke, with a mask made token by token, through the backbone's own
forward, its own attention and its own cache. Nothing here uses the code under test but the plan's own fields.

N tokens of an instruction, A of the header and the answer, S slots, T tokens of a pass, K keys, L layers.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

import tiny
from instructrec.errors import InputError
from instructrec.models import methods
from instructrec.models.reading import Reading, ReadingPlan, lay
from instructrec.prompts.template import Rendered

LORA = {"rank": 4, "alpha": 8.0, "dropout": 0.0, "target": "all-linear"}
TOLERANCE = 1e-5  # of the largest logit, in fp32
WINDOW = {"gemma": 16}
SINK = 4  # as the definition has it


def row(instruction: int, header: int, answer: int, seed: int = 0) -> Rendered:
    """Random ids; the answer is supervised."""
    draw = random.Random(1000 * seed + 100 * instruction + answer)
    ids = [draw.randrange(5, 300) for _ in range(instruction + header + answer)]
    prompt = instruction + header
    return Rendered(ids, [place >= prompt for place in range(len(ids))], instruction, prompt)


def prompt_of(one: Rendered) -> Rendered:
    """What serving has of a row."""
    end = one.prompt_end
    return Rendered(one.ids[:end], [False] * end, one.instruction_end, end)


def plans() -> list[ReadingPlan]:
    """Every combination of settings that has a meaning, with two strokes, and those of concat with three."""
    names = ("prior", "stroke_adapters", "memory", "direction", "mix", "slots")
    values: tuple[tuple[Any, ...], ...] = (
        ("tuned", "frozen"), ("shared", "separate"), ("all", "sink+last"), ("causal", "bidirectional"),
        ("concat", "gated"), (0, 3),
    )  # fmt: skip
    made = [ReadingPlan(), ReadingPlan(slots=3)]
    for strokes in (2, 3):
        for combination in itertools.product(*values):
            try:
                made.append(ReadingPlan(strokes=(strokes,), **dict(zip(names, combination, strict=True))))
            except InputError:
                continue
    return made


def adapt(model: Any, seed: int = 0) -> Any:
    """LoRA that changes every output."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model = methods.get("lora").attach(model, LORA, seed)
    shake(model, seed)
    return model.eval()


def shake(model: Any, seed: int) -> None:
    """Random numbers into all that is trained, so that nothing is zero."""
    draw = torch.Generator().manual_seed(seed + 11)
    with torch.no_grad():
        for parameter in methods.trained_parameters(model).values():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=draw))


def adapters(model: Any, name: str) -> dict[str, torch.Tensor]:
    """Parameters of one adapter under names without it."""
    return {
        key.replace(f".{name}.", "."): parameter
        for key, parameter in model.named_parameters()
        if f".{name}." in key and "lora_" in key
    }


def reading(kind: str, plan: ReadingPlan, seed: int = 0) -> Reading:
    """A reading of a tiny model with adapters, gates and slots that all do something."""
    lora = methods.get("lora")
    model = adapt(tiny.model(kind), seed)
    for number, name in enumerate(plan.adapters):
        lora.add(model, name, LORA, seed)
        draw = torch.Generator().manual_seed(100 * seed + number + 50)
        with torch.no_grad():
            for parameter in adapters(model, name).values():
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=draw))
    made = Reading(model, plan, lora.using).eval()
    draw = torch.Generator().manual_seed(seed + 77)
    with torch.no_grad():
        for weight in made.extra().values():
            weight.copy_(0.7 * torch.randn(weight.shape, generator=draw))
    return made


def separate_models(kind: str, made: Reading) -> dict[str, Any]:
    """A model of its own for each set of weights that `made` reads with: '' , 'off' and each further adapter."""
    models = {"off": plainly(tiny.model(kind))}
    for name, source in {"": "default", **{name: name for name in made.plan.adapters}}.items():
        models[name] = plainly(adapt(tiny.model(kind)))
        with torch.no_grad():
            given = adapters(made.model, source)
            for key, parameter in adapters(models[name], "default").items():
                parameter.copy_(given[key])
    return models


def plainly(model: Any) -> Any:
    """The model with the library's plainest attention."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    base.set_attn_implementation("eager")
    return model.eval()


# -- the definition, slowly -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Token:
    """kind: slot, x or a.  stroke: that it belongs to; an answer's is the stroke after which it answers."""

    position: int
    stroke: int
    kind: str


def sees(plan: ReadingPlan, query: Token, key: Token, window: int | None) -> bool:
    """The table of settings, one question at a time."""
    if window is not None and query.position - key.position >= window:
        return False
    if key.kind == "slot":
        return True
    if query.kind == "x":
        if key.kind == "a":
            return False
        if key.stroke > query.stroke:
            return False
        if key.stroke < query.stroke:
            return plan.mix == "concat"
        if plan.direction == "bidirectional" and query.stroke > 1:
            return True
        return key.position <= query.position
    if key.kind == "a":
        return key.stroke == query.stroke and key.position <= query.position
    if key.stroke == query.stroke:
        return True
    if key.stroke > query.stroke or plan.mix == "gated":
        return False
    if plan.memory == "sink+last":
        return key.stroke == 1 and key.position - plan.slots < SINK
    return True


def mask_of(plan: ReadingPlan, kind: str, queries: Sequence[Token], keys: Sequence[Token]) -> Any:
    """What the backbone takes as `attention_mask`: [1, 1, T, K], or one for each kind of layer."""

    def one(window: int | None) -> torch.Tensor:
        seen = torch.tensor([[sees(plan, query, key, window) for key in keys] for query in queries])
        return torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[None, None]

    if kind in WINDOW:
        return {"full_attention": one(None), "sliding_attention": one(WINDOW[kind])}
    return one(None)


Layer = tuple[torch.Tensor, torch.Tensor]


class Slow:
    """One row, read by the definition. memory: keys and values [1, G, K, E] of L layers, with the token of each."""

    def __init__(self, kind: str, plan: ReadingPlan, models: Mapping[str, Any], made: Reading | None = None) -> None:
        self.kind, self.plan, self.models = kind, plan, models
        self.gates, self.slots = getattr(made, "gates", None), getattr(made, "slots", None)

    def start(self) -> tuple[list[Layer], list[Token]]:
        """M_0."""
        if self.slots is None:
            return [], []
        tokens = [Token(place, 0, "slot") for place in range(self.plan.slots)]
        return [(layer[0][None], layer[1][None]) for layer in self.slots], tokens

    def read(
        self, weights: str, ids: Sequence[int], tokens: Sequence[Token], layers: Sequence[Layer], known: Sequence[Token]
    ) -> tuple[torch.Tensor, list[Layer]]:
        """Logits [T, V] of some tokens over a memory, and their own keys and values."""
        cache = DynamicCache()
        for place, (key, value) in enumerate(layers):
            cache.update(key, value, place)
        told: AbstractContextManager[Any] = torch.no_grad() if weights == "off" else nullcontext()
        with told:
            out = self.models[weights](
                input_ids=torch.tensor([list(ids)]),
                position_ids=torch.tensor([[token.position for token in tokens]]),
                attention_mask=mask_of(self.plan, self.kind, tokens, [*known, *tokens]),
                past_key_values=cache,
                use_cache=True,
            )
        size = len(known)
        return out.logits[0], [(layer.keys[:, :, size:], layer.values[:, :, size:]) for layer in cache.layers]

    def remember(self, ids: Sequence[int], strokes: int) -> list[tuple[list[Layer], list[Token]]]:
        """The memory after each stroke."""
        plan, size = self.plan, len(ids)
        layers, known = self.start()
        memories, read = [], []
        for stroke in range(1, strokes + 1):
            weights = ""
            if strokes > 1 and stroke == 1 and plan.prior == "frozen":
                weights = "off"
            elif plan.stroke_adapters == "separate" and stroke < strokes:
                weights = f"stroke_{stroke}"
            first = plan.slots + (0 if plan.mix == "gated" else (stroke - 1) * size)
            tokens = [Token(first + place, stroke, "x") for place in range(size)]
            own: list[Layer] = []
            if size:
                own = self.read(weights, ids, tokens, layers, known)[1]
            read.append(own)
            if plan.mix == "gated" and size:
                after = own if stroke == 1 else self.average(read[0], own, size)
                memories.append((joined(layers, after), [*known, *tokens]))
                continue
            layers, known = (joined(layers, own), [*known, *tokens]) if size else (layers, known)
            memories.append((layers, known))
        return memories

    def average(self, first: Sequence[Layer], second: Sequence[Layer], size: int) -> list[Layer]:
        """Token by token."""
        assert self.gates is not None
        mixed = []
        for layer, (one, two) in enumerate(zip(first, second, strict=True)):
            pair = []
            for part in range(2):
                columns = []
                for place in range(size):
                    gate = self.gates[layer, part]
                    if self.plan.memory == "sink+last" and place < SINK:
                        gate = torch.zeros(())
                    columns.append((1 - gate) * one[part][:, :, place] + gate * two[part][:, :, place])
                pair.append(torch.stack(columns, dim=2))
            mixed.append((pair[0], pair[1]))
        return mixed

    def logits(self, one: Rendered, strokes: int, after: int | None = None) -> torch.Tensor:
        """Logits [A', V] at the tokens that predict what is supervised, answering after stroke `after` (default the
        last)."""
        stroke, plan = after or strokes, self.plan
        end = min(one.instruction_end, one.prompt_end - 1)
        layers, known = self.remember(one.ids[:end], strokes)[stroke - 1]
        first = plan.slots + (1 if plan.mix == "gated" else stroke) * end
        tokens = [Token(first + place, stroke, "a") for place in range(len(one.ids) - end)]
        logits, _ = self.read("", one.ids[end:], tokens, layers, known)
        places = [place - 1 for place in range(1, len(tokens)) if one.supervised[end + place]]
        return logits[places]


def joined(layers: Sequence[Layer], more: Sequence[Layer]) -> list[Layer]:
    """Keys and values, one behind the other."""
    if not layers:
        return list(more)
    return [(torch.cat([a[0], b[0]], 2), torch.cat([a[1], b[1]], 2)) for a, b in zip(layers, more, strict=True)]


# -- the code under test --------------------------------------------------------------------------------------------


def read_rows(made: Reading, rows: Sequence[Rendered], strokes: int | None = None, *, deep: bool = False) -> Any:
    """Logits [N', V] of what is supervised, and the row of each."""
    laid = lay(rows, made.plan, strokes or made.plan.most, pad_id=0, deep=deep)
    return made(laid.passes, laid.positions)[0], laid


def close(got: torch.Tensor, wanted: torch.Tensor, what: object = "") -> None:
    """Equal within 1e-5 of the largest number."""
    assert got.shape == wanted.shape, (what, got.shape, wanted.shape)
    scale = max(1.0, float(wanted.detach().abs().max()) if wanted.numel() else 1.0)
    error = float((got - wanted).detach().abs().max()) if wanted.numel() else 0.0
    assert error <= TOLERANCE * scale, f"{what}: off by {error:.1e} at a scale of {scale:.1f}"


def all_of(parameters: Mapping[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and gradient of each; none may be missing."""
    for name, parameter in parameters.items():
        assert parameter.grad is not None, f"{name}: no gradient"
        yield name, parameter.grad
