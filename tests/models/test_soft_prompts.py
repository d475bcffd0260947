"""Prefix-Tuning, prompt tuning and P-tuning against what they mean: tokens in front of every row, whatever stands between.

B rows, T tokens, P learned positions, L layers, K keys, V vocabulary, D width.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from reading_cases import WINDOW, Layer, Slow, Token, close, mask_of, plainly, plans, prompt_of, read_rows, row
from safetensors.torch import load_file, save_file
from transformers import DynamicCache

import learning
import tiny
from instructrec.errors import InputError
from instructrec.models import soft
from instructrec.models.methods import METHODS, Method, trained_parameters
from instructrec.models.prefix import Prefix
from instructrec.models.reading import Reading, ReadingPlan, attention, install
from instructrec.models.soft import FIRST, prompts_of
from instructrec.prompts.template import Rendered

SOFT = ("prefix_tuning", "prompt_tuning", "p_tuning")
IDS = torch.arange(6, 36).reshape(1, 30)


@pytest.fixture(params=SOFT)
def method(request: pytest.FixtureRequest) -> Method:
    return METHODS[request.param]


def options(method: Method, **changes: Any) -> dict[str, Any]:
    return learning.options_of(method) | changes


def made(method: Method, kind: str, **changes: Any) -> Any:
    """A tiny model with a soft prompt whose numbers are far from any word's."""
    return shaken(method.attach(tiny.model(kind), options(method, **changes), 0)).eval()


def shaken(model: Any) -> Any:
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in trained_parameters(model).values():
            weight.add_(0.3 * torch.randn(weight.shape, generator=draw))
    return model


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor = IDS, **more: Any) -> torch.Tensor:
    return model(input_ids=ids, **more).logits


def prompt(model: Any) -> Any:
    return prompts_of(model).prompts[FIRST]


# -- what a soft prompt means -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["prompt_tuning", "p_tuning"])
def test_it_is_as_if_the_embeddings_were_prepended(name: str, kind: str) -> None:
    model = made(METHODS[name], kind, length=5)
    ids = IDS[:, :10]  # of five and ten, none leaves the tiny Gemma's window of 16
    plain = plainly(tiny.model(kind))
    with torch.no_grad():
        ahead = prompt(model).saved()[None]
        whole = torch.cat([ahead, plain.get_input_embeddings()(ids)], dim=1)
        want = plain(inputs_embeds=whole).logits[:, 5:]
    close(logits(model, ids), want)


def test_a_prefix_is_a_cache_that_every_row_has(kind: str) -> None:
    model = made(METHODS["prefix_tuning"], kind, length=5)
    ids = IDS[:, :10]
    cache = DynamicCache()
    for layer, (key, value) in enumerate(prompt(model).prefix(model).layers):
        cache.update(key.detach(), value.detach(), layer)
    want = logits(plainly(tiny.model(kind)), ids, past_key_values=cache, position_ids=torch.arange(5, 15)[None])
    close(logits(model, ids), want)


def test_padding_without_positions_changes_nothing(method: Method, kind: str) -> None:
    model, short = made(method, kind), IDS[:, 4:17]
    want = logits(model, short)
    for place in (slice(17, 30), slice(0, 13)):
        ids, mask = torch.full((2, 30), 3), torch.zeros((2, 30), dtype=torch.long)
        ids[0], mask[0] = IDS[0], 1
        ids[1, place], mask[1, place] = short[0], 1
        close(logits(model, ids, attention_mask=mask)[1:, place], want)


def test_the_library_generates_with_it(method: Method, kind: str) -> None:
    """`generate` has caches and positions of its own making."""
    model = made(method, kind)
    ids, wanted = IDS[:, :9], []
    for _ in range(6):
        wanted.append(int(logits(model, torch.cat([ids, torch.tensor([wanted])], 1).long())[0, -1].argmax()))
    given = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    assert model.generate(ids, attention_mask=torch.ones_like(ids), **given)[0, 9:].tolist() == wanted


def test_switched_off_positions_start_at_zero(method: Method, kind: str) -> None:
    model, base = made(method, kind), tiny.model(kind)
    install(base)
    with method.using(model, "off"):
        assert torch.equal(logits(model), logits(base))
        assert torch.equal(logits(model, position_ids=torch.arange(7, 37)[None]), logits(base, position_ids=torch.arange(7, 37)[None]))  # fmt: skip
    assert not torch.equal(logits(model), logits(base))


def test_kernels_of_other_devices_get_the_mask_they_need(
    method: Method, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Elsewhere attention goes to the library's fused function, which aligns a causal mask to the first key."""
    model = made(method, kind)
    mask = torch.ones(2, 30, dtype=torch.long)
    mask[1, :12] = 0
    ids = IDS.expand(2, -1)
    wanted = logits(model), logits(model, ids, attention_mask=mask)
    monkeypatch.setattr(attention, "_by_products", lambda query: False)
    close(logits(model), wanted[0])
    close(logits(model, ids, attention_mask=mask)[mask.bool()], wanted[1][mask.bool()])
    first = model(input_ids=IDS[:, :20], use_cache=True)
    rest = model(input_ids=IDS[:, 20:], past_key_values=first.past_key_values, use_cache=True)
    close(torch.cat([first.logits, rest.logits], dim=1), wanted[0])


def test_the_mask_that_is_made() -> None:
    prefix = Prefix(((torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 4)),))
    assert prefix.length == 2
    made = prefix.widen(None, 2, 3, torch.device("cpu"))
    assert made is not None and made.int().tolist() == [[[[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]]]
    assert prefix.widen(None, 1, 3, torch.device("cpu")) is None
    low = torch.finfo(torch.float32).min
    wide = prefix.widen(torch.tensor([[[[0.0, low]]]]), 1, 2, torch.device("cpu"))
    assert wide is not None and wide.tolist() == [[[[0.0, 0.0, 0.0, low]]]]
    assert prefix.shift(((3, 7), (5, 9))) == ((0, 9), (0, 11))


# -- together with reading plans --------------------------------------------------------------------------------------


class SoftSlow(Slow):
    """The definition of a reading plan, with P keys and values more before what weights '' or an adapter's read."""

    def __init__(self, kind: str, plan: ReadingPlan, ahead: Mapping[str, Sequence[Layer]], made: Reading) -> None:
        plain = plainly(tiny.model(kind))
        super().__init__(kind, plan, dict.fromkeys(["", "off", *ahead], plain), made)
        self.ahead = ahead

    def read(
        self, weights: str, ids: Sequence[int], tokens: Sequence[Token], layers: Sequence[Layer], known: Sequence[Token]
    ) -> tuple[torch.Tensor, list[Layer]]:
        ahead = [] if weights == "off" else self.ahead[weights]
        size = ahead[0][0].shape[2] if ahead else 0
        cache = DynamicCache()
        for place, pair in enumerate(layers or [()] * len(ahead)):
            own = [torch.cat([*(p[part] for p in (ahead[place : place + 1])), *pair[part : part + 1]], 2) for part in range(2)]  # fmt: skip
            cache.update(own[0], own[1], place)
        mask = mask_of(self.plan, self.kind, tokens, [*known, *tokens])
        widened = {name: self._widened(one, size) for name, one in mask.items()} if isinstance(mask, dict) else self._widened(mask, size)  # fmt: skip
        out = self.models[weights](
            input_ids=torch.tensor([list(ids)]),
            position_ids=torch.tensor([[token.position + size for token in tokens]]),
            attention_mask=widened,
            past_key_values=cache,
            use_cache=True,
        )
        skip = size + len(known)
        return out.logits[0], [(layer.keys[:, :, skip:], layer.values[:, :, skip:]) for layer in cache.layers]

    @staticmethod
    def _widened(mask: torch.Tensor, size: int) -> torch.Tensor:
        return torch.cat([mask.new_zeros(*mask.shape[:-1], size), mask], dim=-1)


def reading_with(method: Method, kind: str, plan: ReadingPlan) -> tuple[Reading, SoftSlow]:
    """A reading behind soft prompts that all differ, and its definition."""
    model = made(method, kind, length=6)
    for number, name in enumerate(plan.adapters):
        method.add(model, name, options(method, length=6), 30 + number)
    whole = Reading(shaken(model), plan, method.using).eval()
    draw = torch.Generator().manual_seed(77)
    with torch.no_grad():
        for weight in whole.extra().values():
            weight.copy_(0.7 * torch.randn(weight.shape, generator=draw))
        named = {"": FIRST, **{name: name for name in plan.adapters}}
        ahead = {name: prompts_of(model).prompts[own].prefix(model).layers for name, own in named.items()}
    return whole, SoftSlow(kind, plan, ahead, whole)


ROWS = [row(7, 2, 4), row(21, 1, 3), row(3, 2, 6)]
PLANS = [plan for plan in plans() if plan.most == 2]
PAIRS = [
    (name, kind, plan)
    for number, (name, kind) in enumerate((name, kind) for name in SOFT for kind in tiny.KINDS)
    for plan in PLANS[number % 4 :: 4]
]


@pytest.mark.parametrize(("name", "kind", "plan"), PAIRS, ids=lambda value: getattr(value, "describe", lambda: value)())
@torch.no_grad()
def test_a_reading_plan_behind_a_soft_prompt_equals_the_definition(name: str, kind: str, plan: ReadingPlan) -> None:
    whole, slow = reading_with(METHODS[name], kind, plan)
    wanted = [slow.logits(one, plan.most) for one in ROWS]
    close(read_rows(whole, ROWS)[0], torch.cat(wanted))
    state, first = whole.prefill([prompt_of(one) for one in ROWS], 0, room=4)
    close(first, torch.stack([rows[0] for rows in wanted]), "first token")
    for place in range(2):
        given = torch.tensor([one.ids[one.prompt_end + place] for one in ROWS])
        close(whole.proceed(state, given), torch.stack([rows[place + 1] for rows in wanted]), f"step {place}")


def test_every_prompt_of_a_plan_has_a_gradient_also_recomputed(method: Method, kind: str) -> None:
    for case in ({"prior": "frozen", "slots": 3}, {"deep": True}, {"stroke_adapters": "separate"}):
        plan = ReadingPlan(strokes=(2,), **case)  # type: ignore[arg-type]
        gradients = []
        for checkpointing in (False, "stroke_adapters" not in case):  # tuning refuses those two together
            whole, _ = reading_with(method, kind, plan)
            if checkpointing:
                whole.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
                whole.model.enable_input_require_grads()
            whole.train()
            read_rows(whole, ROWS, deep=plan.deep)[0].square().mean().backward()
            gradients.append({name: weight.grad for name, weight in trained_parameters(whole).items()})
        for name, gradient in gradients[0].items():
            assert gradient is not None and float(gradient.abs().max()) > 0, (case, name)
            close(gradients[1][name], gradient, (case, name))


# -- PEFT's files ------------------------------------------------------------------------------------------------------


def test_peft_loads_what_is_saved(method: Method, kind: str, tmp_path: Path) -> None:
    from peft import PeftModel

    short = kind in WINDOW  # beyond its window PEFT's prompt is out of sight, ours is not
    model = made(method, kind, length=5)
    ids = IDS[:, :10] if short else IDS
    method.save(model, tmp_path, "someone/base")
    network = ["prompt_encoder.safetensors"] if method.name == "p_tuning" else []
    files = ["adapter_config.json", "adapter_model.safetensors", *network]
    assert sorted(path.name for path in tmp_path.iterdir()) == files
    loaded = PeftModel.from_pretrained(tiny.model(kind), tmp_path).eval()
    assert loaded.peft_config["default"].base_model_name_or_path == "someone/base"
    got = logits(loaded, ids)
    close(got[:, -ids.shape[1] :], logits(model, ids))
    if short:
        assert float((logits(loaded)[:, -30:] - logits(model)).abs().max()) > 1e-3


def trained_by_peft(name: str, kind: str, folder: Path) -> Any:
    import peft

    how: dict[str, Any] = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 4}
    config: Any = {
        "prefix_tuning": lambda: peft.PrefixTuningConfig(**how),
        "projection": lambda: peft.PrefixTuningConfig(prefix_projection=True, encoder_hidden_size=8, **how),
        "prompt_tuning": lambda: peft.PromptTuningConfig(prompt_tuning_init="SAMPLE_VOCAB", **how),
        "p_tuning": lambda: peft.PromptEncoderConfig(
            encoder_reparameterization_type="LSTM", encoder_hidden_size=8, **how
        ),
    }[name]()
    torch.manual_seed(3)
    model = peft.get_peft_model(tiny.model(kind), config).eval()
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("name", [*SOFT, "projection"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen"])
def test_what_peft_saved_is_loaded(name: str, kind: str, tmp_path: Path) -> None:
    theirs = trained_by_peft(name, kind, tmp_path)
    own = METHODS["prefix_tuning" if name == "projection" else name].load(tiny.model(kind), tmp_path).eval()
    close(logits(own), logits(theirs)[:, -30:])


def test_several_by_name(method: Method, kind: str, tmp_path: Path) -> None:
    model = made(method, kind, length=4)
    alone = logits(model)
    method.add(model, "stroke_1", options(method, length=4), 9)
    assert torch.equal(logits(model), alone)
    with method.using(model, "stroke_1"):
        other = logits(model)
    assert float((other - alone).abs().max()) > 1e-3
    assert torch.equal(logits(model), alone)
    method.save(model, tmp_path, "tiny")
    for trainable in (False, True):
        loaded = method.load(tiny.model(kind), tmp_path, trainable=trainable).eval()
        method.load_more(loaded, tmp_path, "stroke_1", trainable=trainable)
        assert torch.equal(logits(loaded), alone)
        with method.using(loaded, "stroke_1"):
            assert torch.equal(logits(loaded), other)
        assert bool(trained_parameters(loaded)) == trainable
    with pytest.raises(InputError) as caught, method.using(model, "stroke_2"):
        pass
    assert str(caught.value) == "method: no soft prompt is called 'stroke_2', did you mean 'stroke_1'?"


def test_the_networks_dropout_is_not_saved(tmp_path: Path) -> None:
    method = METHODS["p_tuning"]
    model = made(method, "llama", encoder="lstm", layers=2, width=12, dropout=0.5)
    want = logits(model)
    model.train()
    assert not torch.equal(logits(model), want)
    method.save(model, tmp_path, "tiny")
    assert prompt(model).training
    assert torch.equal(logits(method.load(tiny.model("llama"), tmp_path).eval()), want)
    again = method.load(tiny.model("llama"), tmp_path, trainable=True)
    assert prompt(again).options == {"kind": "lstm", "width": 12, "layers": 2, "dropout": 0.5}
    assert torch.equal(logits(again.eval()), want)


@torch.no_grad()
def test_the_network_computes_the_same_under_autocast() -> None:
    one = prompt(made(METHODS["p_tuning"], "llama"))
    want = one.saved()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(one._embeddings(), want)


def test_what_was_read_once_is_read_again_after_a_move(tmp_path: Path) -> None:
    method = METHODS["prompt_tuning"]
    method.save(made(method, "llama"), tmp_path, "tiny")
    model = method.load(tiny.model("llama"), tmp_path).eval()
    with torch.inference_mode():
        first = logits(model)
    assert not prompt(model).prefix(model).layers[0][0].is_inference()
    assert prompt(model).prefix(model) is prompt(model).prefix(model)
    model.double()
    assert prompt(model).prefix(model).layers[0][0].dtype == torch.float64
    close(logits(model).float(), first)


# -- first values ------------------------------------------------------------------------------------------------------


def behind(ids: Sequence[int], kind: str) -> torch.Tensor:
    """Logits of IDS as the backbone itself reads them behind other tokens."""
    whole = torch.cat([torch.tensor([list(ids)]), IDS[:, :9]], dim=1)
    return logits(plainly(tiny.model(kind)), whole)[:, len(ids) :]


@pytest.mark.parametrize("text", ["", "Please upper it"])
def test_they_start_as_real_text_before_the_row(method: Method, kind: str, text: str) -> None:
    rows = [Rendered([5, 6, 7, *range(20 + 9 * n, 27 + 9 * n), 8], [False] * 11, 10, 10) for n in range(4)]
    tokenizer = tiny.tokenizer(kind)
    chosen = options(method, length=6, text=text)
    model = method.attach(tiny.model(kind), chosen, 0).eval()
    method.start(model, chosen, 0, rows=rows, tokenizer=tokenizer)
    if text:
        ids = (tokenizer(text, add_special_tokens=False)["input_ids"] * 6)[:6]
    else:
        ids = soft.ids_of_rows(rows, 6, 0)
        assert ids[0] == 5 and ids[1:] in [row.ids[3:8] for row in rows]
    close(logits(model, IDS[:, :9]), behind(ids, kind))


def test_rows_that_say_little() -> None:
    rows = [Rendered([5, 6, n], [False] * 3, 3, 3) for n in range(10, 14)]
    ids = soft.ids_of_rows(rows, 4, 0)
    assert ids[0] == 5 and len(ids) == 4 and set(ids[1:]) < {10, 11, 12, 13}
    assert soft.ids_of_rows(rows, 9, 0)[:5] == [*ids, *({10, 11, 12, 13} - set(ids))]
    assert soft.ids_of_rows(rows[:1], 3, 0) == [5, 6, 10]
    assert soft.ids_of_rows([], 3, 0) == [] and soft.ids_of_rows([Rendered([5], [False], 0, 0)], 3, 0) == []
    same = [rows[0], rows[0]]
    assert soft.ids_of_rows(same, 3, 0) == [5]


def test_other_first_values(method: Method) -> None:
    found = {}
    for init in ("vocabulary", "random"):
        chosen = options(method, init=init, length=6)
        models = [method.attach(tiny.model("llama"), chosen, seed).eval() for seed in (0, 0, 1)]
        before = logits(models[0])
        method.start(models[0], chosen, 0, rows=[row(9, 1, 3)], tokenizer=None)
        assert torch.equal(logits(models[0]), before) and torch.equal(logits(models[1]), before)
        assert not torch.equal(logits(models[2]), before)
        found[init] = before[:, :9]
    close(found["vocabulary"], behind(soft.common_ids(tiny.model("llama"), 6, 0), "llama")[:, :9])
    assert float((found["random"] - found["vocabulary"]).abs().max()) > 1e-3


def test_texts_that_can_not_be_started_from(method: Method) -> None:
    with pytest.raises(InputError) as caught:
        method.attach(tiny.model("llama"), options(method, init="random", text="words"), 0)
    name = method.name
    assert str(caught.value) == f"{name}.text: needs {name}.init=text (got {name}.init=random)"
    model = method.attach(tiny.model("llama"), options(method), 0)
    with pytest.raises(InputError) as caught:
        method.start(model, options(method, text="x"), 0, rows=[], tokenizer=lambda text, **_: {"input_ids": []})
    assert str(caught.value) == f"{name}.text: no token is left of it (got 'x')"


# -- what is refused ---------------------------------------------------------------------------------------------------


def refusal(method: Method, model: Any) -> str:
    before = model.config._attn_implementation
    names = [name for name, _ in model.named_modules()]
    with pytest.raises(InputError) as caught:
        method.attach(model, options(method), 0)
    assert model.config._attn_implementation == before
    assert [name for name, _ in model.named_modules()] == names and all(w.requires_grad for w in model.parameters())
    return str(caught.value)


def test_models_that_can_not_have_one(method: Method) -> None:
    def build(config: Any) -> Any:
        return transformers.AutoModelForCausalLM.from_config(config)

    sizes = {"vocab_size": 60, "bos_token_id": 1, "eos_token_id": 2}
    gptj = transformers.GPTJConfig(n_embd=16, n_layer=2, n_head=2, rotary_dim=4, **sizes)
    start = "method: this model can't have a soft prompt: "
    assert refusal(method, build(gptj)) == start + "its layers keep no keys and values that can be learned"
    gemma2 = transformers.Gemma2Config(
        hidden_size=16, intermediate_size=32, num_attention_heads=2, num_key_value_heads=1, num_hidden_layers=2,
        head_dim=8, **sizes,
    )  # fmt: skip
    assert refusal(method, build(gemma2)) == start + "this model's attention needs 'softcap'"


def test_a_prefix_needs_layers_of_one_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = tuple((torch.zeros(1, groups, 4, 8), torch.zeros(1, groups, 4, 8)) for groups in (1, 2))
    monkeypatch.setattr(soft, "probe", lambda model: layers)
    assert refusal(METHODS["prefix_tuning"], tiny.model("llama")) == (
        "method: prefix_tuning needs keys and values of one shape in all layers (want prompt_tuning)"
    )
    monkeypatch.undo()
    METHODS["prompt_tuning"].attach(tiny.model("llama"), options(METHODS["prompt_tuning"]), 0)


def saved(method: Method, folder: Path) -> None:
    method.save(made(method, "llama", length=4), folder, "tiny")


def refused(method: Method, folder: Path, kind: str = "llama", trainable: bool = False) -> str:
    with pytest.raises(InputError) as caught:
        method.load(tiny.model(kind), folder, trainable=trainable)
    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("peft_type", "LORA", "not {own} (got 'LORA')"),
        ("peft_type", None, "not {own} (got None)"),
        ("num_virtual_tokens", 0, "out of range (got 0, want a whole number from 1 to 4096)"),
        ("num_virtual_tokens", "4", "out of range (got '4', want a whole number from 1 to 4096)"),
        ("num_virtual_tokens", 10**9, "out of range (got 1000000000, want a whole number from 1 to 4096)"),
        ("num_transformer_submodules", 2, "not of a decoder (want 1)"),
        ("modules_to_save", ["lm_head"], "not known to this version (got ['lm_head'])"),
        ("auto_mapping", {"base_model_class": "X", "parent_library": "os"}, "not known to this version (got {{'base_model_class': 'X', 'parent_library': 'os'}})"),
    ],
)  # fmt: skip
def test_configurations_that_are_not_ours(method: Method, tmp_path: Path, key: str, value: Any, reason: str) -> None:
    saved(method, tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    assert refused(method, tmp_path) == f"{file}: {key}: {reason.format(own=method.peft_type)}"


def test_a_prefix_of_another_backbone(tmp_path: Path) -> None:
    method = METHODS["prefix_tuning"]
    saved(method, tmp_path)
    file = tmp_path / "adapter_config.json"
    good = json.loads(file.read_text())
    for key, value, want in (("num_layers", 3, 2), ("num_attention_heads", 4, 2), ("token_dim", 32, 16)):
        file.write_text(json.dumps(good | {key: value}))
        assert refused(method, tmp_path) == f"{file}: {key}: does not fit this backbone (got {value}, want {want})"
    file.write_text(json.dumps(good | dict.fromkeys(("num_layers", "num_attention_heads", "token_dim"))))
    method.load(tiny.model("llama"), tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    text = "prompt_embeddings: does not fit this backbone (got [4, 64], want [4, 128])"
    assert refused(method, tmp_path, "gpt2") == f"{weights}: {text}"


def test_weights_that_are_damaged(method: Method, tmp_path: Path) -> None:
    saved(method, tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    good = load_file(file)["prompt_embeddings"]
    names: dict[str, tuple[dict[str, torch.Tensor], str]] = {
        "shape": ({"prompt_embeddings": good[:3].clone()}, f"prompt_embeddings: does not fit this backbone (got [3, {good.shape[1]}], want [4, {good.shape[1]}])"),
        "missing": ({}, "prompt_embeddings: missing"),
        "more": ({"prompt_embeddings": good, "x": good.clone()}, "x: not known here"),
        "nan": ({"prompt_embeddings": good * float("nan")}, "prompt_embeddings holds a value that is not finite"),
    }  # fmt: skip
    for tensors, reason in names.values():
        save_file(tensors, file)
        assert refused(method, tmp_path) == f"{file}: {reason}"
    file.write_bytes(b"\xff" * 64)
    assert refused(method, tmp_path).startswith(f"{file}: cut short, or not safetensors ")
    file.unlink()
    assert refused(method, tmp_path) == f"{file}: no such file"


def test_a_network_that_is_damaged(tmp_path: Path) -> None:
    method = METHODS["p_tuning"]
    saved(method, tmp_path)
    file, described = tmp_path / "prompt_encoder.safetensors", tmp_path / "adapter_config.json"
    good, config = load_file(file), json.loads(described.read_text())
    save_file(good | {"mlp_head.0.bias": good["mlp_head.0.bias"] / 0}, file)
    assert refused(method, tmp_path, trainable=True) == f"{file}: mlp_head.0.bias holds a value that is not finite"
    method.load(tiny.model("llama"), tmp_path)  # answering does not need it
    file.unlink()
    assert refused(method, tmp_path, trainable=True) == f"{file}: no such file"
    for key, value, reason in (
        ("encoder_reparameterization_type", "GRU", "got 'GRU', want mlp or lstm"),
        ("encoder_hidden_size", 1 << 20, "out of range (got 1048576, want a whole number from 1 to 65536)"),
        ("encoder_num_layers", None, "out of range (got None, want a whole number from 1 to 16)"),
        ("encoder_dropout", 1, "got 1, want a number from 0 to below 1"),
    ):
        described.write_text(json.dumps(config | {key: value}))
        assert refused(method, tmp_path, trainable=True) == f"{described}: {key}: {reason}"
