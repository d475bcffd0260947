"""The rules of the house, held over the syntax trees of all source files."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import instructrec
from instructrec.config import AnswerSettings, EvaluateSettings, Settings, TuneSettings
from instructrec.models.methods import METHODS

SRC = Path(instructrec.__file__).parent
FILES = sorted(SRC.rglob("*.py"))

# Room or module at the root -> floor. A file imports its own room and lower floors.
FLOORS = {
    "__init__": 0, "errors": 0, "launch": 0, "files": 1, "forked": 1, "yamlfile": 1, "config": 2, "console": 2, "environment": 2, "settings": 4,
    "synonyms": 2, "leaves": 3,
    "data": 3, "measures": 3, "prompts": 4, "models": 5, "training": 6, "inference": 6, "evaluation": 7, "recipes": 8,
    "serving": 9, "kits": 9, "export": 9, "cli": 10, "__main__": 11,
}  # fmt: skip
LOW_ROOMS = {"data", "measures"}  # may use only these modules of the root:
LOW_IMPORTS = {"errors", "files", "forked"}
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)


@cache
def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def name_of(file: Path) -> str:
    return str(file.relative_to(SRC))


def room_of(parts: tuple[str, ...]) -> str:
    return parts[0].removesuffix(".py")


def imports_of(file: Path) -> Iterator[tuple[str, int]]:
    """(room or root module of ours, line) of every import in the file, those inside functions too."""
    package = ("instructrec", *file.relative_to(SRC).parts[:-1])
    for node in ast.walk(tree_of(file)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            stem = ".".join(part for part in (base, node.module) if part)
            names = [f"{stem}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            top, *rest = name.split(".")
            if top == "instructrec":
                known = [part for part in rest[:1] if part in FLOORS]
                yield (known[0] if known else "__init__"), node.lineno


def calls(attribute: str) -> list[str]:
    """Places where a method of this name is called."""
    return [
        f"{name_of(file)}:{node.lineno}"
        for file in FILES
        for node in ast.walk(tree_of(file))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == attribute
    ]


def test_the_tests_look_at_the_whole_house() -> None:
    assert len(FILES) >= 55
    rooms = {room_of(file.relative_to(SRC).parts) for file in FILES}
    assert rooms <= FLOORS.keys()
    assert {"data", "measures", "prompts", "models", "training", "inference", "evaluation", "recipes", "cli"} <= rooms


def test_rooms_import_downwards_only() -> None:
    seen, wrong = 0, []
    for file in FILES:
        room = room_of(file.relative_to(SRC).parts)
        if file == SRC / "__init__.py":
            continue  # the public door is checked by its own tests: it opens rooms when they are asked for
        for target, line in imports_of(file):
            seen += 1
            allowed = target == room or FLOORS[target] < FLOORS[room]
            if room in LOW_ROOMS and target not in (room, *LOW_IMPORTS):
                allowed = False
            if not allowed:
                wrong.append(f"{name_of(file)}:{line}: {room} imports {target}")
    assert not wrong
    assert seen > 150


def test_one_step_and_one_backward() -> None:
    assert [place.rpartition(":")[0] for place in calls("step")] == ["training/loop.py"]
    assert [place.rpartition(":")[0] for place in calls("backward")] == ["training/loop.py"]


def test_no_code_out_of_files_and_no_shell() -> None:
    wrong = []
    for file in FILES:
        for node in ast.walk(tree_of(file)):
            bad = ""
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                bad = next(
                    (name for name in names if re.match(r"(pickle|dill|shelve|marshal|joblib|cloudpickle)\b", name)), ""
                )
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                dotted = f"{node.value.id}.{node.attr}"
                bad = dotted if dotted in ("torch.load", "torch.save", "os.system", "os.popen", "np.load") else ""
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec"):
                bad = node.func.id
            elif isinstance(node, ast.keyword) and node.arg in ("shell", "trust_remote_code"):
                bad = node.arg if not (isinstance(node.value, ast.Constant) and node.value.value is False) else ""
            elif isinstance(node, ast.Dict):  # handed over as **options
                for key, value in zip(node.keys, node.values, strict=True):
                    if isinstance(key, ast.Constant) and key.value in ("shell", "trust_remote_code"):
                        bad = "" if isinstance(value, ast.Constant) and value.value is False else str(key.value)
            elif isinstance(node, ast.ExceptHandler) and node.type is None:
                bad = "bare except"
            if bad:
                wrong.append(f"{name_of(file)}:{getattr(node, 'lineno', 0)}: {bad}")
    assert not wrong


def test_every_model_is_loaded_without_its_code() -> None:
    """`from_pretrained` of transformers asks on the terminal whether to run a folder's code unless told not to."""
    checked = 0
    for file in FILES:
        for node in ast.walk(tree_of(file)):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            if node.func.attr != "from_pretrained" or not ast.unparse(node.func).lower().startswith("auto"):
                continue
            given = {keyword.arg for keyword in node.keywords} | {
                ast.unparse(k.value) for k in node.keywords if not k.arg
            }
            assert given & {"given", "trust_remote_code", "gguf_file"}, f"{name_of(file)}:{node.lineno}"
            checked += 1
    assert checked >= 6


def test_budgets_of_files_functions_and_parameters() -> None:
    wrong, functions = [], 0
    for file in FILES:
        lines = len(file.read_text(encoding="utf-8").splitlines())
        if lines > 500:
            wrong.append(f"{name_of(file)}: {lines} lines")
        for node in ast.walk(tree_of(file)):
            if not isinstance(node, FUNCTION):
                continue
            functions += 1
            length = (node.end_lineno or 0) - node.lineno + 1
            given = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
            count = len([one for one in given if one.arg not in ("self", "cls")])
            if length > 80 or count > 8:
                wrong.append(f"{name_of(file)}:{node.lineno}: {node.name}: {length} lines, {count} parameters")
    assert not wrong
    assert functions > 350


def test_public_things_have_docstrings() -> None:
    wrong, checked = [], 0
    for file in FILES:
        if file.stat().st_size == 0:
            continue
        tree = tree_of(file)
        nodes = [tree, *(node for node in tree.body if isinstance(node, (*FUNCTION, ast.ClassDef)))]
        for cls in [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name[0] != "_"]:
            nodes += [node for node in cls.body if isinstance(node, FUNCTION)]
        for node in nodes:
            name = getattr(node, "name", name_of(file))
            if name.startswith("_") and node is not tree or _overloaded(node):
                continue
            checked += 1
            if not ast.get_docstring(node):
                wrong.append(f"{name_of(file)}:{getattr(node, 'lineno', 1)}: {name}")
    assert not wrong
    assert checked > 300


def _overloaded(node: ast.AST) -> bool:
    return any(ast.unparse(one) == "overload" for one in getattr(node, "decorator_list", []))


def test_every_method_has_a_reference_and_a_file_of_its_own() -> None:
    assert len(METHODS) >= 2
    homes = [type(method).__module__ for method in METHODS.values()]
    assert len(set(homes)) == len(homes)
    for name, method in METHODS.items():
        assert re.search(r"arXiv \d{4}\.\d{4,5}", method.reference), name
        home = importlib.import_module(type(method).__module__)
        number = re.findall(r"\d{4}\.\d{4,5}", method.reference)[0]
        assert "Reference: " in (home.__doc__ or "") and number in (home.__doc__ or ""), name
        assert method.learning_rate > 0


def test_files_that_name_shapes_open_with_their_letters() -> None:
    checked = []
    for file in FILES:
        if room_of(file.relative_to(SRC).parts) not in ("training", "inference", "models"):
            continue
        text = file.read_text(encoding="utf-8")
        letters = {
            letter for shape in re.findall(r"(?<![\w\]])\[([B-Z](?:, ?[B-Z])*)\]", text) for letter in shape.split(", ")
        }
        if not letters:
            continue
        checked.append(name_of(file))
        legend = ast.get_docstring(tree_of(file)) or ""
        for letter in letters:
            assert re.search(rf"\b{letter} \w+", legend), f"{name_of(file)}: no legend for {letter}"
    assert len(checked) >= 3, checked


def test_settings_stay_few() -> None:
    for settings in (TuneSettings, EvaluateSettings, AnswerSettings):
        groups = [one for one in settings.model_fields.values() if isinstance(one.annotation, type)]
        groups = [one for one in groups if issubclass(one.annotation, Settings)]  # they have a budget of their own
        assert len(settings.model_fields) - len(groups) <= 60
    sections = [
        field.annotation
        for field in TuneSettings.model_fields.values()
        if isinstance(field.annotation, type) and issubclass(field.annotation, Settings)
    ]
    assert len(sections) == len(METHODS) + 1  # and one of encoders
    for section in sections:
        assert len(section.model_fields) <= 8


def test_modules_with_tensors_do_not_know_the_settings() -> None:
    checked = 0
    for file in FILES:
        if room_of(file.relative_to(SRC).parts) in ("models", "training", "inference", "prompts"):
            checked += 1
            assert "config" not in {target for target, _ in imports_of(file)}, name_of(file)
    assert checked >= 20


def test_every_setting_is_described_and_has_a_default_that_works() -> None:
    checked = 0
    for cls in (TuneSettings, EvaluateSettings, AnswerSettings):
        cls()
        for name, field in cls.model_fields.items():
            if not (isinstance(field.annotation, type) and issubclass(field.annotation, Settings)):
                checked += 1
                assert field.description, f"{cls.__name__}.{name}"
    assert checked > 50


@pytest.mark.parametrize("room", ["data", "measures"])
def test_the_ground_floor_starts_light(room: str) -> None:
    """torch and transformers stay out of the rooms that only read rows and count."""
    visited = 0
    for file in sorted((SRC / room).rglob("*.py")):
        visited += 1
        for node in tree_of(file).body:
            text = ast.unparse(node) if isinstance(node, ast.Import | ast.ImportFrom) else ""
            assert not re.search(r"\b(torch|transformers|sklearn|matplotlib|sacrebleu)\b", text), (
                f"{name_of(file)}: {text}"
            )
    assert visited >= 3
