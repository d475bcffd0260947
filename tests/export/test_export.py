"""`export`: the folder that other programs serve asks in the run's ids and answers as the run does (oracle 9)."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import instructrec
import tiny
from instructrec import cli
from instructrec.config import ExportSettings
from instructrec.data.records import Record, Turn
from instructrec.errors import EnvironmentFault, InputError
from instructrec.evaluation import pictures, report
from instructrec.export.merged import chat_template, export_run
from instructrec.inference.engine import Sampling, generate
from instructrec.inference.loading import Loaded, open_target
from instructrec.models.reading import logits_at, repeat
from instructrec.prompts.template import Renderer

WORDS = "red blue green house lamp order parcel noon hot cold".split()
TASKS = {"upper": str.upper, "title": str.title, "double": lambda word: word + word, "first": lambda word: word[0]}
ROWS = [
    {"instruction": f"Please {task} it", "input": word, "output": make(word), "task": task}
    for task, make in TASKS.items()
    for word in WORDS
]
PROBES = [
    Record.of(f"Please {task} it{end}", input=word, answer=word)
    for task in TASKS
    for word in WORDS
    for end in ("", " now", "!")
][:100]
SYSTEM = 'Be "kind".\n{{ x }} {% y %} 你好'
SETTINGS = ExportSettings(precision="fp32", threads=1)
Tune = Callable[..., Path]


@pytest.fixture(scope="module", autouse=True)
def undrawn() -> Iterator[None]:
    """Pictures and the report take most of the time of a short run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "save_loss_png", lambda *_: None)
        patch.setattr(report, "write_report", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Any) -> Tune:
    """A function of the kind and of settings: the run folder, made once."""
    made: dict[str, Path] = {}

    def get(kind: str, **settings: Any) -> Path:
        name = kind + json.dumps(settings)
        if name not in made:
            given = {"max_steps": 3, "batch_rows": 4, "held_out": "none", "tensorboard": False, "learning_rate": 1e-2}
            out = tmp_path_factory.mktemp("runs") / "run"
            common = {"model": str(tiny_folder(kind)), "out": str(out), "precision": "fp32", "threads": 1}
            made[name] = instructrec.tune(ROWS, **(common | given | settings)).folder
        return made[name]

    return get


def opened(target: Path, **options: Any) -> Loaded:
    return open_target(str(target), precision="fp32", **options)


def logits(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.no_grad(), logits_at(model, torch.arange(len(ids))):
        found: torch.Tensor = model(input_ids=torch.tensor([ids]), use_cache=False).logits
    return found[0]


def messages(record: Record) -> list[dict[str, str]]:
    """As any program would write them; the last two are for templates that know an input apart."""
    parts = ({"content": turn.content, "instruction": turn.text, "input": turn.input} for turn in record.turns)
    return [{"role": turn.role} | part for turn, part in zip(record.turns, parts, strict=True)]


CASES = [
    *((kind, {"strokes": strokes}) for kind in ("qwen", "gemma") for strokes in (1, 2, 3)),
    ("qwen", {"strokes": 2, "deep": True, "system": SYSTEM}),
    ("gemma", {"strokes": 3, "system": SYSTEM}),
    ("gemma", {"strokes": 2, "template": "alpaca"}),
    ("llama", {"strokes": 1}),
    ("qwen", {"strokes": 1, "template": "plain"}),
]


@pytest.mark.parametrize(("kind", "settings"), CASES, ids=[f"{kind}-{settings}" for kind, settings in CASES])
def test_merge_and_template_equal_the_adapter_on_a_hundred_rows(
    tuned: Tune, tmp_path: Path, kind: str, settings: dict[str, Any], capsys: Any
) -> None:
    run, out = tuned(kind, **settings), tmp_path / "model"
    assert export_run(str(run), str(out), SETTINGS) == out
    assert f"{out}: checked on 40 rows, " in " ".join(capsys.readouterr().out.split())
    ours = opened(run)
    tokenizer, model = AutoTokenizer.from_pretrained(out), AutoModelForCausalLM.from_pretrained(out).eval()
    assert "lora" not in " ".join(name for name, _ in model.named_parameters())
    asked = []
    for record in PROBES:
        row = repeat(ours.renderer.render(record), settings["strokes"])
        prompt = row.ids[: row.prompt_end]
        given = tokenizer.apply_chat_template(messages(record.prompt), add_generation_prompt=True)
        assert given["input_ids"] == prompt, record
        asked.append(prompt)
        mine, theirs = logits(ours.decoder, row.ids), logits(model, row.ids)
        assert float((mine - theirs).abs().max()) <= 1e-5 * float(mine.abs().max())
    assert len(asked) == 100


@pytest.mark.parametrize(("kind", "strokes"), [("qwen", 2), ("gemma", 2)])
def test_answers_of_plain_transformers_and_of_run_are_those_of_the_adapter(
    tuned: Tune, tmp_path: Path, kind: str, strokes: int, capsys: Any
) -> None:
    run, out = tuned(kind, strokes=strokes, max_steps=30), tmp_path / "model"
    export_run(str(run), str(out), SETTINGS)
    ours = opened(run)
    tokenizer, model = AutoTokenizer.from_pretrained(out), AutoModelForCausalLM.from_pretrained(out).eval()
    ends = model.generation_config.eos_token_id
    assert sorted(ends) == ours.stop_ids and ours.renderer.end_id in ends
    prompts = [ours.renderer.prompt(record) for record in PROBES[:12]]
    given: dict[str, Any] = {"stop_ids": ours.stop_ids, "pad_id": ours.backbone.pad_id}
    wanted = generate(ours.model, prompts, sampling=Sampling(max_new_tokens=12), **given)
    assert "stop" in {answer.finish for answer in wanted}
    for record, answer in zip(PROBES, wanted, strict=False):
        text = tokenizer.apply_chat_template(messages(record.prompt), add_generation_prompt=True, return_tensors="pt")
        found = model.generate(**text, max_new_tokens=12, do_sample=False)[0, text["input_ids"].shape[1] :].tolist()
        assert [token for token in found if token not in ours.stop_ids] == answer.ids
        assert (found[-1] in ours.stop_ids) == (answer.finish == "stop")
    assistant = instructrec.Assistant(str(run), precision="fp32", max_new_tokens=12)
    capsys.readouterr()
    options = ["--precision", "fp32", "--max-new-tokens", "12"]
    assert cli.main(["run", str(out), "Please upper it", "--input", "red", *options]) == 0
    assert capsys.readouterr().out == assistant("Please upper it", "red") + "\n"


@pytest.mark.parametrize("kind", ["qwen", "gemma"])
@pytest.mark.parametrize("strokes", [1, 2, 3])
def test_conversations_are_asked_in_the_runs_ids(tuned: Tune, tmp_path: Path, kind: str, strokes: int) -> None:
    run, out = tuned(kind, strokes=strokes), tmp_path / "model"
    export_run(str(run), str(out), SETTINGS)
    ours, tokenizer = opened(run), AutoTokenizer.from_pretrained(out)
    exported = opened(out)
    talk = (Turn("user", "Say hot"), Turn("assistant", "The answer is cold"), Turn("user", "And  now?"))
    for turns in (talk, (Turn("system", "Be short"), *talk), (*talk, Turn("assistant", "a b"), Turn("user", "你好"))):
        wanted = repeat(ours.renderer.prompt(Record(turns)), strokes).ids
        given = tokenizer.apply_chat_template(messages(Record(turns)), add_generation_prompt=True)["input_ids"]
        assert given == wanted == exported.renderer.prompt(Record(turns)).ids


def test_fewer_readings_than_tuned_can_be_exported(tuned: Tune, tmp_path: Path) -> None:
    run = tuned("qwen", strokes=2, prior="frozen")
    export_run(str(run), str(tmp_path / "once"), ExportSettings(precision="fp32", strokes=1))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "once")
    ids = tokenizer.apply_chat_template(messages(PROBES[0].prompt), add_generation_prompt=True)["input_ids"]
    assert ids == opened(run).renderer.prompt(PROBES[0]).ids
    mine = logits(opened(run, strokes=1).decoder, ids)
    assert float((mine - logits(AutoModelForCausalLM.from_pretrained(tmp_path / "once"), ids)).abs().max()) <= 1e-4


def test_a_template_may_begin_with_spaces_and_end_with_a_line(tmp_path: Path) -> None:
    """Blocks take away the spaces before them only where a line begins; a file's last line end does not count."""
    turn = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    sources = [
        "  {% for m in messages %}" + turn + "{% endfor %}\n{% if add_generation_prompt %}<|im_start|>bot {{ 'is' }}\n"
        "{% endif %}\n",
        "\n{% for m in messages %}" + turn + "{% endfor %}{% if add_generation_prompt %}<|im_start|>bot:{% endif %}\n",
        "{{ 'x' }}\n{% for m in messages %}" + turn + "  {% endfor %}{{ '<|im_start|>' if add_generation_prompt }}\n",
    ]
    tokenizer = tiny.tokenizer("qwen")
    for source in sources:
        for system in ("", SYSTEM):
            renderer = Renderer(tokenizer, source, name="mine", system=system)
            record = Record.of("Say hot")
            for strokes in (1,) if source[0] == "\n" else (1, 2, 3):  # line ends of two readings would be one token
                text = tokenizer.apply_chat_template(
                    messages(record),
                    chat_template=chat_template(renderer, strokes),
                    add_generation_prompt=True,
                    tokenize=False,
                )
                ids = tokenizer(text, add_special_tokens=False)["input_ids"]
                assert ids == repeat(renderer.prompt(record), strokes).ids, (source, strokes)


REFUSED = [
    ({"strokes": 2, "prior": "frozen"}, "2 times, prior=frozen"),
    ({"strokes": 2, "memory": "sink+last"}, "2 times, memory=sink+last"),
    ({"strokes": 3, "direction": "bidirectional"}, "3 times, direction=bidirectional"),
    ({"strokes": 2, "mix": "gated", "prior": "frozen"}, "2 times, prior=frozen, mix=gated"),
    ({"strokes": 2, "stroke_adapters": "separate"}, "2 times, stroke_adapters=separate"),
    ({"slots": 2}, "once, 2 slots"),
]


@pytest.mark.parametrize(("settings", "shown"), REFUSED, ids=[shown for _, shown in REFUSED])
def test_plans_that_no_template_can_say_are_refused(
    tuned: Tune, tmp_path: Path, settings: dict[str, Any], shown: str
) -> None:
    run = tuned("qwen", **settings)
    message = (
        f"export: no other program reads by this plan (read {shown}); want tuned, shared, causal, concat, memory=all "
        "and no slots, or --strokes 1"
    )
    assert refused(run, tmp_path / "model") == message


def test_templates_without_a_header_are_refused(tuned: Tune, tmp_path: Path) -> None:
    message = (
        "export: this prompt template puts nothing between instruction and answer, so reading again can't be written "
        "as a chat template (want --strokes 1)"
    )
    assert refused(tuned("llama", strokes=2), tmp_path / "model") == message
    assert refused(tuned("qwen", strokes=2, template="plain"), tmp_path / "model") == message


def test_templates_whose_ids_would_differ_are_refused(tuned: Tune, tmp_path: Path) -> None:
    """Both tokenizers cut a text that is written twice in another way than the text once and once more."""
    message = "export: this prompt can't be written as a chat template (its ids would differ)"
    assert refused(tuned("gpt2", strokes=2), tmp_path / "model") == message
    assert refused(tuned("llama", strokes=2, template="alpaca"), tmp_path / "model") == message


def refused(run: Path, out: Path, settings: ExportSettings = SETTINGS) -> str:
    """The message; and nothing is left."""
    before = sorted(out.parent.iterdir())
    with pytest.raises(InputError) as caught:
        export_run(str(run), str(out), settings)
    assert sorted(out.parent.iterdir()) == before
    return str(caught.value)


def test_what_is_no_finished_run_is_refused_before_anything_is_loaded(tuned: Tune, tmp_path: Path) -> None:
    assert (
        refused(tmp_path / "gone", tmp_path / "m") == f"export: {tmp_path / 'gone'} is not the folder of a finished run"
    )
    assert refused(Path("smollm2-135m"), tmp_path / "m") == "export: smollm2-135m is not the folder of a finished run"
    run = tuned("qwen", strokes=2)
    assert refused(run, tmp_path) == f"export: {tmp_path} is there already (want a new folder)"
    full = tuned("qwen", method="full", strokes=2)
    assert refused(full, tmp_path / "m") == f"export: method 'full' has nothing to merge: {full} is a model folder"


def test_damaged_runs_are_refused_and_a_failure_leaves_nothing(
    tuned: Tune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    whole, run = tuned("qwen", strokes=2), tmp_path / "run"
    shutil.copytree(whole, run)
    file = run / "adapter_model.safetensors"
    weights = load_file(file)
    name = sorted(weights)[0]
    save_file(weights | {name: torch.full_like(weights[name], float("nan"))}, file)
    assert refused(run, tmp_path / "m") == f"{file}: {name} holds a value that is not finite"
    save_file(weights, file)
    (run / "examples.json").unlink()
    want = f"{run / 'examples.json'}: missing: without rows the exported model could not be checked"
    assert refused(run, tmp_path / "m") == want

    def full_disk(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    tokenizer = type(opened(whole).backbone.tokenizer)
    with monkeypatch.context() as patch, pytest.raises(EnvironmentFault) as caught:
        patch.setattr(tokenizer, "save_pretrained", full_disk)
        export_run(str(whole), str(tmp_path / "m"), SETTINGS)
    assert str(caught.value) == f"export: {tmp_path / 'm'} could not be written: No space left on device"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_a_merge_that_changes_the_answers_is_refused(
    tuned: Tune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from instructrec.models.methods.lora import Lora

    merge = Lora.merge

    def spoilt(self: Any, model: Any) -> Any:
        merged = merge(self, model)
        with torch.no_grad():
            next(merged.parameters()).mul_(1.01)
        return merged

    monkeypatch.setattr(Lora, "merge", spoilt)
    message = refused(tuned("qwen", strokes=2), tmp_path / "m")
    assert message.startswith("export: the merged model differs (") and message.endswith("try --precision fp32")
