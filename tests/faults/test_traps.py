"""FAULTS, input 20: a directory of traps, each opened through the command line in a child with an audit hook. None of
the planted code runs, nothing is unpickled, started, fetched or written, and the refusal comes at once."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import runpy
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import tiny_gguf
import torch
from safetensors.torch import load_file, save_file
from watch import Seen, watched

import tiny
from instructrec import cli
from instructrec.files import sha256_of
from instructrec.models.methods import METHODS
from instructrec.prompts.choose import make_renderer

# Modules that a library looks for by these names, here or in a model's folder.
PLANTED = (
    "sitecustomize usercustomize tokenization_x processing_x configuration_llama modeling_llama modeling_evil json torch "
    "transformers typer kernels flash_attn optimum evil"
).split()
NO_CODE = "refused, this key can make a library load code"
ASKED = ("--precision", "fp32", "--max-new-tokens", "2")


class Evil:
    """Unpickled, it writes the canary."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return open, (str(self.canary), "w")


class Trap:
    """A folder to build a trap in, beside what it needs."""

    def __init__(self, root: Path, made: Callable[[str], Path]) -> None:
        self.root, self.canary, self.folder, self.tiny = root, root / "canary", root / "trap", made

    def model(self, **config: Any) -> Path:
        """A model folder with planted modules in it and `config` merged into its config.json."""
        shutil.copytree(self.tiny("llama"), self.folder)
        self.plant(self.folder)
        self.merge("config.json", **config)
        return self.folder

    def plant(self, folder: Path) -> None:
        code = f"open({str(self.canary)!r}, 'w').close()\n"
        for name in PLANTED:
            (folder / f"{name}.py").write_text(code)
        (folder / "custom_generate").mkdir()
        (folder / "custom_generate" / "generate.py").write_text(code)

    def merge(self, name: str, /, **values: Any) -> Path:
        file = self.folder / name
        before = json.loads(file.read_text()) if file.is_file() else {}
        file.write_text(json.dumps(before | values))
        return file

    def pickle(self, name: str) -> Path:
        (self.folder / name).write_bytes(pickle.dumps(Evil(self.canary)))
        return self.folder / name

    def run(self, method: str = "lora", template: str | None = None) -> Path:
        """A run folder, as `tune` leaves it."""
        base, tokenizer = self.tiny("qwen"), tiny.tokenizer("qwen")
        self.folder.mkdir()
        self.plant(self.folder)
        kind = METHODS[method]
        options = {"rank": 2, "alpha": 4, "dropout": 0.0, "target": "q_proj"}
        kind.save(kind.attach(tiny.model("qwen"), options, 0), self.folder, "tiny")
        prompt = make_renderer(tokenizer).to_json()
        if template is not None:
            prompt = {key: value for key, value in prompt.items() if key != "sha256"} | {"template": template}
            prompt["sha256"] = hashlib.sha256(json.dumps(prompt, sort_keys=True).encode()).hexdigest()
        self.merge("prompt.json", **prompt)
        self.merge("run.json", method=method, backbone={"name": str(base), "fingerprint": ""})
        return self.folder


def only_a_pickle(trap: Trap) -> str:
    (trap.model() / "model.safetensors").unlink()
    trap.pickle("pytorch_model.bin")
    return f"model: {trap.folder}: no safetensors weights (found pytorch_model.bin, refused)"


def index_names_a_pickle(trap: Trap) -> str:
    file = trap.model() / "model.safetensors"
    names = list(load_file(file))
    file.unlink()
    save_file({"x": torch.zeros(1)}, trap.folder / "decoy.safetensors")
    trap.pickle("evil.bin")
    index = trap.merge("model.safetensors.index.json", metadata={}, weight_map=dict.fromkeys(names, "evil.bin"))
    return f"{index}: weight_map: 'evil.bin' is no safetensors file of this folder"


def index_leads_outside(trap: Trap) -> str:
    file = trap.model() / "model.safetensors"
    file.rename(trap.root / "outside.safetensors")
    save_file({"x": torch.zeros(1)}, trap.folder / "decoy.safetensors")
    index = trap.merge("model.safetensors.index.json", weight_map={"model.norm.weight": "../outside.safetensors"})
    return f"{index}: weight_map: '../outside.safetensors' is no safetensors file of this folder"


def configuration_names_a_pickle(trap: Trap) -> str:
    trap.model(transformers_weights="adapter_model.bin")
    trap.pickle("adapter_model.bin")
    return f"{trap.folder / 'config.json'}: transformers_weights: {NO_CODE}"


def code_for_an_unknown_model(trap: Trap) -> str:
    trap.model(model_type="evil", auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "modeling_evil.M"})
    return f"{trap.folder / 'config.json'}: auto_map: refused, this model needs code from its folder"


def code_for_a_known_model(trap: Trap) -> str:
    trap.model(auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "modeling_evil.M"})
    trap.merge("generation_config.json", custom_generate="custom_generate")
    return ""


def code_for_the_tokenizer(trap: Trap) -> str:
    trap.model()
    trap.merge("tokenizer_config.json", tokenizer_class="Evil", auto_map={"AutoTokenizer": ["tokenization_x.A", None]})
    return f"model: '{trap.folder}' could not be loaded: The repository {trap.folder} contains custom code"


def attention_from_elsewhere(trap: Trap) -> str:
    trap.model(_attn_implementation_internal="someone/kernel")
    return f"{trap.folder / 'config.json'}: _attn_implementation_internal: {NO_CODE}"


def attention_from_elsewhere_inside(trap: Trap) -> str:
    trap.model(parts=[{"text_config": {"_experts_implementation_internal": "someone/kernel"}}])
    return f"{trap.folder / 'config.json'}: _experts_implementation_internal: {NO_CODE}"


def kernels_of_a_quantised_model(trap: Trap) -> str:
    trap.model(quantization_config={"quant_method": "mxfp4"})
    return f"{trap.folder / 'config.json'}: quantization_config: refused, the weights have to be bf16, fp16 or fp32"


def an_adapter_beside_the_model(trap: Trap) -> str:
    trap.model()
    trap.merge("adapter_config.json", peft_type="LORA", auto_mapping={"parent_library": "evil"}, megatron_core="evil")
    trap.pickle("adapter_model.bin")
    return f"model: {trap.folder}: holds an adapter beside the model (adapter_config.json); take one or the other"


def more_layers_than_weights(trap: Trap) -> str:
    trap.model(num_hidden_layers=10**9)
    tensors = len(load_file(trap.folder / "model.safetensors"))
    reason = f"more than the weights can have (got 1,000,000,000, want at most {tensors})"
    return f"{trap.folder / 'config.json'}: num_hidden_layers: {reason}"


def more_words_than_weights(trap: Trap) -> str:
    trap.model(parts={"vocab_size": 10**12})
    size = (trap.folder / "model.safetensors").stat().st_size
    reason = f"more than the weights can have (got 1,000,000,000,000, want at most {size:,})"
    return f"{trap.folder / 'config.json'}: vocab_size: {reason}"


def template_reaching_for_python(trap: Trap) -> str:
    (trap.model() / "chat_template.jinja").write_text("{{ ''.__class__.__mro__[1].__subclasses__() }}")
    return "prompt template: line 1: attribute '__subclasses__' is not allowed in a prompt template"


def template_of_nested_ranges(trap: Trap) -> str:
    loops = "{% for i in range(100000) %}" * 3 + "{% endfor %}" * 3
    (trap.model() / "chat_template.jinja").write_text(loops)
    return "prompt template: more work than a prompt template may do (loops, or text that grows)"


def template_of_a_gguf_file(trap: Trap) -> str:
    trap.folder.mkdir()
    real = tiny.tokenizer

    def with_trap(kind: str) -> Any:
        made = real(kind)
        made.chat_template = "{{ cycler.__init__.__globals__.os.system('touch canary') }}"
        return made

    tiny.tokenizer = with_trap
    try:
        tiny_gguf.write(trap.folder / "trap.gguf")
    finally:
        tiny.tokenizer = real
    trap.folder = trap.folder / "trap.gguf"
    return "prompt template: line 1: attribute '__globals__' is not allowed in a prompt template"


def adapter_of_a_planted_library(trap: Trap) -> str:
    trap.run()
    mapping = {"base_model_class": "M", "parent_library": "evil"}
    file = trap.merge("adapter_config.json", task_type=None, auto_mapping=mapping)
    return f"{file}: auto_mapping: this version takes LoRA, DoRA and rsLoRA only (got {str(mapping)[:57]}"


def adapter_with_a_planted_core(trap: Trap) -> str:
    trap.run()
    file = trap.merge("adapter_config.json", megatron_config={"x": 1}, megatron_core="megatron.evil")
    return f"{file}: megatron_config: this version takes LoRA, DoRA and rsLoRA only (got {{'x': 1}})"


def adapter_that_is_a_pickle(trap: Trap) -> str:
    (trap.run() / "adapter_model.safetensors").unlink()
    trap.pickle("adapter_model.bin")
    return f"{trap.folder / 'adapter_model.safetensors'}: no such file (found adapter_model.bin, refused)"


def adapter_with_a_slow_pattern(trap: Trap) -> str:
    trap.run()
    file = trap.merge("adapter_config.json", target_modules="(.*)*(.*)*(.*)*x$")
    return f"{file}: target_modules: not names of layers (got '(.*)*(.*)*(.*)*x$', want a list of names)"


def tuned_model_with_code(trap: Trap) -> str:
    trap.run("full")
    file = trap.merge("config.json", _attn_implementation_internal="someone/kernel")
    return f"{file}: _attn_implementation_internal: {NO_CODE}"


def tuned_model_that_is_a_pickle(trap: Trap) -> str:
    (trap.run("full") / "model.safetensors").rename(trap.folder / "decoy.safetensors")
    trap.pickle("evil.bin")
    index = trap.merge("model.safetensors.index.json", weight_map={"model.norm.weight": "evil.bin"})
    return f"{index}: weight_map: 'evil.bin' is no safetensors file of this folder"


def run_with_a_hostile_template(trap: Trap) -> str:
    trap.run(template="{{ cycler.__init__.__globals__.os.system('touch canary') }}")
    return "prompt template: line 1: attribute '__globals__' is not allowed in a prompt template"


def run_with_a_changed_template(trap: Trap) -> str:
    file = trap.run() / "prompt.json"
    trap.merge("prompt.json", template="{{ ''.__class__ }}")
    return f"{file}: sha256: the prompt was changed after tuning, the model would be asked differently"


def run_without_a_template(trap: Trap) -> str:
    file = trap.run(template={"not": "text"}) / "prompt.json"  # type: ignore[arg-type]
    return f"{file}: template: missing, or not what it should be"


def run_of_a_planted_method(trap: Trap) -> str:
    trap.run()
    trap.merge("run.json", method="../../evil")
    return "method: unknown tuning method '../../evil', known: adapter, full, ia3, lora, p_tuning, prefix_tuning, prompt_tuning"


def run_without_a_backbone(trap: Trap) -> str:
    file = trap.run() / "run.json"
    trap.merge("run.json", backbone={"name": ["evil"], "fingerprint": {}})
    return f"{file}: want the names of a method and a backbone, and its fingerprint"


TRAPS: dict[str, Callable[[Trap], str]] = {
    made.__name__: made
    for made in (
        only_a_pickle,
        index_names_a_pickle,
        index_leads_outside,
        configuration_names_a_pickle,
        code_for_an_unknown_model,
        code_for_a_known_model,
        code_for_the_tokenizer,
        attention_from_elsewhere,
        attention_from_elsewhere_inside,
        kernels_of_a_quantised_model,
        an_adapter_beside_the_model,
        more_layers_than_weights,
        more_words_than_weights,
        template_reaching_for_python,
        template_of_nested_ranges,
        template_of_a_gguf_file,
        adapter_of_a_planted_library,
        adapter_with_a_planted_core,
        adapter_that_is_a_pickle,
        adapter_with_a_slow_pattern,
        tuned_model_with_code,
        tuned_model_that_is_a_pickle,
        run_with_a_hostile_template,
        run_with_a_changed_template,
        run_without_a_template,
        run_of_a_planted_method,
        run_without_a_backbone,
    )
}


@pytest.fixture(scope="module", autouse=True)
def _imported(tiny_folder: Any) -> None:
    """Everything is imported before the forks, and timed without it."""
    cli.main(["run", str(tiny_folder("llama")), "Say red.", *ASKED])
    cli.main(["run", str(tiny_folder("gpt2")), "Say red.", *ASKED])


@pytest.fixture
def trap(tmp_path: Path, tiny_folder: Any, monkeypatch: pytest.MonkeyPatch) -> Trap:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE")  # what would ask a hub shall be seen
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    return Trap(tmp_path, tiny_folder)


def opened(trap: Trap) -> Seen:
    """The trap opened from inside its own folder, where modules of the libraries' names lie."""
    folder = trap.folder if trap.folder.is_dir() else trap.folder.parent

    def action() -> int:
        os.chdir(folder)
        return cli.main(["run", str(trap.folder), "Say red.", *ASKED])

    return watched(action, folder, trap.root / "cache")


@pytest.mark.parametrize("name", TRAPS)
def test_no_trap_runs(name: str, trap: Trap) -> None:
    message = TRAPS[name](trap)
    before = {path: sha256_of(path) for path in trap.root.rglob("*") if path.is_file()}
    seen = opened(trap)
    assert seen.events == [] and not trap.canary.exists() and seen.signal == 0, seen
    if message:
        assert seen.code == 2 and seen.err.count("\n") == 1, seen
        assert seen.err.startswith(message) if name in STARTS else seen.err == message + "\n", seen.err
        assert seen.seconds < 1.0 or name == "template_of_a_gguf_file"  # this one is converted first
    else:
        assert seen.code == 0, seen
    after = {path: sha256_of(path) for path in trap.root.rglob("*") if path.is_file() and "cache" not in path.parts}
    assert after == before


STARTS = ("code_for_the_tokenizer", "adapter_of_a_planted_library")  # the rest of these lines is a library's, or cut


def test_the_traps_are_many() -> None:
    assert len(TRAPS) == 27
    assert sum(1 for name in TRAPS if "pickle" in name) >= 5


def test_a_trap_that_runs_is_seen(trap: Trap) -> None:
    """The control: what the children above never do is done here, and the hook tells each."""
    folder = trap.model()
    evil = trap.pickle("evil.bin")
    acts: dict[str, Callable[[], Any]] = {
        "exec ": lambda: runpy.run_path(str(folder / "evil.py")),
        "pickle.find_class ": lambda: pickle.loads(evil.read_bytes()),  # noqa: S301
        "subprocess.Popen ": lambda: subprocess.run(["true"], check=True),
        "os.system ": lambda: os.system("true"),  # noqa: S605
        "socket.": lambda: socket.socket().close(),
        f"write {trap.root / 'elsewhere'}": lambda: (trap.root / "elsewhere").write_text("x"),
        "os.mkdir ": lambda: (trap.root / "made").mkdir(),
    }
    for event, act in acts.items():
        seen = watched(lambda act=act: act() and None, folder, trap.root / "cache")  # type: ignore[misc]
        assert any(text.startswith(event) for text in seen.events), (event, seen)
        assert trap.canary.exists() == (event in ("exec ", "pickle.find_class ")), event
        trap.canary.unlink(missing_ok=True)


def test_a_child_may_compute_in_several_threads(tmp_path: Path) -> None:
    """Torch's pool of threads does not survive a fork (see `watched`); without care, nine in ten of these children fail."""
    torch.set_num_threads(torch.get_num_threads())  # a worker whose tests have set it

    def action() -> int:
        together = threading.Barrier(4)

        def compute(_: int) -> float:
            together.wait()
            return float(torch.ones(100, 1000).to(torch.float64).sum())

        with ThreadPoolExecutor(4) as pool:
            return int(sum(pool.map(compute, range(4))))

    for _ in range(5):
        seen = watched(action, tmp_path, tmp_path)
        assert seen.code == 400_000, seen.err


def test_modules_in_the_working_folder_do_not_stand_in_for_libraries(trap: Trap) -> None:
    """`python -m` puts the working folder first among the places of modules."""
    folder = trap.model()
    command = [sys.executable, "-m", "instructrec", "config", "show"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    assert not trap.canary.exists()
    subprocess.run([sys.executable, "-c", "import typer"], cwd=folder, check=True)  # the control
    assert trap.canary.exists()
