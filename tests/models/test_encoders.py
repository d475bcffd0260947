"""Masked encoders score labels as PET and as the nearest label text say, whatever stands around a row; what they can't
do is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from instructrec.data.records import Record
from instructrec.errors import InputError
from instructrec.inference.engine import Sampling, generate, stream
from instructrec.inference.loading import Choosing, Loaded, open_target
from instructrec.inference.ranking import Candidates, likelihoods
from instructrec.models import backbone
from instructrec.models.choosing import spell
from instructrec.models.methods import METHODS
from instructrec.prompts.verbalizer import Verbalizer
from instructrec.training.batching import Layout
from instructrec.training.loss import row_losses, token_losses

# One word of several tokens, one label of two words; "the" begins all words of SAME.
WORDS = Verbalizer({"good": ("positive", "red"), "bad": ("negative",), "none": ("the lamp",)})
SAME = Verbalizer({"good": ("the house",), "bad": ("the red lamp",)})
TEXTS = ("Where is my parcel now?", "the house is red", "We are sorry; the refund takes three working days.")


def opened(folder: Path, labels: Verbalizer = WORDS, head: str = "auto") -> Loaded:
    """In fp64, so that bounds can be close."""
    loaded = open_target(str(folder), precision="fp32", choosing=Choosing(labels, head))
    loaded.model.double()
    return loaded


def rows(loaded: Loaded) -> list[Any]:
    names = loaded.renderer.labels.labels  # type: ignore[union-attr]
    return [loaded.renderer.render(Record.of(text, names[n % len(names)])) for n, text in enumerate(TEXTS)]


@torch.no_grad()
def by_hand(loaded: Loaded, text: str) -> torch.Tensor:
    """Log-probabilities of the labels at the masks, by the library's own model, one word at a time."""
    tokens, model = loaded.backbone.tokenizer, loaded.backbone.model
    found = []
    for words in loaded.renderer.labels.words.values():  # type: ignore[union-attr]
        logs = []
        for word in words:
            lead = " the" if all(w.startswith("the ") for w in sum(loaded.renderer.labels.words.values(), ())) else ""  # type: ignore[union-attr]
            ids = tokens(f" {word}", add_special_tokens=False)["input_ids"]
            ids = ids[len(tokens(lead, add_special_tokens=False)["input_ids"]) :]
            asked = tokens(f"{text}\nAnswer:{lead} {tokens.mask_token * len(ids)}.")["input_ids"]
            scores = torch.log_softmax(model(input_ids=torch.tensor([asked])).logits[0], -1)
            places = [place for place, token in enumerate(asked) if token == tokens.mask_token_id]
            assert len(places) == len(ids)
            logs.append(sum(scores[place, token] for place, token in zip(places, ids, strict=True)))
        found.append(torch.stack(logs).logsumexp(0))  # type: ignore[arg-type]
    return torch.log_softmax(torch.stack(found), 0)


@pytest.mark.parametrize("labels", [WORDS, SAME], ids=["words", "lead"])
@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_a_cloze_is_the_label_whose_words_fit(kind: str, labels: Verbalizer, tiny_folder: Any) -> None:
    loaded = opened(tiny_folder(kind), labels)
    assert loaded.backbone.kind.name == "encoder with a mask" and loaded.notes == ()
    data = rows(loaded)
    want = torch.stack([by_hand(loaded, text) for text in TEXTS])  # [N, L]
    with torch.no_grad():
        losses = token_losses(loaded.model, Layout.of(loaded.model, loaded.backbone.pad_id).batch(data))
    right = [n % len(labels.labels) for n in range(len(TEXTS))]
    assert losses.tolist() == pytest.approx([-float(want[n, at]) for n, at in enumerate(right)], abs=1e-9)
    assert [row.targets for row in data] == [1, 1, 1]
    shown = [Record.of("x", label) for label in labels.labels]
    found = likelihoods(loaded.model, data, Candidates.of(loaded.renderer, shown), pad_id=loaded.backbone.pad_id)
    assert found.tolist() == [pytest.approx(one, abs=1e-9) for one in want.tolist()]


def test_the_extra_masks_come_off_the_positions(tiny_folder: Any) -> None:
    for kind in ("bert", "roberta"):  # of RoBERTa's table two rows are never used
        plain = backbone.load(str(tiny_folder(kind)), dtype=torch.float32)
        assert plain.max_positions == tiny.POSITIONS[kind]
        loaded = opened(tiny_folder(kind))
        longest = max(len(word) for own in spell(loaded.renderer, masked=True).words for word in own)
        assert longest > 1 and loaded.backbone.max_positions == tiny.POSITIONS[kind] - longest + 1
        full = " ".join(["x"] * 400)
        row = loaded.renderer.prompt(Record.of(full))
        head, tail = row.ids[:20], row.ids[-8:]
        fits = [*head, *row.ids[20 : loaded.backbone.max_positions - 8], *tail]
        assert len(fits) == loaded.backbone.max_positions
        generate(loaded.model, [fits], stop_ids=loaded.stop_ids, pad_id=1, sampling=Sampling(2))
        with pytest.raises((IndexError, RuntimeError)):
            more = [*head, 20, *fits[20:]]
            generate(loaded.model, [more], stop_ids=loaded.stop_ids, pad_id=1, sampling=Sampling(2))


@torch.no_grad()
@pytest.mark.parametrize("head", ["mean", "cls"])
@pytest.mark.parametrize("kind", tiny.ENCODERS)
def test_an_untuned_head_is_the_nearest_label_text(kind: str, head: str, tiny_folder: Any) -> None:
    loaded = opened(tiny_folder(kind), head=head)
    tokens, model = loaded.backbone.tokenizer, loaded.backbone.model

    def vector(text: str) -> torch.Tensor:
        states = model(input_ids=torch.tensor([tokens(text)["input_ids"]])).last_hidden_state[0]
        pooled = states.mean(0) if head == "mean" else states[0]
        return pooled / pooled.norm()

    texts = [sum(vector(word) * model_norm(word) for word in own) for own in WORDS.words.values()]
    data = rows(loaded)
    batch = Layout.of(loaded.model, loaded.backbone.pad_id).batch(data)
    loaded.model.head.weight.data = loaded.model._start()  # again, in fp64
    found = loaded.model.scores(batch)
    for text, scores in zip(TEXTS, found, strict=True):
        cosines = [float(vector(text + "\n") @ (one / one.norm())) for one in texts]
        assert scores.tolist() == pytest.approx([20 * one for one in cosines], abs=1e-9)
    answers = generate(loaded.model, data, stop_ids=loaded.stop_ids, pad_id=0, sampling=Sampling(5))
    best = [WORDS.labels[at] for at in found.argmax(1).tolist()]
    assert [loaded.renderer.decode(answer.ids) for answer in answers] == best
    assert {answer.finish for answer in answers} == {"stop"}


def model_norm(_: str) -> float:
    """Words of a label count alike."""
    return 1.0


@pytest.mark.parametrize("kind", tiny.ENCODERS)
def test_neighbours_and_padding_never_change_a_row(kind: str, tiny_folder: Any) -> None:
    loaded = opened(tiny_folder(kind))
    data = rows(loaded)
    alone = [row_losses(loaded.model, [row], pad_id=1, batch_tokens=1)[0] for row in data]
    for value in (1, 7):
        together = row_losses(loaded.model, data, pad_id=value, batch_tokens=10_000)
        assert [count for _, count in together] == [1, 1, 1]
        assert [total for total, _ in together] == pytest.approx([total for total, _ in alone], rel=1e-9)


def test_answers_are_labels_whatever_is_drawn(tiny_folder: Any) -> None:
    loaded = opened(tiny_folder("bert"))
    prompt = loaded.renderer.prompt(Record.of("the house is red"))
    given: dict[str, Any] = {"stop_ids": loaded.stop_ids, "pad_id": 0}
    drawn = set()
    for seed in range(30):
        sampling = Sampling(8, temperature=50.0, seed=seed)
        (answer,) = generate(loaded.model, [prompt], sampling=sampling, **given)
        assert answer.ids == list(stream(loaded.model, prompt, sampling=sampling, **given)) and len(answer.ids) == 1
        drawn.add(loaded.renderer.decode(answer.ids))
    assert drawn == {*WORDS.labels}


@pytest.mark.parametrize("head", ["cloze", "tied"])
def test_labels_do_not_tie_in_bf16(tiny_folder: Any, tmp_path: Path, head: str) -> None:
    """Logits of 60 in bf16 are a quarter apart; those of the labels are nearer."""
    shutil.copytree(tiny_folder("bert" if head == "cloze" else "minilm"), tmp_path / "large")
    file = tmp_path / "large" / "model.safetensors"
    weights = load_file(file)
    if head == "cloze":
        weights["cls.predictions.bias"] += 60.0
    else:  # a norm's shift along the embeddings of all words
        (norm,) = [name for name in weights if name.endswith("layer.1.output.LayerNorm.bias")]
        (words,) = [name for name in weights if name.endswith("word_embeddings.weight")]
        weights[norm] += 20.0
        weights[words] = weights[words] * 0.02 + 0.1
    save_file(weights, file, {"format": "pt"})
    loaded = open_target(str(tmp_path / "large"), precision="bf16", choosing=Choosing(WORDS, "cloze"))
    assert loaded.backbone.model.config.label_head == head
    with torch.no_grad():
        batch = Layout.of(loaded.model, loaded.backbone.pad_id).batch(rows(loaded))
        assert loaded.model._logits(batch).abs().median() > 30
        found = loaded.model.scores(batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert (loaded.model.scores(batch) - found).abs().max() < 0.1
        steps = loaded.model._logits(batch)
    assert (steps != steps.bfloat16().float()).float().mean() > 0.9
    assert all(len({round(one, 4) for one in row}) == len(row) for row in found.tolist())


def test_what_a_row_says_is_no_mask(tiny_folder: Any) -> None:
    loaded = opened(tiny_folder("bert"))
    row = loaded.renderer.prompt(Record.of("Is [MASK] a mask?", input="[SEP] [CLS]"))
    tokens = loaded.backbone.tokenizer
    assert [row.ids.count(number) for number in (tokens.mask_token_id, 2, 3)] == [1, 1, 1]


@torch.no_grad()
def test_word_embeddings_stand_in_for_a_head_that_is_missing(tiny_folder: Any) -> None:
    loaded = opened(tiny_folder("minilm"), head="cloze")
    assert loaded.notes == (
        f"'{tiny_folder('minilm')}' has no masked-LM head: its word embeddings stand in for one, untrained for that",
    )
    tokens, model = loaded.backbone.tokenizer, loaded.backbone.model
    ids = tokens("the house is red\nAnswer: [MASK].")["input_ids"]
    states = model(input_ids=torch.tensor([ids])).last_hidden_state[0, ids.index(tokens.mask_token_id)]
    logits = model.get_input_embeddings().weight @ states
    red, negative = (logits[tokens.convert_tokens_to_ids(word)] for word in ("red", "negative"))
    two = opened(tiny_folder("minilm"), Verbalizer({"good": ("red",), "bad": ("negative",)}), "cloze")
    batch = Layout.of(two.model, 0).batch([two.renderer.render(Record.of("the house is red", "good"))])
    scores = two.model.scores(batch)[0]
    assert float(scores[0] - scores[1]) == pytest.approx(float(red - negative), abs=1e-9)


# -- families: nothing of ours knows them by name -------------------------------------------------------------------

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
DISTIL = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}
FAMILIES: dict[str, dict[str, Any]] = {
    "distilbert": DISTIL,
    "albert": SIZES | {"embedding_size": 16},
    "electra": SIZES | {"embedding_size": 16},
    "mpnet": SIZES,
    "deberta-v2": SIZES | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "modernbert": SIZES | {"global_attn_every_n_layers": 2, "pad_token_id": 0},
    "xlm-roberta": SIZES | {"pad_token_id": 1},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family: str, tmp_path: Path) -> None:
    """Both ways, with and without a masked-LM head in the file, and LoRA and IA3 in each."""
    import transformers

    tokens = tiny.tokenizer("bert")
    config = transformers.AutoConfig.for_model(
        family, vocab_size=len(tokens), max_position_embeddings=64, **FAMILIES[family]
    )
    whole = transformers.AutoModelForMaskedLM.from_config(config)
    whole.save_pretrained(tmp_path / "whole")
    whole.base_model.save_pretrained(tmp_path / "bare")
    for name in ("whole", "bare"):
        tokens.save_pretrained(tmp_path / name)
    found = {name: opened(tmp_path / name) for name in ("whole", "bare")}
    assert [one.backbone.kind.name for one in found.values()] == ["encoder with a mask", "encoder"]
    for name, head in (("whole", "auto"), ("whole", "cls"), ("bare", "auto")):
        for method in ("lora", "ia3"):
            loaded = opened(tmp_path / name, head=head)
            options = {"rank": 2, "alpha": 4, "dropout": 0.0} | {"target": "all-linear" if method == "lora" else "auto"}
            loaded.model.model = METHODS[method].attach(loaded.backbone.model, options, 0)
            loss = token_losses(loaded.model, Layout.of(loaded.model, 0).batch(rows(loaded))).sum()
            loss.backward()
            moved = [part.grad is not None for part in loaded.model.parameters() if part.requires_grad]
            assert torch.isfinite(loss) and all(moved)
    if family in ("albert", "electra"):
        with pytest.raises(InputError) as caught:
            opened(tmp_path / "bare", head="cloze")
        assert str(caught.value) == (
            f"encoder.head: '{tmp_path / 'bare'}' has no masked-LM head, and its states can't be compared with its "
            "word embeddings (got 32 and 16 numbers; want mean or cls)"
        )


# -- what is refused -------------------------------------------------------------------------------------------------


def refused(run: Any, *given: Any, **more: Any) -> str:
    with pytest.raises(InputError) as caught:
        run(*given, **more)
    return str(caught.value)


def test_a_head_that_is_half_there(tmp_path: Path) -> None:
    folder = tiny.folder("bert", tmp_path)
    file = folder / "model.safetensors"
    weights = load_file(file)
    del weights["cls.predictions.transform.dense.bias"]
    save_file(weights, file, {"format": "pt"})
    assert refused(opened, folder) == f"model: '{folder}': the weights lack cls.predictions.transform.dense.bias"


def test_words_that_the_tokenizer_can_not_write_or_tell_apart(tiny_folder: Any) -> None:
    odd = Verbalizer({"good": ("😀",), "bad": ("negative",)})
    assert refused(opened, tiny_folder("bert"), odd) == (
        "verbalizer: good: '😀' holds what this tokenizer has no token for (it reads [UNK]; want other words, or "
        "encoder.head=mean)"
    )
    same = Verbalizer({"good": ("Red",), "bad": ("red",)})
    assert refused(opened, tiny_folder("bert"), same) == (
        "verbalizer: 'red' and 'Red' are the same for this tokenizer (red)"
    )
    assert opened(tiny_folder("bert"), odd, "mean").renderer.labels == odd


def test_templates_and_their_masks(tiny_folder: Any, tmp_path: Path) -> None:
    two = tmp_path / "two.jinja"
    two.write_text("{% for m in messages %}{{ m.content }}{% endfor %}{{ mask_token }} or {{ mask_token }}")
    given: dict[str, Any] = {"precision": "fp32", "choosing": Choosing(WORDS)}
    message = refused(open_target, str(tiny_folder("bert")), template=str(two), **given)
    assert message == (
        "template: 'two.jinja' has 2 masks in its prompt (want one {{ mask_token }} where the answer stands)"
    )
    plain = open_target(str(tiny_folder("bert")), template="plain", **given)  # at the end where none is named
    row = plain.renderer.prompt(Record.of("Is it red?"))
    assert plain.backbone.tokenizer.decode(row.ids) == "[CLS] is it red? [MASK] [SEP]"
    message = refused(open_target, str(tiny_folder("qwen")), template="cloze", precision="fp32")
    assert message == "template: cloze is for masked encoders that answer at a mask (want another template)"


def test_other_models_have_no_head_to_choose(tiny_folder: Any) -> None:
    for kind, name in (("qwen", "decoder"), ("t5", "encoder-decoder")):
        message = refused(backbone.load, str(tiny_folder(kind)), dtype=torch.float32, head="mean")
        want = f"encoder.head: '{tiny_folder(kind)}' is no masked encoder but an {name} (leave it away)"
        assert message == want.replace("an decoder", "a decoder")


def test_a_tokenizer_that_puts_more_around_a_text(tmp_path: Path) -> None:
    folder = tiny.folder("bert", tmp_path)
    file = folder / "tokenizer.json"
    state = json.loads(file.read_text())
    state["post_processor"]["single"].insert(0, {"SpecialToken": {"id": "[CLS]", "type_id": 0}})
    file.write_text(json.dumps(state))
    assert refused(opened, folder) == (
        f"model: '{folder}': the tokenizer puts more around a text than its start and end (it makes '[CLS] [CLS] a "
        "[SEP]' of 'a')"
    )
