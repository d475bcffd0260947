"""docs/matrix.md: the page is what the registries and checks say; every `no` is met where a user meets it, and every
`yes` is done, for every registered method on every kind of backbone."""

from __future__ import annotations

import importlib.util
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from run_files import refused
from safetensors.torch import load_file
from stops import signalled

import instructrec
import learning
import tiny
from instructrec.config import ExportSettings, TuneSettings
from instructrec.errors import InputError
from instructrec.evaluation import pictures, report
from instructrec.export.merged import export_run
from instructrec.inference.assistant import Assistant
from instructrec.models import methods
from instructrec.models.kinds import KINDS
from instructrec.models.methods import METHODS, Method
from instructrec.prompts.template import Rendered
from instructrec.recipes.reading import behind, plan_of
from instructrec.recipes.tune import Interrupted, tune
from instructrec.training.loop import Hooks
from instructrec.training.loss import row_losses
from instructrec.training.monitor import Monitor
from instructrec.training.processes import together
from instructrec.training.sharding import shard
from ranks import Ranks

TINY = {"decoder": "qwen", "encoder-decoder": "t5", "encoder": "minilm", "encoder with a mask": "bert"}  # of each kind
OPPOSITES = {"hot": "cold", "red": "green", "big": "small", "day": "night"}
ROWS = [{"instruction": "Write the opposite", "input": one, "output": other} for one, other in OPPOSITES.items()]
LABEL_ROWS = [row | {"input": f"{noun} {row['input']}"} for noun in ("the", "a", "one") for row in ROWS]
QUICK: dict[str, Any] = {
    "precision": "fp32", "threads": 1, "tensorboard": False, "held_out": "none", "max_steps": 3, "batch_rows": 2,
    "epochs": 2.0, "learning_rate": 1e-2,
}  # fmt: skip


def _page() -> ModuleType:
    file = Path(__file__).parents[2] / "docs" / "make_matrix.py"
    spec = importlib.util.spec_from_file_location("make_matrix", file)
    assert spec and spec.loader
    sys.modules["make_matrix"] = module = importlib.util.module_from_spec(spec)  # its dataclass asks for it
    spec.loader.exec_module(module)
    return module


MATRIX = _page()
CELLS = [(method, kind) for method in METHODS for kind in MATRIX.KINDS]
POSSIBLE = [(method, kind) for method, kind in CELLS if not MATRIX.verdict(METHODS[method], KINDS[kind])]
PLANS = ("twice", "frozen", "separate", "slots")


def said(method: str, kind: str, *options: str) -> str:
    return str(MATRIX.verdict(METHODS[method], KINDS[kind], *(MATRIX.OPTIONS[name] for name in options)))


def rows_of(kind: str) -> list[dict[str, str]]:
    return LABEL_ROWS if KINDS[kind].chooses else ROWS


def settings_of(*options: str) -> dict[str, Any]:
    return {key: value for name in options for key, value in MATRIX.OPTIONS[name].settings.items()}


@pytest.fixture(scope="module", autouse=True)
def undrawn() -> Iterator[None]:
    """Pictures and the report take most of the time of a short run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "save_loss_png", lambda *_: None)
        patch.setattr(report, "write_report", lambda *_: None)
        yield


@pytest.fixture
def trying(tmp_path: Path, tiny_folder: Any) -> Callable[..., Any]:
    def run(method: str, kind: str, **settings: Any) -> Any:
        given = QUICK | {"out": tmp_path / "run", "model": str(tiny_folder(TINY[kind])), "method": method}
        return tune(rows_of(kind), **(given | settings))

    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Any) -> Callable[[str, str], Path]:
    """A function of method and kind: a run in bf16 with recomputed activations that was stopped and went on."""
    made: dict[tuple[str, str], Path] = {}

    def get(method: str, kind: str) -> Path:
        if (method, kind) not in made:
            folder = tmp_path_factory.mktemp("run") / method
            given = QUICK | {"model": str(tiny_folder(TINY[kind])), "method": method, "out": folder}
            given |= settings_of("bf16", "checkpointing")
            with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
                signalled(patch, 2, signal.SIGTERM)
                tune(rows_of(kind), **given)
            assert tune(rows_of(kind), resume=True, **given).steps == 3
            made[method, kind] = folder
        return made[method, kind]

    return get


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All that a run has learned, without its checkpoints."""
    files = [file for file in folder.rglob("*.safetensors") if "checkpoints" not in file.parts]
    return {f"{file.name} {key}": value for file in files for key, value in load_file(file).items()}


# -- the page ----------------------------------------------------------------------------------------------------------


def test_the_page_is_fresh() -> None:
    assert MATRIX.PAGE.read_text(encoding="utf-8") == MATRIX.page(), "run `python docs/make_matrix.py`"


def test_a_new_method_is_on_the_page_by_itself() -> None:
    class Plain(Method):
        name, reference, learning_rate, switchable = "plain", "this test", 1e-2, False

    methods.register(Plain())
    try:
        page = MATRIX.page()
    finally:
        del METHODS["plain"]
    (line,) = [line for line in page.splitlines() if line.startswith("| `plain` | decoder |")]
    cells = dict(zip(MATRIX.OPTIONS, line.split(" | ")[3:], strict=True))
    assert cells["twice"] == cells["fsdp"] == "yes"
    assert all(cells[name].startswith("no (") for name in ("frozen", "separate", "together", "export |"[:6]))


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "kind"), [cell for cell in CELLS if cell not in POSSIBLE])
def test_a_kind_that_a_method_does_not_tune(trying: Any, method: str, kind: str) -> None:
    assert refused(trying, method, kind) == said(method, kind)


@pytest.mark.parametrize(("method", "kind"), POSSIBLE)
def test_what_is_refused_is_refused(trying: Any, finished: Any, tmp_path: Path, method: str, kind: str) -> None:
    for option in MATRIX.OPTIONS:
        text = said(method, kind, option)
        if not text or option == "fsdp":  # that takes two processes
            continue
        if option in PLANS:
            assert refused(trying, method, kind, **settings_of(option)) == text
            continue
        run = str(finished(method, kind))
        call = {
            "export": lambda run=run: export_run(run, str(tmp_path / "whole"), ExportSettings(precision="fp32")),
            "together": lambda run=run: Assistant([run], precision="fp32"),
        }[option]
        assert refused(call) == text.replace(MATRIX.RUN, run)


def test_what_is_refused_together(trying: Any, tmp_path: Path) -> None:
    runs: dict[str, str] = {}
    for (one, other), texts in MATRIX.pairs().items():
        for text in texts if other != "fsdp" else ():
            for method in texts[text]:
                if other != "export":
                    got = refused(trying, method, "decoder", **settings_of(one, other))
                    assert got == text, (method, one, other)
            if other == "export":
                if one not in runs:
                    runs[one] = str(trying("lora", "decoder", out=tmp_path / one, **settings_of(one)))
                assert refused(export_run, runs[one], str(tmp_path / "whole"), ExportSettings(precision="fp32")) == text
    assert len(runs) == 3


# -- what is promised --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "kind"), POSSIBLE)
def test_what_is_stopped_and_resumed_with_recomputing_in_bf16(
    trying: Any, finished: Any, method: str, kind: str
) -> None:
    straight = trying(method, kind, **settings_of("bf16", "checkpointing")).folder
    learned = weights(straight)
    assert learned and learning.same(learned, weights(finished(method, kind)))


@pytest.mark.parametrize(("method", "kind"), POSSIBLE)
def test_reading_plans(method: str, kind: str) -> None:
    allowed = [name for name in PLANS if not said(method, kind, name)]
    assert ("twice" in allowed) is not KINDS[kind].chooses
    for name in allowed:
        own = METHODS[method]
        plan = plan_of(TuneSettings(method=method, **settings_of(name)), own)
        options = learning.options_of(own)
        rows = [asked([5 + n, 6, 7, 8 + n, 1, 9, 1], 4, 5) for n in range(4)]
        model = behind(
            plan, own.attach(tiny.model(TINY[kind]), options, 0), own, options, 0, rows=rows, checkpoint=None
        )
        before = row_losses(model.eval(), rows, pad_id=0, batch_tokens=100)
        how = learning.plan(epochs=4.0, reading=plan, learning_rate=1e-2 if method != "p_tuning" else 3e-3)
        learning.training(model, rows, how).run(Monitor({}), Hooks())
        after = row_losses(model.eval(), rows, pad_id=0, batch_tokens=100)
        assert sum(total for total, _ in after) < sum(total for total, _ in before), name


def asked(ids: list[int], instruction: int, prompt: int) -> Rendered:
    return Rendered(ids, [place >= prompt for place in range(len(ids))], instruction, prompt)


@pytest.mark.parametrize(("method", "kind"), POSSIBLE)
def test_answers(finished: Any, tiny_folder: Any, tmp_path: Path, method: str, kind: str) -> None:
    run = finished(method, kind)
    alone = Assistant(run, precision="fp32", max_new_tokens=8, threads=1)
    answer = alone("Write the opposite", "hot")
    assert "".join(alone.stream("Write the opposite", "hot")) == answer
    assert not KINDS[kind].chooses or answer in OPPOSITES.values()
    found = instructrec.prompt(
        "row", ROWS * 3, model=str(run), score="rank", precision="fp32", out=str(tmp_path / "asked")
    )
    assert 0 <= found.scores["accuracy"]["value"] <= 100 and found.result["rows"] == 12
    if not said(method, kind, "together"):
        other = tiny_folder(TINY[kind])
        if KINDS[kind].chooses:  # untuned it has no labels
            other = shutil.copytree(finished("ia3" if method == "lora" else "lora", kind), tmp_path / "other")
        shared = Assistant([other, run], precision="fp32", max_new_tokens=8, threads=1)
        assert shared("Write the opposite", "hot", adapter=run.name) == answer
    if not said(method, kind, "export"):
        export_run(str(run), str(tmp_path / "whole"), ExportSettings(precision="fp32", threads=1))
        assert Assistant(tmp_path / "whole", precision="fp32", max_new_tokens=8)("Write the opposite", "hot") == answer


def losses(method: str, kind: str, group: Any) -> list[float]:
    """Of rows, after four steps in this process or with others, the weights cut up where the group has it so."""
    own = METHODS[method]
    model = own.attach(tiny.model(TINY[kind], dtype=torch.float64), learning.options_of(own), 0).to(torch.float64)
    if group.sharded:
        shard(model, torch.device("cpu"), group.count)
    rows = learning.rows([4, 30, 12, 25, 7], 200)
    if KINDS[kind].chooses:
        model = learning.choosing(model, 200)
        rows = [learning.labelled(row, number % 3, 200) for number, row in enumerate(rows)]
    how = learning.plan(batch_rows=2, accumulation=2, epochs=2.0)
    learning.training(model, rows, how, group).run(Monitor({}), Hooks())
    return [total for total, _ in row_losses(model, rows, pad_id=0, batch_tokens=150, group=group)]


def every_loss(cut_up: bool) -> dict[str, list[float]]:
    with together() as group:
        assert group.sharded == cut_up
        return {
            f"{method} {kind}": losses(method, kind, group)
            for method, kind in POSSIBLE
            if not (group.sharded and said(method, kind, "fsdp"))
        }


def tried(given: list[tuple[str, dict[str, Any]]]) -> list[str]:
    """What `tune` says to each of these settings."""
    heard = []
    for model, settings in given:
        try:
            tune(ROWS, model=model, **QUICK, **settings)
            heard.append("")
        except InputError as error:
            heard.append(str(error))
    return heard


def cut_up(given: list[tuple[str, dict[str, Any]]]) -> tuple[dict[str, list[float]], list[str]]:
    return every_loss(True), tried(given)


def test_two_processes_are_one_also_with_the_weights_cut_up(tiny_folder: Any, tmp_path: Path) -> None:
    wanted: list[tuple[str, dict[str, Any], str]] = []
    for method, kind in POSSIBLE:
        if text := said(method, kind, "fsdp"):
            wanted.append((str(tiny_folder(TINY[kind])), {"method": method}, text))
    for (one, other), texts in MATRIX.pairs().items():
        for text in texts if other == "fsdp" else ():
            settings = settings_of(one) | {"method": texts[text][0]}
            wanted.append((str(tiny_folder("qwen")), settings, text))
    given = [(model, settings | {"out": str(tmp_path / "run")}) for model, settings, _ in wanted]
    both = Ranks(tmp_path / "whole", every_loss, False)
    cut = Ranks(tmp_path / "cut", cut_up, given, ACCELERATE_USE_FSDP="true")
    alone = every_loss(False)
    for rank in (0, 1):
        found, heard = cut.results()[rank]
        assert heard == [text for _, _, text in wanted] and len(heard) >= 4
        assert len(found) < len(alone)
        for got in (both.results()[rank], found):
            for name, values in got.items():
                # The layers' norms compute in fp32 whatever the rest does.
                assert values == pytest.approx(alone[name], rel=1e-6), name
    assert both.results()[0].keys() == alone.keys()
