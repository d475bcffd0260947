"""Every reading plan against its definition written slowly (`reading_cases.Slow`), on four families in fp32.

B rows, N' supervised positions, V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from reading_cases import (
    Slow,
    adapt,
    close,
    plainly,
    plans,
    prompt_of,
    read_rows,
    reading,
    row,
    separate_models,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import tiny
from instructrec.errors import InputError
from instructrec.models import methods
from instructrec.models.reading import Reading, ReadingPlan, lay, repeat
from instructrec.prompts.template import Rendered

PLANS = plans()
ROWS = [row(7, 2, 4), row(21, 1, 3), row(3, 2, 6)]


@pytest.fixture(autouse=True)
def _without_gradients() -> Any:
    with torch.no_grad():
        yield


def shown(plan: ReadingPlan) -> str:
    return plan.describe().replace(" ", "_")


def test_there_are_plans_to_test() -> None:
    assert len(PLANS) > 60
    assert len({shown(plan) for plan in PLANS}) == len(PLANS)
    wanted = {
        ("frozen", "separate", "sink+last", "bidirectional", "concat", 3, 3),
        ("tuned", "separate", "all", "causal", "gated", 0, 2),
    }
    assert wanted <= {
        (plan.prior, plan.stroke_adapters, plan.memory, plan.direction, plan.mix, plan.slots, plan.most)
        for plan in PLANS
    }


# Every plan on one family; on Gemma, with its windows, all with two strokes; a sample of these on the others.
TWICE = [plan for plan in PLANS if plan.most < 3]
SHARES = {"llama": PLANS, "gemma": TWICE, "gpt2": TWICE[::3], "qwen": TWICE[1::3]}
PAIRS = [(kind, plan) for kind, share in SHARES.items() for plan in share]


@pytest.mark.parametrize(("kind", "plan"), PAIRS, ids=lambda value: value if isinstance(value, str) else shown(value))
def test_a_batch_and_its_decoding_equal_the_definition(kind: str, plan: ReadingPlan) -> None:
    """Oracles 2, 3, 5 and 6: unequal rows in one batch, whole and token by token, one of them longer than a window."""
    made = reading(kind, plan)
    slow = Slow(kind, plan, separate_models(kind, made), made)
    got, laid = read_rows(made, ROWS)
    wanted = [slow.logits(one, plan.most) for one in ROWS]
    close(got, torch.cat(wanted))
    state, first = made.prefill([prompt_of(one) for one in ROWS], 0, room=4)
    close(first, torch.stack([logits[0] for logits in wanted]), "first token")
    for place in range(2):
        given = torch.tensor([one.ids[one.prompt_end + place] for one in ROWS])
        close(made.proceed(state, given), torch.stack([logits[place + 1] for logits in wanted]), f"step {place}")


def test_the_definition_itself_is_the_backbone_reading_the_instruction_again(kind: str) -> None:
    """The slow statement is not trusted either: where a plan is one causal pass, the backbone's own must agree."""
    plan = ReadingPlan(strokes=(3,))
    made = reading(kind, plan)
    models = separate_models(kind, made)
    for strokes in (1, 2, 3):
        for one in ROWS:
            again = [*one.ids[: one.instruction_end] * (strokes - 1), *one.ids]
            whole = models[""](input_ids=torch.tensor([again])).logits[0]
            answers = whole[len(again) - len(one.ids) + one.prompt_end - 1 : -1]
            close(Slow(kind, plan, models).logits(one, strokes), answers)
            close(read_rows(made, [one], strokes)[0], answers)
            form = repeat(one, strokes)
            assert form.ids == again
            places = [place - 1 for place in range(len(form.ids)) if form.supervised[place]]
            close(whole[places], answers)


def test_a_single_tuned_reading_is_the_tuned_backbone(kind: str) -> None:
    """Oracle 1, and what a call without passes does: nothing of its own."""
    made = reading(kind, ReadingPlan())
    own = separate_models(kind, made)[""]
    for one in ROWS:
        wanted = own(input_ids=torch.tensor([one.ids])).logits
        close(read_rows(made, [one])[0], wanted[0, one.prompt_end - 1 : -1])
        close(made(input_ids=torch.tensor([one.ids])).logits, wanted)
    ids = torch.zeros(2, 11, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for place, one in enumerate(ROWS[:2]):
        ids[place, : len(one.ids[:11])] = torch.tensor(one.ids[:11])
        mask[place, : len(one.ids[:11]) - 3 * place] = 1
    wanted = own(input_ids=ids, attention_mask=mask).logits
    close(made(input_ids=ids, attention_mask=mask).logits[mask.bool()], wanted[mask.bool()])


def test_untouched_weights_read_as_the_untuned_backbone(kind: str) -> None:
    """Oracle 4: adapters and gates that are zero, as at the start, change nothing; gated is then a single reading."""
    lora = methods.get("lora")
    untuned = {name: plainly(tiny.model(kind)) for name in ("", "off", "stroke_1", "stroke_2")}
    for plan in [plan for plan in PLANS if not plan.slots and plan.most == 2]:
        model = lora.attach(tiny.model(kind), {"rank": 4, "alpha": 8.0, "dropout": 0.0, "target": "all-linear"}, 0)
        for name in plan.adapters:
            lora.add(model, name, {}, 0)
        made = Reading(model, plan, lora.using).eval()
        got = read_rows(made, ROWS)[0]
        close(got, torch.cat([Slow(kind, plan, untuned, made).logits(one, plan.most) for one in ROWS]), plan)
        if plan.mix == "gated":
            once = Slow(kind, ReadingPlan(), untuned)
            close(got, torch.cat([once.logits(one, 1) for one in ROWS]), plan)
        bare = Reading(tiny.model(kind), plan)
        close(read_rows(bare, ROWS)[0], got, plan)


def test_an_answer_after_every_stroke(kind: str) -> None:
    """deep: the answer after stroke t is what a reading of t strokes would give, whatever else is in the pass."""
    cases: list[dict[str, Any]] = [
        {"strokes": (3,)}, {"strokes": (3,), "prior": "frozen", "memory": "sink+last"},
        {"strokes": (3,), "stroke_adapters": "separate", "direction": "bidirectional"},
        {"strokes": (2,), "mix": "gated", "direction": "bidirectional"}, {"strokes": (2,), "slots": 3},
    ]  # fmt: skip
    for case in cases:
        plan = ReadingPlan(deep=True, **case)
        made = reading(kind, plan)
        slow = Slow(kind, plan, separate_models(kind, made), made)
        got, laid = read_rows(made, ROWS, deep=True)
        wanted = []
        for one in ROWS:
            wanted += [slow.logits(one, plan.most, after) for after in range(1, plan.most + 1)]
        close(got, torch.cat(wanted), plan)
        assert laid.owners.tolist() == [
            place for place, one in enumerate(ROWS) for _ in range(plan.most) for _ in range(one.targets)
        ]
        assert laid.targets.tolist() == [
            token for one in ROWS for _ in range(plan.most) for token in one.ids[one.prompt_end :]
        ]


SHAPES = {
    "no instruction": row(0, 2, 4),
    "one token of instruction": row(1, 2, 4),
    "one token in all before the answer": row(1, 0, 4),
    "no header: the instruction lends its last token": row(9, 0, 4),
    "nothing but a header token": row(0, 1, 1),
    "long": row(60, 2, 5),
}
EDGES: list[dict[str, Any]] = [
    {"strokes": (2,)}, {"strokes": (2,), "prior": "frozen"}, {"strokes": (2,), "memory": "sink+last", "slots": 3},
    {"strokes": (2,), "mix": "gated", "direction": "bidirectional", "memory": "sink+last"},
    {"strokes": (3,), "stroke_adapters": "separate"},
]  # fmt: skip


@pytest.mark.parametrize("case", EDGES, ids=str)
def test_rows_of_unusual_shape_alone_and_together(kind: str, case: dict[str, Any]) -> None:
    plan = (
        ReadingPlan(**case)
        if kind != "gpt2" or case["strokes"] != (3,)
        else ReadingPlan(strokes=(2,), stroke_adapters="separate")
    )
    made = reading(kind, plan)
    slow = Slow(kind, plan, separate_models(kind, made), made)
    size = 55 if kind == "gpt2" else 60
    rows = [*SHAPES.values()][:-1] + [row(size, 2, 5), row(1, 1, 3)]
    wanted = [slow.logits(one, plan.most) for one in rows]
    for one, logits in zip(rows, wanted, strict=True):
        close(read_rows(made, [one])[0], logits, one.instruction_end)
    close(read_rows(made, rows)[0], torch.cat(wanted))
    close(read_rows(made, rows[::-1])[0], torch.cat(wanted[::-1]), "other neighbours, and after another call")
    state, first = made.prefill([prompt_of(one) for one in rows], 0, room=1)
    close(first, torch.stack([logits[0] for logits in wanted]))
    longer = [place for place, one in enumerate(rows) if one.targets > 1]
    got = made.proceed(state, torch.tensor([one.ids[one.prompt_end] for one in rows]))
    close(got[longer], torch.stack([wanted[place][1] for place in longer]))


def test_a_conversation_is_read_again_up_to_the_last_header() -> None:
    """Several assistant turns: x is everything before the last header; earlier answers in it are not supervised."""
    base = row(20, 2, 4)
    flags = [4 <= place < 8 or place >= 22 for place in range(26)]
    talk = Rendered(base.ids, flags, 20, 22)
    for plan in (ReadingPlan(strokes=(2,)), ReadingPlan(strokes=(2,), prior="frozen")):
        made = reading("llama", plan)
        slow = Slow("llama", plan, separate_models("llama", made), made)
        got, laid = read_rows(made, [talk])
        assert laid.targets.tolist() == base.ids[22:]
        close(got, slow.logits(base, 2))
    form = repeat(talk, 2)
    assert [place for place, flag in enumerate(form.supervised) if flag] == [42, 43, 44, 45]
    assert (form.instruction_end, form.prompt_end, form.ids) == (40, 42, base.ids[:20] + base.ids)


def test_padding_anywhere_changes_nothing(kind: str) -> None:
    """Columns of padding put before, between and behind the tokens of every pass."""
    for case in EDGES:
        made = reading(kind, ReadingPlan(**case))
        rows = ROWS[:2]
        got, laid = read_rows(made, rows)
        passes, positions = [], laid.positions
        for one in laid.passes:
            width = one.ids.shape[1]
            order = [None, None, *range(width // 2), None, *range(width // 2, width), None]
            spread = [column if column is not None else -1 for column in order]
            tags = one.tags
            parts = [
                torch.cat([part, torch.zeros_like(part[:, :1])], 1)[:, spread]
                for part in (tags.position, tags.stroke, tags.answer, tags.valid)
            ]
            ids = torch.cat([one.ids, torch.full_like(one.ids[:, :1], 9)], 1)[:, spread]
            passes.append(replace(one, ids=ids, tags=type(tags)(*parts)))
            place = {column: at for at, column in enumerate(order) if column is not None}
            positions = torch.tensor([int(at) // width * len(order) + place[int(at) % width] for at in laid.positions])
        close(made(tuple(passes), positions)[0], got, case)


def test_the_previous_call_leaves_nothing_behind(kind: str) -> None:
    for plan in (
        ReadingPlan(strokes=(2,), prior="frozen", slots=3),
        ReadingPlan(strokes=(3,), stroke_adapters="separate"),
    ):
        made = reading(kind, plan)
        before = read_rows(made, ROWS)[0]
        state, _ = made.prefill([prompt_of(row(9, 2, 1))], 0, room=3)
        read_rows(made, [row(30, 2, 5)], deep=True)
        made.proceed(state, torch.tensor([7]))
        assert torch.equal(read_rows(made, ROWS)[0], before)


def test_two_answers_written_at_once_do_not_mix() -> None:
    made = reading("gemma", ReadingPlan(strokes=(2,)))
    one, first = made.prefill([prompt_of(ROWS[1])], 0, room=3)
    other, _ = made.prefill([prompt_of(ROWS[0])], 0, room=3)
    alone, _ = made.prefill([prompt_of(ROWS[1])], 0, room=3)
    made.proceed(other, torch.tensor([11]))
    got = [
        made.proceed(one, torch.tensor([5])),
        made.proceed(other, torch.tensor([12])),
        made.proceed(one, torch.tensor([6])),
    ]
    wanted = [made.proceed(alone, torch.tensor([5])), made.proceed(alone, torch.tensor([6]))]
    assert torch.equal(got[0], wanted[0]) and torch.equal(got[2], wanted[1])


def test_the_memory_holds_only_what_an_answer_can_see() -> None:
    sizes = {}
    for memory in ("all", "sink+last"):
        made = reading("llama", ReadingPlan(strokes=(3,), memory=memory))
        state, _ = made.prefill([prompt_of(row(20, 2, 1))], 0, room=5)
        sizes[memory] = (state.length, state.layers[0][0].shape[2])
    assert sizes == {"all": (62, 67), "sink+last": (26, 31)}


def test_the_dial_reads_as_often_as_it_says(kind: str) -> None:
    plan = ReadingPlan(strokes=(1, 2, 3), prior="frozen")
    made = reading(kind, plan)
    models = separate_models(kind, made)
    answers = []
    for strokes in (1, 2, 3):
        made.strokes = strokes
        _, first = made.prefill([prompt_of(one) for one in ROWS], 0, room=1)
        close(first, torch.stack([Slow(kind, plan, models).logits(one, strokes)[0] for one in ROWS]), strokes)
        answers.append(first)
    assert min(float((one - other).abs().max()) for one, other in zip(answers, answers[1:], strict=False)) > 1e-3
    once = torch.stack([models[""](input_ids=torch.tensor([one.ids[: one.prompt_end]])).logits[0, -1] for one in ROWS])
    close(answers[0], once, "a single reading is the tuned one, also where the prior is frozen")


def test_a_window_shorter_than_the_rows(kind: str) -> None:
    """x of 20 and of 31 tokens, a window of 16 in Gemma's odd layers: as the backbone reads [x; x; a] itself."""
    assert tiny.model("gemma").config.sliding_window == 16
    made = reading(kind, ReadingPlan(strokes=(2,)))
    own = separate_models(kind, made)[""]
    own.get_base_model().set_attn_implementation("sdpa")
    rows = [row(31, 2, 5), row(20, 2, 20), row(2, 1, 18)]
    wanted = []
    for one in rows:
        form = repeat(one, 2)
        wanted.append(own(input_ids=torch.tensor([form.ids])).logits[0, form.prompt_end - 1 : -1])
    close(read_rows(made, rows)[0], torch.cat(wanted))
    state, first = made.prefill([prompt_of(one) for one in rows], 0, room=17)
    close(first, torch.stack([logits[0] for logits in wanted]))
    for place in range(17):  # the answer alone outgrows the window
        ids = [one.ids[min(one.prompt_end + place, len(one.ids) - 1)] for one in rows]
        got = made.proceed(state, torch.tensor(ids))
        if place + 1 < rows[1].targets:
            close(got[1], wanted[1][place + 1], place)
        if place + 1 < rows[2].targets:
            close(got[2], wanted[2][place + 1], place)


def test_the_output_is_the_same_in_bf16_up_to_its_rounding() -> None:
    plan = ReadingPlan(strokes=(2,), slots=2)
    made = reading("llama", plan)
    wanted = read_rows(made, ROWS)[0]
    half = reading("llama", plan)
    half.model.to(torch.bfloat16)
    got = read_rows(half, ROWS)[0]
    assert got.dtype == torch.bfloat16
    assert float((got - wanted).abs().max()) < 0.05 * float(wanted.abs().max())


def test_positions_beyond_what_a_model_has() -> None:
    """Learned positions end: the backbone raises, it never reads on with wrong ones. Recipes check lengths before."""
    made = reading("gpt2", ReadingPlan(strokes=(2,)))
    limit = tiny.POSITIONS["gpt2"]
    fits, over = row(60, 2, 6), row(60, 2, 7)
    assert made.plan.last_position(60, 8, 2) == limit
    assert read_rows(made, [fits])[0].shape[0] == 6
    with pytest.raises(IndexError):
        read_rows(made, [over])


# -- families that can't --------------------------------------------------------------------------------------------


def made_of(name: str, **more: Any) -> Any:
    """A random model of another family."""
    sizes: dict[str, Any] = {
        "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "num_hidden_layers": 2, "max_position_embeddings": 256, "vocab_size": 100, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    config = transformers.AutoConfig.for_model(name, **sizes | more)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.normal_(0.0, 0.2)
    return model


MIXED = ["sliding_attention", "full_attention"]
ONCE = "it can be tuned with strokes=1"
GEMMA3N: dict[str, Any] = {
    "num_hidden_layers": 4, "num_kv_shared_layers": 2, "layer_types": MIXED * 2, "vocab_size_per_layer_input": 100,
    "hidden_size_per_layer_input": 8, "laurel_rank": 4, "activation_sparsity_pattern": [0.0] * 4,
    "altup_num_inputs": 2, "sliding_window": 16,
}  # fmt: skip
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "gemma2": ({"query_pre_attn_scalar": 8}, f"this model's attention needs 'softcap'; {ONCE}"),
    "gpt_oss": (
        {"num_local_experts": 4, "num_experts_per_tok": 2, "layer_types": MIXED, "sliding_window": 16},
        f"this model's attention needs 's_aux'; {ONCE}",
    ),
    "llama4_text": (
        {"num_local_experts": 2, "intermediate_size_mlp": 64, "attention_chunk_size": 16},
        f"this model has layers of another kind (chunked_attention); {ONCE}",
    ),
    "lfm2": ({"layer_types": ["full_attention", "conv"]}, f"this model has layers of another kind (conv); {ONCE}"),
    "phimoe": (
        {"sliding_window": 16, "num_local_experts": 4},
        f"this model hides its window from its attention; {ONCE}",
    ),
    "gptj": (
        {"n_embd": 32, "n_head": 4, "n_layer": 2, "rotary_dim": 4},
        "this model's layers keep no keys and values that can be remembered",
    ),
    "bloom": ({"n_head": 4}, "this model can't read with a memory: too many values to unpack (expected 2)"),
    "mamba": ({}, "this model can't read with a memory: not enough values to unpack (expected 2, got 1)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_family_that_cannot_is_refused_and_left_as_it_was(name: str) -> None:
    more, message = REFUSED[name]
    model = made_of(name, **more)
    before, attention = model(input_ids=torch.tensor([[5, 6, 7]])).logits, model.config._attn_implementation
    with pytest.raises(InputError) as caught:
        Reading(model, ReadingPlan(strokes=(2,)))
    assert str(caught.value) == f"strokes: {message}"
    assert model.config._attn_implementation == attention
    assert torch.equal(model(input_ids=torch.tensor([[5, 6, 7]])).logits, before)


def test_an_attention_of_the_models_own_is_noticed() -> None:
    """A function that does more than the library's: found by reading once with it and once with ours."""
    sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def louder(*given: Any, **more: Any) -> Any:
        out, shares = sdpa(*given, **more)
        return 2 * out, shares

    transformers.AttentionInterface.register("louder", louder)
    model = tiny.model("llama")
    model.set_attn_implementation("louder")
    with pytest.raises(InputError) as caught:
        Reading(model, ReadingPlan(strokes=(2,)))
    assert str(caught.value) == (
        "strokes: this model does not read the same with a memory (layers that share keys, or another state than keys "
        f"and values); {ONCE}"
    )
    assert model.config._attn_implementation == "louder"


OTHERS: dict[str, dict[str, Any]] = {
    "gemma3n_text": GEMMA3N,  # the upper layers take the keys and values of lower ones
    "mistral": {"sliding_window": 16},
    "phi3": {},
    "mixtral": {"num_local_experts": 4},
    "cohere2": {"sliding_window": 16},  # layers without positions
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_families_read_twice_as_they_would_themselves(name: str) -> None:
    model = made_of(name, **OTHERS[name])
    rows = [row(25, 2, 5), row(6, 1, 3)]
    rows = [
        Rendered([token % 95 + 3 for token in one.ids], one.supervised, one.instruction_end, one.prompt_end)
        for one in rows
    ]
    wanted = []
    for one in rows:
        form = repeat(one, 2)
        wanted.append(model(input_ids=torch.tensor([form.ids]), use_cache=False).logits[0, form.prompt_end - 1 : -1])
    made = Reading(model, ReadingPlan(strokes=(2,))).eval()
    close(read_rows(made, rows)[0], torch.cat(wanted))
    with torch.enable_grad():
        close(read_rows(made, rows)[0], torch.cat(wanted), "as in training")
    state, first = made.prefill([prompt_of(one) for one in rows], 0, room=2)
    close(first, torch.stack([logits[0] for logits in wanted]))
    got = made.proceed(state, torch.tensor([one.ids[one.prompt_end] for one in rows]))
    close(got, torch.stack([logits[1] for logits in wanted]))


def test_slots_need_layers_of_one_shape() -> None:
    model = made_of(
        "gemma4_text", num_hidden_layers=4, num_kv_shared_layers=0, layer_types=MIXED * 2, vocab_size_per_layer_input=100,
        hidden_size_per_layer_input=8, global_head_dim=16, sliding_window=16,
    )  # fmt: skip
    with pytest.raises(InputError) as caught:
        Reading(model, ReadingPlan(strokes=(2,), slots=2))
    assert str(caught.value) == "slots: this model's keys and values differ in shape between layers (want slots=0)"


def test_a_reading_leaves_the_mode_of_every_module_alone(kind: str) -> None:
    model = adapt(tiny.model(kind))
    inner = next(module for module in model.modules() if isinstance(module, torch.nn.Embedding))
    inner.train()
    before = [module.training for module in model.modules()]
    made = Reading(model, ReadingPlan(strokes=(2,)))
    assert [module.training for module in model.modules()] == before
    assert lay(ROWS, made.plan, 2, pad_id=0).passes[0].weights == ""
