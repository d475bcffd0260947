"""Gradients through a memory, against explicit graphs of several models; what is trained, saved and recomputed.

N' supervised positions, V vocabulary, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from reading_cases import (
    LORA,
    Slow,
    adapters,
    close,
    plainly,
    plans,
    prompt_of,
    read_rows,
    reading,
    row,
    separate_models,
)
from safetensors.torch import load_file, save_file
from torch.nn import functional

import tiny
from instructrec.errors import InputError
from instructrec.models import methods
from instructrec.models.reading import Reading, ReadingPlan, lay
from instructrec.prompts.template import Rendered

ROWS = [row(7, 2, 4), row(21, 1, 3), row(3, 2, 6)]
LAST = {"llama": "layers.1.", "gpt2": "h.1.", "qwen": "layers.1.", "gemma": "layers.3."}
FEW: list[dict[str, Any]] = [
    {"strokes": (3,)},
    {"strokes": (2,), "prior": "frozen", "slots": 3},
    {"strokes": (2,), "stroke_adapters": "separate", "memory": "sink+last"},
    {"strokes": (3,), "stroke_adapters": "separate", "prior": "frozen"},
    {"strokes": (2,), "direction": "bidirectional", "slots": 3},
    {"strokes": (2,), "mix": "gated", "direction": "bidirectional", "memory": "sink+last"},
    {"strokes": (2,), "mix": "gated", "prior": "frozen"},
    {"strokes": (2,), "mix": "gated", "stroke_adapters": "separate", "slots": 3},
]
CASES = [(kind, ReadingPlan(**case)) for kind in tiny.KINDS[1:] for case in FEW]
CASES += [("llama", plan) for plan in plans()]


def named(value: object) -> str:
    return value.describe().replace(" ", "_") if isinstance(value, ReadingPlan) else str(value)


def targets_of(rows: Sequence[Rendered]) -> torch.Tensor:
    return torch.tensor([token for one in rows for token in one.ids[one.prompt_end :]])


def loss_of(made: Reading, rows: Sequence[Rendered], *, deep: bool = False) -> torch.Tensor:
    logits, laid = read_rows(made, rows, deep=deep)
    return functional.cross_entropy(logits, laid.targets)


def gradients(parameters: dict[str, Any]) -> dict[str, torch.Tensor | None]:
    return {name: None if one.grad is None else one.grad.clone() for name, one in parameters.items()}


def same(got: dict[str, Any], wanted: dict[str, Any], what: object) -> int:
    """All gradients equal, None where None; returns how many there were."""
    assert got.keys() == wanted.keys(), what
    scale = max(float(one.abs().max()) for one in wanted.values() if one is not None)
    for name, one in got.items():
        assert (one is None) == (wanted[name] is None), f"{what}: {name}"
        if one is not None:
            error = float((one - wanted[name]).abs().max())
            assert error <= 1e-5 * max(1.0, scale), f"{what}: {name}: off by {error:.1e} at a scale of {scale:.1f}"
    return sum(one is not None for one in got.values())


# -- explicit graphs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "plan"), CASES, ids=named)
def test_gradients_equal_those_of_an_explicit_graph(kind: str, plan: ReadingPlan) -> None:
    """Oracles 1, 3 and 7: a model of its own for every set of weights, one row at a time, no gradient through 'off'."""
    made = reading(kind, plan)
    loss_of(made, ROWS).backward()
    models = separate_models(kind, made)
    slow = Slow(kind, plan, models, made)
    slow.gates, slow.slots = (
        None if one is None else one.detach().clone().requires_grad_() for one in (slow.gates, slow.slots)
    )
    logits = torch.cat([slow.logits(one, plan.most) for one in ROWS])
    functional.cross_entropy(logits, targets_of(ROWS)).backward()
    for name, source in {"": "default", **{name: name for name in plan.adapters}}.items():
        got = gradients(adapters(made.model, source))
        assert same(got, gradients(adapters(models[name], "default")), name or "tuned") > 3
    for name, one in made.extra().items():
        other = {"gates": slow.gates, "slots": slow.slots}[name]
        assert other is not None and float(other.grad.abs().max()) > 0
        same({name: one.grad}, {name: other.grad}, name)
    assert all(one.grad is None for one in models["off"].parameters())


def test_a_frozen_reading_leaves_the_backbones_own_memory(kind: str) -> None:
    """Oracle 3, said directly: KV_1 is that of the untouched backbone, and hangs on no graph."""
    made = reading(kind, ReadingPlan(strokes=(2,), prior="frozen"))
    one = ROWS[1]
    laid = lay([one], made.plan, 2, pad_id=0)
    memory = made._remember(laid.passes)
    assert memory is not None
    out = tiny.model(kind)(input_ids=torch.tensor([one.ids[:21]]), use_cache=True)
    for layer, (key, value) in enumerate(memory.layers):
        known = out.past_key_values.layers[layer]
        size = known.keys.shape[2]  # a layer with a window has forgotten the rest
        close(key[:, :, -size:], known.keys, layer)
        close(value[:, :, -size:], known.values, layer)
        assert not key.requires_grad and not value.requires_grad
    assert len(memory.layers) == len(out.past_key_values.layers)


def test_the_gradient_of_a_frozen_reading_is_another_than_that_of_a_tuned_one() -> None:
    """So that the comparison with the explicit graph can tell them apart."""
    found = []
    for prior in ("tuned", "frozen"):
        made = reading("llama", ReadingPlan(strokes=(2,), prior=prior, slots=3))
        loss_of(made, ROWS).backward()
        found.append(torch.cat([one.grad.flatten() for one in (made.slots, *adapters(made.model, "default").values())]))
    assert float((found[0] - found[1]).abs().max()) > 1e-2


@pytest.mark.parametrize(
    "case", [{"strokes": (2,)}, {"strokes": (2,), "direction": "bidirectional", "slots": 2}], ids=str
)
def test_full_tuning_reads_twice_with_the_gradients_of_its_definition(kind: str, case: dict[str, Any]) -> None:
    plan = ReadingPlan(**case)
    full = methods.get("full")
    made = Reading(full.attach(tiny.model(kind), {}, 0), plan, full.using).eval()
    model = plainly(full.attach(tiny.model(kind), {}, 0))
    loss_of(made, ROWS).backward()
    logits = torch.cat([Slow(kind, plan, {"": model}, made).logits(one, 2) for one in ROWS])
    functional.cross_entropy(logits, targets_of(ROWS)).backward()
    wanted = gradients(dict(model.named_parameters()))
    assert same(gradients(dict(made.model.named_parameters())), wanted, "full") == len(wanted)


def test_losses_are_averaged_over_the_strokes_when_deep() -> None:
    plan = ReadingPlan(strokes=(2,), prior="frozen", deep=True)
    made = reading("qwen", plan)
    loss_of(made, ROWS, deep=True).backward()
    models = separate_models("qwen", made)
    slow = Slow("qwen", plan, models)
    losses = [
        functional.cross_entropy(torch.cat([slow.logits(one, 2, after) for one in ROWS]), targets_of(ROWS))
        for after in (1, 2)
    ]
    torch.stack(losses).mean().backward()
    same(gradients(adapters(made.model, "default")), gradients(adapters(models[""], "default")), "deep")


def test_a_call_without_passes_has_the_backbones_gradients(kind: str) -> None:
    """The sequence form: attention stands in for the library's function, with padding on either side."""
    made = reading(kind, ReadingPlan(strokes=(2,)))
    own = separate_models(kind, made)[""]
    ids = torch.arange(40, 100).reshape(2, 30)
    for left, right in ((0, 0), (5, 0), (0, 7)):
        mask = torch.ones_like(ids)
        mask[1, :left], mask[1, 30 - right :] = 0, 0
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        found = []
        for model in (made, own):
            model.zero_grad()
            logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
            (logits * mask[:, :, None]).square().mean().backward()
            inner = model.model if model is made else model
            found.append(gradients(adapters(inner, "default")))
        same(found[0], found[1], (left, right))


# -- training -------------------------------------------------------------------------------------------------------


def started(kind: str, plan: ReadingPlan, *, dropout: float = 0.0) -> Reading:
    """As a run starts: adapters that change nothing, gates at zero, slots from rows."""
    lora = methods.get("lora")
    model = tiny.model(kind)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    options = {**LORA, "dropout": dropout}
    model = lora.attach(model, options, 0)
    for place, name in enumerate(plan.adapters):
        lora.add(model, name, options, place + 1)
    made = Reading(model, plan, lora.using)
    if plan.slots:
        made.start_slots(ROWS)
    return made


@pytest.mark.parametrize("case", FEW, ids=str)
def test_every_own_parameter_learns_after_an_evaluation(kind: str, case: dict[str, Any]) -> None:
    """Oracle 7. The last layer of an earlier stroke's own adapter is the exception that the definition makes: only its
    keys and values are ever read, so whatever comes after them has no gradient at all."""
    made = started(kind, ReadingPlan(**case))
    own = methods.trained_parameters(made)
    with torch.no_grad():
        made.eval()
        before = read_rows(made, ROWS)[0]
        state, _ = made.prefill([prompt_of(one) for one in ROWS], 0, room=1)
        made.proceed(state, torch.tensor([5, 6, 7]))
    assert methods.trained_parameters(made).keys() == own.keys()
    if made.plan.slots:
        assert float(made.slots.abs().min(dim=-1).values.max()) > 0
    unread = {
        name for name in own
        if LAST[kind] in name and ".stroke_" in name and not any(part in name for part in ("k_proj", "v_proj", "c_attn"))
    }  # fmt: skip
    assert bool(unread) == bool(made.plan.adapters)
    optimizer = torch.optim.AdamW(own.values(), lr=1e-2)
    made.train()
    seen: set[str] = set()
    for step in range(3):
        optimizer.zero_grad()
        loss_of(made, ROWS, deep=made.plan.deep).backward()
        missing = {name for name, one in own.items() if one.grad is None}
        assert missing == unread, step
        seen |= {name for name, one in own.items() if one.grad is not None and float(one.grad.abs().max()) > 0}
        optimizer.step()
    assert seen == own.keys() - unread
    with torch.no_grad():
        made.eval()
        assert float((read_rows(made, ROWS)[0] - before).abs().max()) > 1e-3


def test_switching_gives_back_what_it_took(kind: str) -> None:
    made = started(kind, ReadingPlan(strokes=(3,), stroke_adapters="separate"))
    flags = {name: one.requires_grad for name, one in made.named_parameters()}
    assert {name.split("lora_")[1].split(".")[1] for name, flag in flags.items() if flag} == {
        "default",
        "stroke_1",
        "stroke_2",
    }
    for weights in ("stroke_1", "off", "stroke_2", ""):
        with made.using(weights):
            assert torch.is_grad_enabled() == (weights != "off")
        assert {name: one.requires_grad for name, one in made.named_parameters()} == flags, weights
        assert made.model.active_adapter == "default"
        with pytest.raises(KeyError), made.using(weights):
            raise KeyError
        assert {name: one.requires_grad for name, one in made.named_parameters()} == flags, weights
        assert made.model.active_adapter == "default" and torch.is_grad_enabled()


def test_mixed_precision_reads_and_learns() -> None:
    """bf16 under autocast, also where keys of a frozen reading and slots in fp32 meet those of another pass."""
    for case in FEW:
        made = reading("qwen", ReadingPlan(**case))
        exact = loss_of(made, ROWS)
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(made, ROWS)
        loss.backward()
        assert abs(float(loss) - float(exact)) < 0.05 * float(exact), case
        slopes = [one.grad for one in methods.trained_parameters(made).values()]
        assert all(slope.isfinite().all() for slope in slopes if slope is not None)
        # Of an earlier stroke's own adapter the last layer has none; elsewhere one without would have been lost.
        assert made.plan.stroke_adapters == "separate" or all(slope is not None for slope in slopes), case


CHECKPOINTED: list[dict[str, Any]] = [
    {"strokes": (2,)},
    {"strokes": (3,), "deep": True},
    {"strokes": (2,), "prior": "frozen"},
    {"strokes": (2,), "prior": "frozen", "slots": 3, "deep": True},
    {"strokes": (2,), "direction": "bidirectional", "memory": "sink+last"},
    {"strokes": (2,), "slots": 3},
    {"strokes": (2,), "mix": "gated", "direction": "bidirectional"},
    {"strokes": (2,), "mix": "gated", "prior": "frozen", "deep": True},
]


@pytest.mark.parametrize("case", CHECKPOINTED, ids=str)
def test_recomputed_layers_see_the_same_memory_again(kind: str, case: dict[str, Any]) -> None:
    """Gradient checkpointing: loss and gradients as without, dropout and all, where nothing is switched but off."""
    found = []
    for checkpointing in (False, True):
        made = started(kind, ReadingPlan(**case), dropout=0.3)
        draw = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in methods.trained_parameters(made).values():
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=draw))
        calls = []
        for module in made.model.modules():
            if module.__class__.__name__.endswith("DecoderLayer") or module.__class__.__name__ == "GPT2Block":
                inner = module.self_attn if hasattr(module, "self_attn") else module.attn
                inner.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        made.train()
        if checkpointing:
            made.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        torch.manual_seed(0)
        loss = loss_of(made, ROWS, deep=made.plan.deep)
        forward = len(calls)
        loss.backward()
        found.append((loss.detach(), gradients(dict(methods.trained_parameters(made))), len(calls) > forward))
    assert [one[2] for one in found] == [False, True], "layers are recomputed only then"
    assert torch.equal(found[0][0], found[1][0])
    assert same(found[1][1], found[0][1], case) > 3


# -- what is saved --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", FEW, ids=str)
def test_what_is_trained_is_saved_and_comes_back(kind: str, case: dict[str, Any], tmp_path: Path) -> None:
    """Oracle 8."""
    plan, lora = ReadingPlan(**case), methods.get("lora")
    made = reading(kind, plan)
    lora.save(made.model, tmp_path, "base")
    made.save_extra(tmp_path)
    files = sorted(str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*.safetensors"))
    extra = ["extra.safetensors"] if made.extra() else []
    folders = [f"{name}/adapter_model.safetensors" for name in plan.adapters]
    assert files == sorted(["adapter_model.safetensors", *extra, *folders])
    saved = set()
    for file in files:
        name = "default" if "/" not in file else file.split("/")[0]
        for key in load_file(tmp_path / file):
            saved.add(key if file in extra else "model." + key.replace(".weight", f".{name}.weight"))
    assert saved == methods.trained_parameters(made).keys()
    with torch.no_grad():
        wanted = read_rows(made, ROWS)[0]
        torch.manual_seed(99)
        model = lora.load(tiny.model(kind), tmp_path)
        for name in plan.adapters:
            lora.load_more(model, tmp_path, name)
        again = Reading(model, plan, lora.using).eval()
        if extra:
            assert float((read_rows(again, ROWS)[0] - wanted).abs().max()) > 1e-3
        again.load_extra(tmp_path)
        assert torch.equal(read_rows(again, ROWS)[0], wanted)


def test_gates_and_slots_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    plan = ReadingPlan(strokes=(2,), mix="gated", direction="bidirectional", slots=2)
    made = Reading(tiny.model("llama"), plan)
    file = tmp_path / "extra.safetensors"

    def refused() -> str:
        with pytest.raises(InputError) as caught:
            made.load_extra(tmp_path)
        return str(caught.value)

    assert refused() == f"{file}: missing, the reading plan needs it (gates, slots)"
    good = {"gates": torch.ones(2, 2), "slots": torch.ones(2, 2, 2, 2, 8)}
    save_file({"gates": good["gates"]}, file)
    assert refused() == f"{file}: slots: missing by the reading plan"
    save_file({**good, "more": torch.ones(1)}, file)
    assert refused() == f"{file}: more: not wanted by the reading plan"
    save_file({**good, "slots": torch.ones(2, 2, 2, 3, 8)}, file)
    assert refused() == f"{file}: slots: does not fit this backbone, or is not finite"
    save_file({**good, "gates": torch.tensor([[0.0, float("nan")], [0.0, 0.0]])}, file)
    assert refused() == f"{file}: gates: does not fit this backbone, or is not finite"
    save_file({**good, "slots": good["slots"] * float("inf")}, file)
    assert refused() == f"{file}: slots: does not fit this backbone, or is not finite"
    file.write_bytes(b"\x09\x00\x00\x00\x00\x00\x00\x00not json!")
    assert refused().startswith(f"{file}: ")
    assert not made.gates.any() and not made.slots.any()
    save_file(good, file)
    made.load_extra(tmp_path)
    assert bool((made.gates == 1).all()) and bool((made.slots == 1).all())
    Reading(tiny.model("llama"), ReadingPlan(strokes=(2,))).load_extra(tmp_path / "nowhere")


def test_slots_start_as_what_the_backbone_keeps_of_real_rows(kind: str) -> None:
    plan = ReadingPlan(strokes=(2,), slots=9)
    made = reading(kind, plan)
    made.start_slots([ROWS[0], ROWS[2]])
    ids = (ROWS[0].ids[:7] + ROWS[2].ids[:3])[:9]
    layers = tiny.model(kind)(input_ids=torch.tensor([ids]), use_cache=True).past_key_values.layers
    for layer, known in enumerate(layers):
        close(made.slots[layer, 0][None], known.keys, layer)
        close(made.slots[layer, 1][None], known.values, layer)
    made.start_slots([ROWS[2]])  # too few tokens: they are taken again
    again = tiny.model(kind)(input_ids=torch.tensor([ROWS[2].ids[:3] * 3]), use_cache=True).past_key_values.layers
    close(made.slots[0, 0][None], again[0].keys)
    assert made.slots.requires_grad and made.slots.grad is None
