"""What every tuning method promises, on four decoders, two encoder-decoders and two masked encoders. A new method is covered by being
registered; conftest.py leaves out the kinds of backbone that it does not tune."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import learning
import tiny
from instructrec.errors import InputError
from instructrec.inference.engine import Sampling, generate
from instructrec.models import methods
from instructrec.models.kinds import kind_of
from instructrec.models.kinds.encoder_decoder import starts
from instructrec.models.methods import METHODS, Method, trained_parameters
from instructrec.models.reading import install
from instructrec.prompts.template import Rendered

IDS = torch.arange(6, 36).reshape(1, 30)  # [B, T]; longer than the tiny Gemma's window of 16
Tuned = tuple[Method, Any, Any]


@pytest.fixture(params=(*tiny.KINDS, *tiny.PAIRS, "bert", "minilm"))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# Options that make another method of one: the contract holds for them as well.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora+dora": ("lora", {"dora": True}),
    "lora+rslora": ("lora", {"rslora": True}),
    "adapter+pfeiffer": ("adapter", {"placement": "pfeiffer", "activation": "relu"}),
}
CASES = {name: (name, {}) for name in sorted(METHODS)} | VARIANTS


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# Saved tensors that are made from trained ones, for programs that know nothing of those.
DERIVED = {"p_tuning": ["prompt_embeddings"]}
# Methods whose start is drawn by the seed.
DRAWN = {"adapter", "lora", "p_tuning", "prefix_tuning", "prompt_tuning"}


def backbone(kind: str) -> Any:
    """A tiny model that attends as it does in every run."""
    return attending(tiny.model(kind))


def attending(model: Any) -> Any:
    install(model.get_base_model() if hasattr(model, "get_base_model") else model)
    return model


@pytest.fixture
def method(case: str) -> Method:
    return METHODS[CASES[case][0]]


@pytest.fixture
def options(case: str, method: Method) -> dict[str, Any]:
    return learning.options_of(method) | CASES[case][1]


@pytest.fixture
def attached(method: Method, options: dict[str, Any], kind: str) -> Any:
    return method.attach(backbone(kind), options, 0).eval()


@pytest.fixture
def tuned(method: Method, attached: Any, kind: str) -> Any:
    learning.take_steps(attached, 3, len(tiny.tokenizer(kind)))
    return attached


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor = IDS, mask: torch.Tensor | None = None, **more: Any) -> torch.Tensor:
    if kind_of(model).chooses:  # an encoder has no positions to be told either, and perhaps no logits
        out = model(input_ids=ids, attention_mask=mask)
        return out.logits if hasattr(out, "logits") else out.last_hidden_state
    if not kind_of(model).causal:  # an encoder-decoder answers what it is asked, and has no positions to be told
        more = {"decoder_input_ids": ids}
    return model(input_ids=ids, attention_mask=mask, **more).logits


def largest_difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


def test_there_are_methods_to_test() -> None:
    assert {"full", "lora", "ia3", "adapter"} <= METHODS.keys()
    assert {name for name, _ in VARIANTS.values()} <= METHODS.keys()


def test_output_is_unchanged_at_the_start(method: Method, attached: Any, kind: str) -> None:
    base = logits(backbone(kind))
    difference = largest_difference(logits(attached), base)
    assert difference == 0.0 if method.identity_at_start else difference > 1e-6


def test_every_own_parameter_moves_and_no_other(attached: Any, kind: str) -> None:
    own, before = set(trained_parameters(attached)), learning.weights_of(attached)
    assert own
    learning.take_steps(attached, 3, len(tiny.tokenizer(kind)))
    after = learning.weights_of(attached)
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    assert moved == own
    assert set(trained_parameters(attached)) == own
    assert all(weight.isfinite().all() for weight in after.values())


def test_switched_off_is_the_base_model(method: Method, tuned: Any, kind: str) -> None:
    base, with_method = logits(backbone(kind)), logits(tuned)
    assert largest_difference(with_method, base) > 1e-3
    if not method.switchable:
        text = f"method: '{method.name}' can't be switched off: it changes the model's own weights"
        with pytest.raises(InputError) as caught, method.disabled(tuned):
            pass
        assert str(caught.value) == text
        return
    with method.disabled(tuned) as plain:
        assert torch.equal(logits(plain), base)
    assert torch.equal(logits(tuned), with_method)


def test_save_reseed_load(method: Method, tuned: Any, kind: str, tmp_path: Path) -> None:
    method.save(tuned, tmp_path, "tiny")
    want = logits(tuned)
    trained = {name: weight.detach().clone() for name, weight in trained_parameters(tuned).items()}
    torch.manual_seed(4321)
    answering = attending(method.load(backbone(kind), tmp_path)).eval()
    assert torch.equal(logits(answering), want)
    again = method.load(backbone(kind), tmp_path, trainable=True)
    assert learning.same(dict(trained_parameters(again)), trained)
    learning.take_steps(again, 1, len(tiny.tokenizer(kind)))
    assert not torch.equal(logits(again), want)


def test_exactly_the_trained_weights_are_saved(method: Method, tuned: Any, tmp_path: Path) -> None:
    method.save(tuned, tmp_path, "tiny")
    others = [*DERIVED.get(method.name, ()), *(name for name, _ in tuned.named_buffers())]  # Marian's bias of logits
    saved = sorted(tensor.numpy().tobytes() for tensor in learning.tensors_in(tmp_path, others))
    trained = sorted(weight.detach().numpy().tobytes() for weight in trained_parameters(tuned).values())
    assert saved == trained


def test_merged_equals_unmerged(method: Method, tuned: Any) -> None:
    if not method.mergeable:
        with pytest.raises(InputError) as caught:
            method.merge(tuned)
        assert str(caught.value) == f"method: '{method.name}' has nothing to merge"
        return
    want = logits(tuned)
    merged = method.merge(tuned)
    assert type(merged).__module__.startswith("transformers.")
    assert largest_difference(logits(merged), want) <= 1e-5 * float(want.abs().max())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_merging_refuses_what_is_not_finite(method: Method, attached: Any, bad: float) -> None:
    if not method.mergeable:
        return
    with torch.no_grad():
        for name, weight in trained_parameters(attached).items():
            weight.fill_(0.5 if "lora_A" in name else bad)
    with pytest.raises(InputError, match="^the adapter can't be merged: "):
        method.merge(attached)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_neighbour_never_changes_a_row(tuned: Any, side: str) -> None:
    side = side if kind_of(tuned).causal else "right"  # as its rows are filled up
    short = IDS[:, 5:18]
    width, length = IDS.shape[1], short.shape[1]
    place = slice(width - length, width) if side == "left" else slice(0, length)
    ids, mask = torch.full((2, width), 3), torch.zeros((2, width), dtype=torch.long)
    ids[0], mask[0] = IDS[0], 1
    ids[1, place], mask[1, place] = short[0], 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    together = logits(tuned, ids, mask, position_ids=positions)
    assert largest_difference(together[:1], logits(tuned)) <= 1e-5
    assert largest_difference(together[1:, place], logits(tuned, short)) <= 1e-5


@torch.no_grad()
def test_step_by_step_equals_one_pass(tuned: Any) -> None:
    want, cache, steps = logits(tuned), None, []
    for place in range(IDS.shape[1]):
        part = IDS[:, place : place + 1]
        fed = {"input_ids": part} if kind_of(tuned).causal else {"input_ids": IDS, "decoder_input_ids": part}
        out = tuned(**fed, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        steps.append(out.logits)
    assert largest_difference(torch.cat(steps, 1), want) <= 1e-5


def test_a_batch_is_answered_as_each_row_is_without_a_cache(tuned: Any, kind: str) -> None:
    if kind_of(tuned).chooses:  # writes no text; batches of label rows are held in test_encoders.py
        return
    rows = [
        Rendered(ids, [False] * len(ids), len(ids), len(ids))
        for ids in (IDS[0, :9].tolist(), IDS[0, 4:17].tolist(), IDS[0, 7:10].tolist())
    ]
    first = starts(tuned) if not kind_of(tuned).causal else []
    found = generate(tuned, rows, stop_ids=[-1], pad_id=0, sampling=Sampling(6))
    for row, answer in zip(rows, found, strict=True):
        ids, prompt = [*first], torch.tensor([row.ids])
        for _ in range(6):
            fed = torch.tensor([ids], dtype=torch.long)
            with torch.no_grad():
                if first:
                    scores = tuned(input_ids=prompt, decoder_input_ids=fed, use_cache=False).logits[0, -1]
                else:
                    scores = logits(tuned, torch.cat([prompt, fed], 1))[0, -1]
            if first and tuned.generation_config.pad_token_id is not None:
                scores[tuned.generation_config.pad_token_id] = -torch.inf  # never generated
            ids.append(int(scores.argmax()))
        assert answer.ids == ids[len(first) :]


def test_the_seed_decides_the_start(method: Method, options: dict[str, Any]) -> None:
    one, same, other = (method.attach(backbone("llama"), options, seed) for seed in (1, 1, 2))
    assert learning.same(learning.weights_of(one), learning.weights_of(same))
    drawn = not learning.same(learning.weights_of(one), learning.weights_of(other))
    assert drawn == (method.name in DRAWN)


def test_recomputed_activations_give_the_same_gradients(method: Method, options: dict[str, Any], kind: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = method.attach(backbone(kind), options, 0)
        learning.take_steps(model, 1, len(tiny.tokenizer(kind)))  # away from zeros that hide gradients
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.enable_input_require_grads()
        if kind_of(model).chooses:
            out = model.train()(input_ids=IDS)
            states = out.logits if hasattr(out, "logits") else out.last_hidden_state
            states.cumsum(-1).square().mean().backward()  # squares alone are constant behind a norm
        else:
            model.train()(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
        gradients.append({name: weight.grad for name, weight in trained_parameters(model).items()})
    plain, recomputed = gradients
    for name, gradient in plain.items():
        assert gradient is not None and recomputed[name] is not None, name
        assert largest_difference(gradient, recomputed[name]) <= 1e-5 * float(gradient.abs().max()), name
    assert max(float(gradient.abs().max()) for gradient in plain.values()) > 1e-4


# -- the registry ---------------------------------------------------------------------------------------------------


def test_a_clash_of_names_is_refused() -> None:
    before = dict(METHODS)
    with pytest.raises(ValueError, match="^tuning method 'lora' is registered already$"):
        methods.register(METHODS["lora"])
    assert before == METHODS


def test_an_unknown_method_offers_the_nearest() -> None:
    with pytest.raises(InputError) as caught:
        methods.get("lorra")
    assert str(caught.value) == "method: unknown tuning method 'lorra', did you mean 'lora'?"


class Shift(Method):
    """A number added to the last hidden state in each width: an own parameter beside the model's."""

    name = "shift"
    reference = "this test"
    learning_rate = 1e-2
    kinds = methods.EVERY_KIND

    def attach(self, model: Any, options: Mapping[str, Any], seed: int) -> Any:
        model.requires_grad_(False)
        model.shift = torch.nn.Parameter(torch.zeros(model.config.hidden_size))
        head = model.get_output_embeddings()
        if head is None:
            model.encoder.layer[-1].output.register_forward_hook(lambda _, __, out: out + model.shift)
        else:
            head.register_forward_pre_hook(lambda _, inputs: (inputs[0] + model.shift, *inputs[1:]))
        return model

    def save(self, model: Any, folder: Path, base: str) -> None:
        save_file({"shift": model.shift.detach()}, folder / "extra.safetensors")

    def load(self, model: Any, folder: Path, *, trainable: bool = False) -> Any:
        self.attach(model, {}, 0).shift.data = load_file(folder / "extra.safetensors")["shift"]
        return model

    @contextmanager
    def disabled(self, model: Any) -> Iterator[Any]:
        kept = model.shift.data
        model.shift.data = torch.zeros_like(kept)
        yield model
        model.shift.data = kept


@pytest.fixture
def shift() -> Iterator[Method]:
    yield methods.register(Shift())
    del METHODS["shift"]


CONTRACT: list[Callable[..., None]] = [
    test_output_is_unchanged_at_the_start,
    test_every_own_parameter_moves_and_no_other,
    test_switched_off_is_the_base_model,
    test_save_reseed_load,
    test_exactly_the_trained_weights_are_saved,
    test_merged_equals_unmerged,
    test_step_by_step_equals_one_pass,
]


@pytest.mark.parametrize("promise", CONTRACT, ids=lambda promise: promise.__name__)
def test_a_method_of_one_class_and_one_line_keeps_the_contract(
    promise: Callable[..., None], shift: Method, kind: str, tmp_path: Path
) -> None:
    assert methods.get("shift") is shift
    if kind in tiny.ENCODERS and promise is test_step_by_step_equals_one_pass:
        return  # nothing of an encoder's answer is written step by step
    model = shift.attach(backbone(kind), {}, 0).eval()
    if promise not in (test_output_is_unchanged_at_the_start, test_every_own_parameter_moves_and_no_other):
        learning.take_steps(model, 2, len(tiny.tokenizer(kind)))
    known = {"method": shift, "attached": model, "tuned": model, "kind": kind, "tmp_path": tmp_path}
    promise(**{name: known[name] for name in inspect.signature(promise).parameters})


def test_the_method_of_a_test_is_gone_again() -> None:
    assert "shift" not in METHODS


# -- LoRA -----------------------------------------------------------------------------------------------------------


def test_peft_loads_what_lora_saves(kind: str, tmp_path: Path) -> None:
    from peft import PeftModel

    lora = METHODS["lora"]
    model = lora.attach(tiny.model(kind), learning.options_of(lora), 0)
    learning.take_steps(model, 3, len(tiny.tokenizer(kind)))
    lora.save(model, tmp_path, "someone/base")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    loaded = PeftModel.from_pretrained(tiny.model(kind), tmp_path).eval()
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.peft_config["default"].base_model_name_or_path == "someone/base"


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("q_proj,v_prj", "no linear layer is called 'v_prj', did you mean 'v_proj'?"),
        ("embed_tokens", "no linear layer is called 'embed_tokens', known: down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"),
        ("lm_head", "no linear layer is called 'lm_head', known: down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"),
        (" , ", "empty (want all-linear or names of linear layers)"),
    ],
)  # fmt: skip
def test_a_wrong_target_leaves_the_model_unchanged(target: str, reason: str) -> None:
    model = tiny.model("llama")
    modules = [name for name, _ in model.named_modules()]
    with pytest.raises(InputError) as caught:
        METHODS["lora"].attach(model, learning.options_of(METHODS["lora"]) | {"target": target}, 0)
    assert str(caught.value) == f"lora.target: {reason}"
    assert [name for name, _ in model.named_modules()] == modules
    assert len(trained_parameters(model)) == len(list(model.parameters()))


def test_targets_by_name() -> None:
    options = learning.options_of(METHODS["lora"]) | {"target": "q_proj, v_proj", "rank": 3}
    model = METHODS["lora"].attach(tiny.model("llama"), options, 0)
    own = trained_parameters(model)
    assert {name.split(".")[-4] for name in own} == {"q_proj", "v_proj"}
    assert {min(weight.shape) for weight in own.values()} == {3}


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_lora_takes_all_linear_layers_but_the_head(kind: str) -> None:
    model = METHODS["lora"].attach(tiny.model(kind), learning.options_of(METHODS["lora"]), 0)
    layers = {name.split(".")[-4] for name in trained_parameters(model)}
    assert (
        layers
        == {
            "llama": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
            "gpt2": {"c_attn", "c_proj", "c_fc"},
        }[kind]
    )


def saved_lora(folder: Path) -> Path:
    lora = METHODS["lora"]
    lora.save(lora.attach(tiny.model("llama"), learning.options_of(lora), 0), folder, "tiny")
    return folder / "adapter_model.safetensors"


def refused(folder: Path, kind: str = "llama") -> str:
    with pytest.raises(InputError) as caught:
        METHODS["lora"].load(tiny.model(kind), folder)
    return str(caught.value)


def test_adapters_that_do_not_fit(tmp_path: Path) -> None:
    file = saved_lora(tmp_path)
    assert refused(tmp_path, "gpt2").startswith(f"{tmp_path}: the adapter does not fit this backbone: ")
    weights = load_file(file)
    name = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"
    save_file({key: value for key, value in weights.items() if key != name}, file, {"format": "pt"})
    assert refused(tmp_path) == f"{tmp_path}: the adapter does not fit this backbone: it also wants {name}"
    other = name.replace("layers.1", "layers.7")
    save_file(weights | {other: weights[name].clone()}, file, {"format": "pt"})
    assert refused(tmp_path) == f"{tmp_path}: the adapter does not fit this backbone: it does not know {other}"
    save_file(weights | {name: weights[name][:-1].contiguous()}, file, {"format": "pt"})
    assert refused(tmp_path).startswith(f"{tmp_path}: the adapter does not fit this backbone: ")
    file.write_bytes(b"\xff" * 64)
    assert refused(tmp_path).startswith(f"{file}: cut short, or not safetensors ")


def test_an_adapter_with_one_value_that_is_not_a_number(tmp_path: Path) -> None:
    file = saved_lora(tmp_path)
    weights = load_file(file)
    name = "base_model.model.model.layers.0.self_attn.v_proj.lora_A.weight"
    weights[name][0, 0] = float("nan")
    save_file(weights, file, {"format": "pt"})
    assert refused(tmp_path) == f"{file}: {name} holds a value that is not finite"


def test_a_damaged_full_model_is_refused(tmp_path: Path) -> None:
    full = METHODS["full"]
    full.save(tiny.model("llama"), tmp_path, "tiny")
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    del weights["model.norm.weight"]
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(InputError) as caught:
        full.load(tiny.model("llama"), tmp_path)
    assert str(caught.value) == f"{tmp_path}: the weights lack model.norm.weight"
    file.write_bytes(b"\xff" * 64)
    with pytest.raises(InputError, match="model.safetensors: cut short, or not safetensors "):
        full.load(tiny.model("llama"), tmp_path)


def test_full_tuning_trains_fp32_weights_of_a_bf16_model() -> None:
    model = METHODS["full"].attach(tiny.model("llama", dtype=torch.bfloat16), {}, 0)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
