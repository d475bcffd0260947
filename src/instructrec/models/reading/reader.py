"""The RRTransformer: a pretrained decoder that reads an instruction as its plan says.

B rows, T tokens of a pass, M tokens of a memory, L layers, G key/value heads, E width of a head, D width, S slots,
V vocabulary, N supervised positions, K keys of a memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...errors import InputError
from ...prompts.template import Rendered
from ..kinds import kind_of, logits_at
from ..kinds.batch import OWN_MASK
from ..loading import BROKEN, first_line
from ..methods import trained_parameters
from ..structure import in_mode
from .attention import NAME, Decoding, Layers, Memory, Sight, Tags, stack
from .layout import Pass, lay
from .plan import SINK, ReadingPlan

EXTRA = "extra.safetensors"

Switch = Callable[[Any, str], AbstractContextManager[Any]]


def no_switch(model: Any, weights: str) -> AbstractContextManager[Any]:
    """For a backbone on its own: 'off' is what it is anyway."""
    return nullcontext(model)


class Reading(nn.Module):
    """A decoder, possibly with an adapter, behind a reading plan.

    model: the decoder.  switch(model, weights): gives the model whose weights are 'off' or those of a named adapter.
    strokes: how often an instruction is read now, the dial of inference; the largest of the plan at first.
    turn: a block in which the model may compute, where it shares its backbone with others.
    gates [L, 2]: share of stroke 2 in keys and values, raw scalars that start at 0 (after arXiv 2405.14862,
    whose shares start at one half and whose passes have an adapter each).
    slots [L, 2, G, S, E]: learned keys and values, as they are after rotation.

    Raises InputError when the backbone can't be read by this plan: found out by trying, not by its name.
    """

    def __init__(self, model: Any, plan: ReadingPlan, switch: Switch = no_switch) -> None:
        super().__init__()
        kind_of(model).check_plan(plan)
        self.model, self.plan, self.switch = model, plan, switch
        self.strokes = plan.most
        self.turn: Callable[[], AbstractContextManager[Any]] = nullcontext
        self.own = list(trained_parameters(model).values())
        keys = self._shapes() if kind_of(model).causal else []  # the others remember nothing
        device = next(model.parameters()).device
        if plan.mix == "gated":
            self.gates = nn.Parameter(torch.zeros(len(keys), 2, device=device))
        if plan.slots:
            if len({*keys}) > 1 or keys[0][1] != keys[0][2]:
                raise InputError("slots: this model's keys and values differ in shape between layers (want slots=0)")
            groups, width, _ = keys[0]
            self.slots = nn.Parameter(torch.zeros(len(keys), 2, groups, plan.slots, width, device=device))

    def _shapes(self) -> list[tuple[int, int, int]]:
        """G, and E of the keys and of the values, of every layer, after making sure that a reading in passes equals a
        reading in one, and that the backbone's own. A backbone that is refused is left as it was."""
        base, device = _base(self.model), next(self.model.parameters()).device
        size = min(base.get_input_embeddings().weight.shape[0], 50)
        row = Rendered([(7 * place + 3) % size for place in range(9)], [False] * 6 + [True] * 3, 5, 6)
        plan, before = ReadingPlan(strokes=(2,)), base.config._attn_implementation
        try:
            with torch.no_grad(), in_mode(self.model, training=False):
                laid = lay([row], plan, 2, pad_id=0)
                one, positions = laid.passes[0].to(device), laid.positions.to(device)
                plain = self._plainly(one, positions)  # before the attention is ours: ours could lack what theirs has
                base.set_attn_implementation(NAME)
                sight = Sight(plan, one.tags, None)
                whole = self._call(one, sight, positions)
                if sorted(sight.read) != list(range(len(sight.read))) or not sight.read:
                    raise InputError("strokes: this model's layers keep no keys and values that can be remembered")
                check_layers(base.config.get_text_config(), sight.windows)
                parts = self._in_two(one, plan, positions)
            bound = (1e-3 if whole.dtype == torch.float32 else 0.1) * (float(whole.abs().max()) + 1e-6)
            if not all(float((whole - other).abs().max()) <= bound for other in (parts, plain)):
                raise InputError(
                    "strokes: this model does not read the same with a memory (layers that share keys, or another "
                    "state than keys and values); it can be tuned with strokes=1"
                )
        except (InputError, NotImplementedError, *BROKEN) as error:
            base.set_attn_implementation(before)
            if isinstance(error, InputError):
                raise
            raise InputError(f"strokes: this model can't read with a memory: {first_line(error)}") from error
        return [(key.shape[1], key.shape[3], value.shape[3]) for _, (key, value) in sorted(sight.read.items())]

    def _in_two(self, whole: Pass, plan: ReadingPlan, positions: torch.Tensor) -> torch.Tensor:
        """The logits of `whole`, with its first five tokens read in a pass of their own."""
        head, tail = (_part(whole, here) for here in (slice(0, 5), slice(5, None)))
        sight = Sight(plan, head.tags, None)
        self._call(head, sight, positions[:0])
        memory = Memory(sight.memorise(len(sight.read)), head.tags)
        return self._call(tail, Sight(plan, tail.tags, memory), positions - 5)

    def _plainly(self, whole: Pass, positions: torch.Tensor) -> torch.Tensor:
        """The logits of `whole` as the backbone itself reads it."""
        with logits_at(self, positions):
            logits: torch.Tensor = self.model(input_ids=whole.ids, use_cache=False).logits
            return logits

    @property
    def config(self) -> Any:
        """The backbone's configuration."""
        return self.model.config

    @property
    def generation_config(self) -> Any:
        """The backbone's settings of generation: how an answer begins."""
        return self.model.generation_config

    def get_output_embeddings(self) -> Any:
        """The backbone's output layer."""
        return self.model.get_output_embeddings()

    def start_slots(self, rows: Sequence[Rendered], weights: str = "off") -> None:
        """Give the slots good first values: what the backbone keeps of the beginning of real rows. Random ones would
        have to be unlearned first (in PEFT's own comparison prefixes from text beat random ones by 23 points).

        weights: 'off' for the backbone's alone, '' where nothing can be switched off and nothing is tuned yet.
        """
        ids: list[int] = []
        size = self.plan.slots
        for row in rows:
            ids += row.ids[: row.instruction_end]
            if len(ids) >= size:
                break
        ids = (ids * (size // max(1, len(ids)) + 1))[:size]
        count = torch.arange(size)[None]
        flags = torch.ones(1, size, dtype=torch.bool)
        tags = Tags(count, torch.ones_like(count), torch.zeros_like(flags), flags)
        reading = Pass(torch.tensor([ids]), tags, weights).to(self.slots.device)
        sight = Sight(self.plan, reading.tags, None)
        with torch.no_grad(), self.using(weights):
            self._call(reading, sight, torch.zeros(0, dtype=torch.long, device=self.slots.device))
            for layer, (key, value) in enumerate(sight.memorise(len(self.slots))):
                self.slots[layer, 0].copy_(key[0])
                self.slots[layer, 1].copy_(value[0])

    @contextmanager
    def using(self, weights: str) -> Iterator[None]:
        """The weights of a pass. A switch may take `requires_grad` away from an adapter that is left, whose gradient
        would then be lost without an error: it is given back."""
        if weights == "":
            yield
            return
        flags = [parameter.requires_grad for parameter in self.own]
        try:
            with torch.no_grad() if weights == "off" else nullcontext(), self.switch(self.model, weights):
                yield
        finally:
            for parameter, flag in zip(self.own, flags, strict=True):
                parameter.requires_grad_(flag)

    def forward(
        self, passes: tuple[Pass, ...] | None = None, positions: torch.Tensor | None = None, **inputs: Any
    ) -> Any:
        """Logits [1, N, V] of the last pass at `positions` [N] of its B*T tokens; without `passes`, the backbone's own
        forward (the sequence form needs nothing else)."""
        if passes is None or positions is None:
            return self.model(**inputs)
        memory = self._remember(passes)
        return self._call(passes[-1], Sight(self.plan, passes[-1].tags, memory, keep=False), positions)

    def _remember(self, passes: Sequence[Pass]) -> Memory | None:
        """The memory before the last pass."""
        start = self._slot_memory(passes[-1].ids.shape[0])
        read: list[Memory] = []
        gated = self.plan.mix == "gated" and len(passes) > 2
        for one in passes[:-1]:
            ahead = start if one.whose is None else self._slot_memory(one.ids.shape[0])
            before = [ahead] if ahead else []
            before += [] if gated else read
            sight = Sight(self.plan, one.tags, stack(before) if before else None)
            with self.using(one.weights):
                self._call(one, sight, torch.zeros(0, dtype=torch.long, device=one.ids.device))
            left = Memory(sight.memorise(len(sight.read)), one.tags)
            read.append(left if one.whose is None else left.of(one.whose))
        if gated:
            mixed = self._mix(read)
            deep = bool((passes[-1].tags.stroke[passes[-1].tags.valid] == 1).any())
            read = [read[0], mixed] if deep else [mixed]
        kept = ([start] if start else []) + read
        return stack(kept) if kept else None

    def _slot_memory(self, rows: int) -> Memory | None:
        if not self.plan.slots:
            return None
        size = self.plan.slots
        layers = tuple((slot[0].expand(rows, -1, -1, -1), slot[1].expand(rows, -1, -1, -1)) for slot in self.slots)
        count = torch.arange(size, device=self.slots.device).expand(rows, -1)
        yes = torch.ones_like(count, dtype=torch.bool)
        return Memory(layers, Tags(count, torch.zeros_like(count), ~yes, yes))

    def _mix(self, read: Sequence[Memory]) -> Memory:
        """(1 - g) KV_1 + g KV_2 with a gate for the keys and one for the values of each layer. sink+last keeps the
        first tokens of stroke 1 as they are: attending to both sides takes away what makes them a sink."""
        first, second = read
        keep = torch.ones_like(first.tags.position, dtype=torch.float32)
        if self.plan.memory == "sink+last":
            keep = (first.tags.position >= self.plan.slots + SINK).float()
        layers: list[tuple[torch.Tensor, torch.Tensor]] = []
        for layer, (one, two) in enumerate(zip(first.layers, second.layers, strict=True)):
            mixed = [
                a + (self.gates[layer, part] * keep)[:, None, :, None].to(a.dtype) * (b.to(a.dtype) - a)
                for part, (a, b) in enumerate(zip(one, two, strict=True))
            ]
            layers.append((mixed[0], mixed[1]))
        return Memory(tuple(layers), second.tags)

    def _call(self, one: Pass, sight: Sight | Decoding, positions: torch.Tensor) -> torch.Tensor:
        with logits_at(self, positions):
            logits: torch.Tensor = self.model(
                input_ids=one.ids,
                position_ids=one.tags.position,
                attention_mask=OWN_MASK.to(one.ids.device),
                use_cache=False,
                reading=sight,
            ).logits
        return logits

    def prefill(self, prompts: Sequence[Rendered], pad_id: int, room: int) -> tuple[Decoding, torch.Tensor]:
        """Read prompts by the plan; room: tokens that an answer may have. Gives the memory to go on with and the
        logits [B, V] of the first token of each answer."""
        laid = lay(prompts, self.plan, self.strokes, pad_id=pad_id)
        device = next(self.model.parameters()).device
        passes = tuple(one.to(device) for one in laid.passes)
        memory = self._remember(passes)
        sight = Sight(self.plan, passes[-1].tags, memory)
        logits = self._call(passes[-1], sight, laid.ends.to(device))[0]
        return self._decoding(sight, room), logits

    def _decoding(self, sight: Sight, room: int) -> Decoding:
        """A memory with `room` for the answer: of what was read, only what some answer token can see."""
        last = int(sight.query.stroke.max())
        rows = len(sight.key.valid)
        ends = sight.query.position.masked_fill(~sight.query.valid, -1).amax(dim=1, keepdim=True)
        answers = torch.arange(1, room + 1, device=ends.device) + ends
        future = Tags(
            answers,
            torch.full_like(answers, last),
            torch.ones_like(answers, dtype=torch.bool),
            torch.ones_like(answers, dtype=torch.bool),
        )
        asking = Tags(*(part[:, :1] for part in (future.position, future.stroke, future.answer, future.valid)))
        kept = _visible_columns(self.plan, asking, sight.key)
        memory = sight.memory
        layers: list[tuple[torch.Tensor, torch.Tensor]] = []
        for layer in range(len(sight.read)):
            own = sight.read[layer]
            pair = []
            for part in range(2):
                whole = own[part]
                if memory is not None:
                    whole = torch.cat([memory.layers[layer][part].to(whole.dtype), whole], dim=2)
                whole = whole[:, :, kept]
                empty = whole.new_zeros(rows, whole.shape[1], room, whole.shape[3])
                pair.append(torch.cat([whole, empty], dim=2))
            layers.append((pair[0], pair[1]))
        parts = (sight.key.position, sight.key.stroke, sight.key.answer, sight.key.valid)
        tags = Tags(*(part[:, kept] for part in parts)).join(future)
        return Decoding(self.plan, layers, tags, int(kept.sum()))

    def proceed(self, state: Decoding, tokens: torch.Tensor) -> torch.Tensor:
        """Logits [B, V] after one token more of each answer, tokens [B]."""
        state.advance()
        here = slice(state.length - 1, state.length)
        tags = Tags(
            *(part[:, here] for part in (state.tags.position, state.tags.stroke, state.tags.answer, state.tags.valid))
        )
        device = tags.position.device
        one = Pass(tokens.to(device)[:, None], tags, "")
        return self._call(one, state, torch.arange(len(tokens), device=device))[0]

    def extra(self) -> dict[str, torch.Tensor]:
        """Weights that the method has no place for."""
        named = {"gates": getattr(self, "gates", None), "slots": getattr(self, "slots", None)}
        return {name: value for name, value in named.items() if value is not None}

    def save_extra(self, folder: Path) -> None:
        """Write gates and slots into `folder`, where there are any."""
        from safetensors.torch import save_file

        if weights := self.extra():
            save_file({name: value.detach().cpu().contiguous() for name, value in weights.items()}, folder / EXTRA)

    def load_extra(self, folder: Path) -> None:
        """The reverse. Raises InputError when one is missing, left over, of another shape or not finite."""
        from safetensors.torch import load_file

        wanted, file = self.extra(), folder / EXTRA
        if not wanted:
            return
        if not file.is_file():
            raise InputError(f"{file}: missing, the reading plan needs it ({', '.join(wanted)})")
        try:
            found = load_file(file)
        except BROKEN as error:
            raise InputError(f"{file}: {first_line(error)}") from error
        for name in sorted(found.keys() ^ wanted.keys()):
            raise InputError(f"{file}: {name}: {'not wanted' if name in found else 'missing'} by the reading plan")
        for name, value in found.items():
            if value.shape != wanted[name].shape or not value.isfinite().all():
                raise InputError(f"{file}: {name}: does not fit this backbone, or is not finite")
        for name, value in found.items():
            wanted[name].data.copy_(value)


def _base(model: Any) -> Any:
    """The `transformers` model inside an adapter's wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def check_layers(config: Any, windows: set[int | None]) -> None:
    """Raises InputError where a layer sees less than attention is told of: a short trial would not show it.

    windows: those that attention was told of; None for a layer that sees everything.
    """
    kinds = set(getattr(config, "layer_types", None) or ())
    if others := sorted(kinds - {"full_attention", "sliding_attention"}):
        raise InputError(
            f"strokes: this model has layers of another kind ({', '.join(others)}); it can be tuned with strokes=1"
        )
    windowed = "sliding_attention" in kinds if kinds else getattr(config, "sliding_window", None) is not None
    if windowed and windows <= {None}:
        raise InputError("strokes: this model hides its window from its attention; it can be tuned with strokes=1")


def _part(whole: Pass, here: slice) -> Pass:
    tags = whole.tags
    cut = Tags(*(part[:, here] for part in (tags.position, tags.stroke, tags.answer, tags.valid)))
    return replace(whole, ids=whole.ids[:, here], tags=cut)


def _visible_columns(plan: ReadingPlan, asking: Tags, key: Tags) -> torch.Tensor:
    """Columns of the memory that an answer of any row sees, [K] bool."""
    from .attention import visible

    return visible(plan, asking, key, None).any(dim=1).any(dim=0)


__all__ = ["EXTRA", "Layers", "Reading", "check_layers", "logits_at", "no_switch"]
