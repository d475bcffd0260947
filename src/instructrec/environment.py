"""What a bug report needs to know about the machine, as Markdown. Nothing is imported to find its version."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .files import cache_dir

# fmt: off
PACKAGES = (
    "torch", "transformers", "tokenizers", "safetensors", "peft", "accelerate", "gguf", "pydantic", "pyyaml", "typer",
    "rich", "jinja2", "numpy", "sacrebleu", "rouge-score", "scikit-learn", "matplotlib", "tensorboard",
)
VARIABLES = (
    "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HOME", "XDG_CACHE_HOME", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS",
    "MKL_NUM_THREADS", "TOKENIZERS_PARALLELISM", "LANG",
)
# fmt: on
CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile", "bf16", "i8mm", "sve")


def describe(with_torch: bool = False) -> str:
    """A Markdown block for a bug report; `with_torch` imports torch (seconds) to ask for its devices."""
    model, flags = _processor()
    features = " ".join(flags) or "none of " + " ".join(CPU_FLAGS)
    lines = {
        "instructrec": " ".join(filter(None, [version_of("instructrec"), commit()])),
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "platform": platform.platform(),
        "processor": f"{model}, {_cores()} of {os.cpu_count()} cores, with {features}",
        "memory": _memory(),
        **{name: version_of(name) for name in PACKAGES},
        "devices": _devices() if with_torch else "not asked (instructrec env --torch)",
        "cache": f"{cache_dir()} ({'exists' if cache_dir().is_dir() else 'not there yet'})",
        **{name: os.environ.get(name, "not set") for name in VARIABLES},
    }
    width = max(map(len, lines))
    body = "\n".join(f"{name:<{width}}  {value}" for name, value in lines.items())
    return f"```text\n{body}\n```"


def commit() -> str:
    """`(commit 1a2b3c4d5e6f, changed)` when the package runs from a git checkout, else ''."""
    name, changed = commit_of_source()
    return f"(commit {name}{', changed' if changed else ''})" if name else ""


def commit_of_source() -> tuple[str | None, bool | None]:
    """Commit of the git checkout the package runs from, and whether files differ from it; (None, None) elsewhere."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None, None
    try:
        name = _git(root, "rev-parse", "--short=12", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):  # no git, no commit yet, or a checkout of somebody else
        return None, None
    return name, bool(changed)


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def version_of(package: str) -> str:
    """Version of an installed package, or `not installed`."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> tuple[str, list[str]]:
    """Name of the processor and those of its features that matter here (Linux tells both)."""
    name, has = _cpuinfo()
    return name, [flag for flag in CPU_FLAGS if flag in has]


def arithmetic_flags() -> list[str]:
    """Instruction sets that products and sums may be computed with, sorted: others round differently."""
    return sorted(flag for flag in _cpuinfo()[1] if re.match(r"(avx|amx_|fma|f16c|bf16|i8mm|asimd|sve|sme(?!p))", flag))


def _cpuinfo() -> tuple[str, set[str]]:
    """Name of the processor and all of its features; none where the system is not Linux."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or platform.machine(), set()
    values: dict[str, str] = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        values.setdefault(name.strip().lower(), value.strip())
    return values.get("model name") or platform.machine(), set(
        (values.get("flags") or values.get("features", "")).split()
    )


def _memory() -> str:
    """Memory of the machine and how much of it is free, in GiB."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        kib = {name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in text.splitlines())}
        return f"{kib['MemTotal'] / 2**20:.1f} GiB, {kib['MemAvailable'] / 2**20:.1f} GiB free"
    except OSError:
        return "unknown"


def _devices() -> str:
    import torch

    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        names.append("Apple GPU (mps)")
    return f"{', '.join(names) or 'cpu only'}; torch uses {torch.get_num_threads()} threads"
