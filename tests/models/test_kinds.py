"""Kinds of backbone: encoder-decoders give the loss and the answers that `transformers` gives, whatever stands around a
row, and what they can't do is refused."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

import tiny
from instructrec.data.records import Record
from instructrec.errors import InputError
from instructrec.inference.embedding import mean_states
from instructrec.inference.engine import Sampling, generate, stream
from instructrec.inference.loading import open_target, renderer_for
from instructrec.inference.ranking import Candidates, likelihoods
from instructrec.models import backbone
from instructrec.models.kinds import kind_of
from instructrec.models.kinds.encoder_decoder import starts
from instructrec.models.reading import Reading, ReadingPlan, repeat
from instructrec.prompts.choose import make_renderer
from instructrec.prompts.lengths import fit
from instructrec.prompts.template import Rendered
from instructrec.training.batching import Layout
from instructrec.training.loss import row_losses, token_losses


def bart() -> Any:
    """Absolute positions that are learned, and a first token that is forced."""
    from transformers import BartConfig, BartForConditionalGeneration

    halves = [("layers", 2), ("attention_heads", 4), ("ffn_dim", 64)]
    half: dict[str, Any] = {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in halves}
    config = BartConfig(
        vocab_size=300, d_model=32, max_position_embeddings=96, bos_token_id=0, pad_token_id=1, eos_token_id=2,
        decoder_start_token_id=2, forced_bos_token_id=0, forced_eos_token_id=None, dropout=0.0, **half,
    )  # fmt: skip
    return BartForConditionalGeneration(config)


def model(name: str) -> Any:
    """In fp64, so that bounds can be close."""
    if name != "bart":
        return tiny.model(name, dtype=torch.float64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = bart()
        with torch.no_grad():
            for weight in made.parameters():
                if weight.dim() > 1:
                    weight.normal_(0.0, 0.2)
    return made.double().eval()


def rows(end: int, count: int = 6) -> list[Rendered]:
    """Prompts and answers of unequal lengths; the end token stands behind each."""
    draw = random.Random(3)
    made = []
    for _ in range(count):
        prompt = [draw.randrange(5, 290) for _ in range(draw.randrange(2, 20))] + [end]
        answer = [draw.randrange(5, 290) for _ in range(draw.randrange(1, 15))] + [end]
        made.append(
            Rendered(prompt + answer, [False] * len(prompt) + [True] * len(answer), len(prompt) - 1, len(prompt))
        )
    return made


def padded(parts: list[list[int]], value: int) -> torch.Tensor:
    return pad_sequence([torch.tensor(part) for part in parts], batch_first=True, padding_value=value)


PAIRS = (*tiny.PAIRS, "bart")


@pytest.fixture(params=PAIRS)
def pair(request: pytest.FixtureRequest) -> Any:
    return model(str(request.param))


@torch.no_grad()
def test_the_loss_is_the_models_own(pair: Any) -> None:
    config = pair.config
    data = rows(config.eos_token_id)
    begin = starts(pair)[1:]  # BART's labels begin with <s>
    prompts = padded([row.ids[: row.prompt_end] for row in data], config.pad_token_id)
    mask = padded([[1] * row.prompt_end for row in data], 0)
    labels = padded([begin + row.ids[row.prompt_end :] for row in data], -100)
    logits = pair(input_ids=prompts, attention_mask=mask, labels=labels).logits
    labels[:, : len(begin)] = -100  # what is forced is not learned
    want = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    if not begin:
        assert float(pair(input_ids=prompts, attention_mask=mask, labels=labels).loss - want) == 0.0
    losses = token_losses(pair, Layout.of(pair, config.pad_token_id).batch(data))
    assert len(losses) == int((labels != -100).sum())
    assert abs(float(losses.mean() - want)) <= 1e-10


@torch.no_grad()
def test_answers_are_those_of_the_library(pair: Any) -> None:
    config = pair.config
    data = rows(config.eos_token_id)
    prompts = padded([row.ids[: row.prompt_end] for row in data], config.pad_token_id)
    mask = padded([[1] * row.prompt_end for row in data], 0)
    pad, end = config.pad_token_id, config.eos_token_id
    given: dict[str, Any] = {"do_sample": False, "max_new_tokens": 20, "suppress_tokens": [pad]}
    wanted = pair.generate(input_ids=prompts, attention_mask=mask, **given)[:, len(starts(pair)) :].tolist()
    sampling = Sampling(20 - len(starts(pair)) + 1)
    found = generate(pair, data, stop_ids=[end], pad_id=pad, sampling=sampling)
    for want, answer, row in zip(wanted, found, data, strict=True):
        assert answer.ids == (want[: want.index(end)] if end in want else want)
        assert answer.finish == ("stop" if end in want else "length")
        assert answer.ids == list(stream(pair, row, stop_ids=[end], pad_id=pad, sampling=sampling))


def test_padding_is_never_generated() -> None:
    marian = tiny.model("marian")
    pad, end = marian.config.pad_token_id, marian.config.eos_token_id
    with torch.no_grad():
        marian.final_logits_bias[0, pad] = 1e6
    (answer,) = generate(marian, rows(end, 1), stop_ids=[end], pad_id=pad, sampling=Sampling(8))
    assert answer.ids and pad not in answer.ids


def test_the_encoder_reads_once() -> None:
    t5 = tiny.model("t5")
    calls: list[int] = []
    t5.get_encoder().register_forward_hook(lambda *_: calls.append(1))
    data = rows(1, 4)
    answers = generate(t5, data, stop_ids=[1], pad_id=0, sampling=Sampling(9))
    assert max(len(answer.ids) for answer in answers) >= 5 and len(calls) == 1


def test_neighbours_and_padding_never_change_a_row(pair: Any) -> None:
    pad, end = pair.config.pad_token_id, pair.config.eos_token_id
    data = rows(end)
    alone = [row_losses(pair, [row], pad_id=pad, batch_tokens=1)[0] for row in data]
    for value in (pad, 7):
        together = row_losses(pair, data, pad_id=value, batch_tokens=10_000)
        assert [count for _, count in together] == [len(row.ids) - row.prompt_end for row in data]
        assert [total for total, _ in together] == pytest.approx([total for total, _ in alone], rel=1e-9)


@torch.no_grad()
def test_reading_twice_is_the_instruction_twice(pair: Any) -> None:
    pad, end = pair.config.pad_token_id, pair.config.eos_token_id
    data = rows(end)
    twice = []
    for row in data:
        x, answer = row.ids[: row.instruction_end], row.ids[row.prompt_end :]
        ids = [*x, *x, end, *answer]
        flags = [False] * (len(ids) - len(answer)) + [True] * len(answer)
        twice.append(Rendered(ids, flags, 2 * len(x), 2 * len(x) + 1))
        assert repeat(row, 2).ids == ids
    reading = Reading(pair, ReadingPlan(strokes=(2,))).eval()
    assert kind_of(reading) is kind_of(pair)
    given: dict[str, Any] = {"pad_id": pad, "batch_tokens": 4096}
    assert row_losses(reading, data, **given) == row_losses(pair, twice, **given)
    assert row_losses(reading, data, **given) != row_losses(pair, data, **given)
    asked: dict[str, Any] = {"stop_ids": [end], "pad_id": pad, "sampling": Sampling(6)}
    assert generate(reading, data, **asked) == generate(pair, twice, **asked)


@torch.no_grad()
def test_candidates_score_what_one_pass_for_each_gives(pair: Any) -> None:
    """Also where they begin alike: that part is the decoder's, since an encoder can't be asked half an answer."""
    pad, end = pair.config.pad_token_id, pair.config.eos_token_id
    data = rows(end)
    heads = ((7,), (7, 8), (7, 8, 9, 10), (11, 12), (11, 13), (11,))
    for candidates in (Candidates((), heads), Candidates((21, 22), heads)):
        want = np.zeros((len(data), len(heads)))
        for place, row in enumerate(data):
            for number, ids in enumerate(heads):
                answer = [*starts(pair), *candidates.lead, *ids]
                prompt = torch.tensor([row.ids[: row.prompt_end]])
                logs = torch.log_softmax(pair(input_ids=prompt, decoder_input_ids=torch.tensor([answer])).logits[0], -1)
                first = len(answer) - len(ids)
                want[place, number] = sum(logs[at - 1, answer[at]] for at in range(first, len(answer)))
        for options in ({}, {"batch_rows": 2}, {"batch_tokens": 30}):
            found = likelihoods(pair, data, candidates, pad_id=pad, **options)
            assert np.abs(found - want).max() < 1e-9


@torch.no_grad()
def test_a_text_as_a_vector_is_what_the_encoder_makes_of_it(tiny_folder: Any) -> None:
    for name in tiny.PAIRS:
        loaded = open_target(str(tiny_folder(name)), precision="fp32")
        ids = loaded.backbone.tokenizer("The lamp is broken.", add_special_tokens=False)["input_ids"]
        states = loaded.backbone.model.get_encoder()(input_ids=torch.tensor([ids])).last_hidden_state[0]
        (vector, _) = mean_states(loaded, ["The lamp is broken.", "a longer text than the first of these two is"])
        assert np.abs(vector - states.double().mean(0).numpy()).max() < 1e-5


# -- what is refused -------------------------------------------------------------------------------------------------


def refused(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        backbone.load(str(folder), dtype=torch.float32)
    return str(caught.value)


@pytest.fixture
def copied(tmp_path: Path) -> Any:
    def copy(name: str) -> Path:
        return tiny.folder(name, tmp_path / name)

    return copy


def test_a_tokenizer_with_language_codes(copied: Any) -> None:
    folder = copied("t5")
    file = folder / "tokenizer.json"
    state = json.loads(file.read_text())
    state["post_processor"]["single"].insert(0, {"SpecialToken": {"id": "<unk>", "type_id": 0}})
    state["post_processor"]["special_tokens"]["<unk>"] = {"id": "<unk>", "ids": [2], "tokens": ["<unk>"]}
    file.write_text(json.dumps(state))
    assert refused(folder) == (
        f"model: '{folder}': the tokenizer puts more around a text than its start and end (it makes '<unk> ▁a </s>' of "
        "'a'); this version does not know language codes"
    )


def test_marian_with_its_two_sentencepiece_models_alone(copied: Any) -> None:
    folder = copied("marian")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": "MarianTokenizer"}))
    assert backbone.load(str(folder), dtype=torch.float32).tokenizer.is_fast  # not the class that is named
    (folder / "tokenizer.json").unlink()
    for name in ("source.spm", "target.spm"):
        (folder / name).write_bytes(b"")
    assert refused(folder) == (
        f"model: '{folder}' has no tokenizer.json, only source.spm and target.spm (a fast tokenizer is needed; "
        "docs/kinds.md says how to come by one)"
    )


def test_an_answer_that_nobody_knows_how_to_begin(copied: Any) -> None:
    folder = copied("t5")
    for name in ("config.json", "generation_config.json"):
        values = json.loads((folder / name).read_text())
        values.pop("decoder_start_token_id", None)
        (folder / name).write_text(json.dumps(values))
    assert refused(folder) == (f"model: '{folder}' lacks decoder_start_token_id: nobody knows how an answer begins")


def test_a_gguf_of_t5(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gguf

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file, words = tmp_path / "t5.gguf", list(tiny.tokenizer("t5").get_vocab())
    out = gguf.GGUFWriter(file, "t5")
    out.add_block_count(2)
    out.add_embedding_length(32)
    out.add_tokenizer_model("t5")
    out.add_token_list(words)
    out.add_token_scores([0.0] * len(words))
    out.add_tensor("token_embd.weight", np.zeros((len(words), 32), dtype=np.float32))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    assert refused(file) == "model: t5.gguf holds an encoder-decoder (t5); GGUF is read for decoders only"


# -- the renderer ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", tiny.PAIRS)
def test_an_encoder_is_fed_what_its_tokenizer_makes_of_a_text(name: str, tiny_folder: Any, tmp_path: Path) -> None:
    """In our default template; every template but the model's own ends its prompt with the end token, once."""
    base = backbone.load(str(tiny_folder(name)), dtype=torch.float32)
    record = Record.of("Translate into French", "la maison", input="the house is </s> red")
    row = renderer_for(base, "auto", "").render(record)
    end = base.tokenizer.eos_token_id
    plain = Record.of("Translate into French", "la maison", input="the house")
    made = renderer_for(base, "auto", "")
    assert made.prompt_ids(plain) == base.tokenizer("Translate into French\nthe house")["input_ids"]
    mine = tmp_path / "mine.jinja"
    mine.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}\n")
    for template in ("auto", "alpaca", str(mine)):
        row = renderer_for(base, template, "").render(record)
        assert [place for place, token in enumerate(row.ids) if token == end] == [row.prompt_end - 1, len(row.ids) - 1]
        assert row.supervised == [place >= row.prompt_end for place in range(len(row.ids))]
        assert made.decode(row.ids[row.prompt_end :]) == "la maison"
        assert row.instruction_end < row.prompt_end


def test_answers_that_the_tokenizer_can_not_write(tmp_path: Path, capsys: Any) -> None:
    from transformers import T5Tokenizer

    words = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((letter, -3.0) for letter in "abcdehlot")]
    tokens = T5Tokenizer(vocab=words, extra_ids=0)
    records = [Record.of("hello", answer) for answer in ("cold", "c{ld", "房子")]
    fitted = fit(records, make_renderer(tokens, closed=True, default="plain"), 100)
    assert fitted.unknown == (1, 2)
    want = "2 answers hold characters that this tokenizer does not know: <memory>, <memory>"
    assert fitted.warning(records) == want
    clean = fit(records[:1], make_renderer(tokens, closed=True, default="plain"), 100)
    assert clean.unknown == () and clean.warning(records) == ""
