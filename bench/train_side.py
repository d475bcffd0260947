"""One measurement of bench/train.py, in a process of its own: one side tunes on given rows and tells what it took.

    python bench/train_side.py JOB.json      # prints one line of JSON

Both sides get the same token ids and the same flags of what is supervised, so that no tokenizer or template stands
between them. The trl side needs trl, which is no part of this project: it is run by a Python that has it and imports
nothing of ours.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

Job = dict[str, Any]
PACKAGES = ("torch", "transformers", "peft", "accelerate", "trl", "datasets")
RANK, ALPHA = 16, 32.0
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Memory:
    """Bytes above the process with the model loaded, at the most."""

    def __init__(self, device: str, model: Any) -> None:
        self.device = device
        for parameter in model.parameters():  # pages of a mapped file count once they are read
            parameter.sum()
        if device == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats()
            self.before = int(torch.cuda.memory_allocated())
        else:
            CLEAR.write_text("5")  # forgets the peak of loading
            self.before = _status("VmRSS")

    def peak(self) -> int:
        """At the most so far."""
        if self.device == "cuda":
            import torch

            return int(torch.cuda.max_memory_allocated()) - self.before
        return _status("VmHWM") - self.before


def now() -> tuple[float, float]:
    """Seconds of the clock, and of the processor for this process: beside other work only the latter mean anything."""
    return time.perf_counter(), time.process_time()


def _status(key: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024


def product_rate(device: str, dtype: Any) -> float:
    """Multiplications and additions a second of one large matrix product, the median of seven; on processors a second
    of processor time, which is what `processor_seconds` of the steps are held against."""
    import statistics

    import torch

    size, part = (8192, 0) if device == "cuda" else (1536, 1)
    a, b = (torch.randn(size, size).to(device, dtype) for _ in range(2))
    seconds = []
    for _ in range(8):
        started = now()[part]
        a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(now()[part] - started)
    return 2 * size**3 / statistics.median(seconds[1:])


# What an operation is for, by its name; those that are not named are "the rest".
_KINDS = {
    "attention": ("bmm", "_softmax", "_softmax_backward_data", "masked_fill", "masked_fill_", "le", "baddbmm"),
    "the loss": ("_log_softmax", "exp", "gather", "nll_loss_forward"),
    "norms, activations, rotation, sums": (
        "mul", "mul_", "add", "add_", "sub", "neg", "pow", "rsqrt", "mean", "sum", "div", "div_", "silu",
        "silu_backward", "gelu", "gelu_backward", "rsub", "cos", "sin",
    ),
    "copies and changes of type": ("copy_", "cat", "clone", "fill_", "zero_", "index", "index_select"),
    "the optimizer": ("_fused_adamw_", "_foreach_add_", "_foreach_mul_", "lerp_", "addcmul_", "addcdiv_"),
}  # fmt: skip
_PRODUCTS = ("mm", "addmm", "addmm_")


def kind_of(operation: str, shapes: list[list[int]], words: int) -> str:
    """What an operation of the profile is for. shapes: of its inputs; words: of the vocabulary."""
    name = operation.removeprefix("aten::")
    if name in _PRODUCTS:
        sizes = {size for shape in shapes for size in shape}
        if words in sizes:
            return "products with the head"
        return "LoRA's products" if RANK in sizes else "products with frozen weights"
    return next((kind for kind, names in _KINDS.items() if name in names), "the rest")


def profiled(work: Any, words: int) -> tuple[Any, dict[str, float]]:
    """What `work()` gives, and the share of its processor time that each kind of operation takes by itself."""
    import torch

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as found:
        result = work()
    seconds: dict[str, float] = {}
    for entry in found.key_averages(group_by_input_shape=True):
        shapes = [[int(size) for size in shape] for shape in entry.input_shapes if isinstance(shape, list) and shape]
        kind = kind_of(entry.key, [shape for shape in shapes if all(isinstance(one, int) for one in shape)], words)
        seconds[kind] = seconds.get(kind, 0.0) + float(entry.self_cpu_time_total)
    total = sum(seconds.values())
    return result, {kind: spent / total for kind, spent in sorted(seconds.items(), key=lambda one: -one[1])}


def held_loss(model: Any, rows: list[dict[str, Any]], device: str, dtype: Any) -> float:
    """Nats per supervised token of held-out rows, each by itself, by the same few lines for both sides."""
    import torch

    model.eval()
    total, count = 0.0, 0
    with torch.no_grad(), torch.autocast(device, dtype, enabled=dtype == torch.bfloat16):
        for row in rows:
            ids = torch.tensor([row["input_ids"]], device=device)
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
            mask = torch.tensor(row["completion_mask"][1:], dtype=torch.bool, device=device)
            losses = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")[mask]
            total, count = total + float(losses.sum()), count + int(mask.sum())
    return total / count


def told(job: Job, stamps: list[tuple[float, float]], steps: list[list[int]], memory: int) -> dict[str, Any]:
    """What both sides tell of their steps; those before `warm` are left out of all but the memory.

    steps: the rows of each step, where they are known (a packing side does not say; all rows are met then).
    """
    warm, rows = job["warm"], job["rows"]
    met = [number for step in steps[warm:] for number in step]
    tokens = sum(len(rows[number]["input_ids"]) for number in met)
    supervised = sum(sum(rows[number]["completion_mask"]) for number in met)
    return {
        "seconds": stamps[-1][0] - stamps[warm][0],
        "processor_seconds": stamps[-1][1] - stamps[warm][1],
        "steps": len(stamps) - 1 - warm,
        "tokens": tokens,
        "supervised": supervised,
        "met": met,
        "memory": memory,
    }


def ours(job: Job) -> dict[str, Any]:
    """InstructRec's own loop, put together as `tune` does it, without looks and checkpoints."""
    import torch
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    from instructrec.models import backbone as backbones
    from instructrec.models.methods import get
    from instructrec.models.methods.through_peft import uncast
    from instructrec.models.reading import ReadingPlan
    from instructrec.prompts.template import Rendered
    from instructrec.recipes.memory import keeping_memory
    from instructrec.recipes.reading import behind
    from instructrec.training import batching
    from instructrec.training.loop import Hooks, Plan, Training
    from instructrec.training.monitor import Monitor
    from instructrec.training.processes import together

    arm, device = job["arm"], job["device"]
    with together() as group, keeping_memory():
        dtype = backbones.compute_dtype(arm.get("precision", "auto"))
        backbone = backbones.load(job["model"], dtype=dtype, offline=True)
        memory = Memory(device, backbone.model)
        options = {"rank": RANK, "alpha": ALPHA, "dropout": 0.0, "target": "all-linear"}
        tuned = get("lora").attach(backbone.model, options, job["seed"])
        rows = [_rendered(row, Rendered) for row in job["rows"]]
        model = behind(ReadingPlan(), tuned, get("lora"), options, job["seed"], rows=rows, checkpoint=None)
        if arm.get("checkpointing"):
            tuned.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            tuned.enable_input_require_grads()
        AcceleratorState._reset_state()  # else a second measurement in one process has the precision of the first
        accelerator = Accelerator(cpu=device == "cpu", mixed_precision="bf16" if dtype == torch.bfloat16 else "no")
        plan = Plan(
            epochs=1,
            batch_tokens=arm.get("batch_tokens", 1 << 30),
            batch_rows=job["batch_rows"] // arm.get("accumulation", 1),
            accumulation=arm.get("accumulation", 1),
            learning_rate=job["rate"],
            schedule="constant",
            max_steps=job["steps"],
            seed=job["seed"],
            pad_id=backbone.pad_id,
        )
        batching._POOL = arm.get("pool", batching._POOL)  # micro-batches whose rows are sorted by length together
        training = Training(model, rows, plan, accelerator, group)
        training.share = training.share and arm.get("share", True)
        if not arm.get("fused", True):
            for param_group in training.optimizer.param_groups:
                param_group["fused"] = False
        stamps = [now()]
        with uncast(tuned if dtype == torch.bfloat16 else None):
            hooks = Hooks(log=lambda entry: stamps.append(now()))
            shares: dict[str, float] = {}
            if job.get("profile"):
                words = backbone.model.get_output_embeddings().weight.shape[0]
                outcome, shares = profiled(lambda: training.run(Monitor({}), hooks), words)
            else:
                outcome = training.run(Monitor({}), hooks)
        result = told(job, stamps, [list(step) for step in outcome.row_log], memory.peak())
        result |= {"profile": shares} if shares else {}
        result["shared"] = outcome.shared_share
        # Each process of several tells of its own rows and memory.
        for key in ("tokens", "supervised", "memory", "processor_seconds"):
            result[key] = sum(group.exchange(result[key]))
        result["met"] = [number for part in group.exchange(result["met"]) for number in part]
        if group.main:
            held = held_loss(tuned, job["held"], device, dtype)
            result |= {"held_loss": held, "rate": product_rate(device, dtype)}
        return result if group.main else {}


def _rendered(row: dict[str, Any], make: Any) -> Any:
    flags = [bool(flag) for flag in row["completion_mask"]]
    start = flags.index(True)
    return make(row["input_ids"], flags, start, start)


def trl(job: Job) -> dict[str, Any]:
    """SFTTrainer with PEFT; `arm` holds what differs from its defaults."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    arm, device = job["arm"], job["device"]
    given = dict(arm.get("config", {}))
    accumulation = given.get("gradient_accumulation_steps", 1)
    packed = bool(given.get("packing"))
    dtype = torch.bfloat16 if arm.get("weights") == "bf16" else torch.float32  # the trainer's own default is fp32
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=dtype)
    if device == "cuda":
        model = model.to("cuda")
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    memory = Memory(device, model)
    stamps: list[tuple[float, float]] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            stamps.append(now())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            if device == "cuda":
                torch.cuda.synchronize()
            stamps.append(now())

    rows = [{**row, "number": number} for number, row in enumerate(job["rows"])]
    data = Dataset.from_list([{key: row[key] for key in ("input_ids", "completion_mask")} for row in rows])
    seen: list[list[int]] = []
    with tempfile.TemporaryDirectory() as out:
        config = SFTConfig(
            output_dir=out,
            learning_rate=job["rate"],
            lr_scheduler_type="constant",
            per_device_train_batch_size=given.pop("rows", job["batch_rows"] // accumulation),
            num_train_epochs=1,
            max_steps=-1 if packed else job["steps"],
            seed=job["seed"],
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            completion_only_loss=True,  # its default with ready token ids is to supervise all of them
            use_cpu=device == "cpu",
            **given,
        )
        trainer = SFTTrainer(
            model=model,
            args=config,
            train_dataset=data,
            processing_class=tokenizer,
            peft_config=LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"),
            callbacks=[Clock()],
        )
        if not packed:
            _watch(trainer, job["rows"], seen)
        trainer.train()
        peak = memory.peak()
    if packed:  # it does not say which rows; all are met once, less the share of the warm steps
        total = len(stamps) - 1
        share = (total - job["warm"]) / total
        result = told(job, stamps, [[]] * job["warm"] + [list(range(len(rows)))], peak)
        result["tokens"], result["supervised"] = (round(result[key] * share) for key in ("tokens", "supervised"))
        result["steps"] = total - job["warm"]
    else:
        size = accumulation
        steps = [sum(seen[start : start + size], []) for start in range(0, len(seen), size)]
        result = told(job, stamps, steps[: len(stamps) - 1], peak)
    held = held_loss(trainer.model, job["held"], device, torch.bfloat16)
    return result | {"held_loss": held, "rate": product_rate(device, torch.bfloat16)}


def _watch(trainer: Any, rows: list[dict[str, Any]], seen: list[list[int]]) -> None:
    """Note the rows of each micro-batch on their way into the step, by their ids."""
    numbers = {tuple(row["input_ids"]): number for number, row in enumerate(rows)}
    step = trainer.training_step

    def noting(model: Any, inputs: Any, *more: Any, **named: Any) -> Any:
        masks = inputs.get("attention_mask")
        if masks is None:  # one line of tokens, cut where positions begin anew
            starts = [*(inputs["position_ids"][0] == 0).nonzero().flatten().tolist(), inputs["input_ids"].shape[1]]
            parts = [inputs["input_ids"][0, a:b] for a, b in zip(starts, starts[1:], strict=False)]
        else:
            parts = [ids[mask.bool()] for ids, mask in zip(inputs["input_ids"], masks, strict=True)]
        seen.append([numbers[tuple(part.tolist())] for part in parts])
        return step(model, inputs, *more, **named)

    trainer.training_step = noting


def main() -> int:
    """Read a job, do it, tell."""
    warnings.simplefilter("ignore")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    job: Job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    import torch

    if job.get("threads"):
        torch.set_num_threads(job["threads"])
    sys.stdout, out = sys.stderr, sys.stdout  # the trainer prints its log there
    result = (trl if job["arm"]["side"] == "trl" else ours)(job)
    if result:
        versions = {}
        for name in PACKAGES:
            try:
                versions[name] = version(name)
            except ImportError:
                continue
        result |= {"versions": versions, "threads": torch.get_num_threads()}
        if job["device"] == "cuda":
            result["card"] = torch.cuda.get_device_name(0)
        print(json.dumps(result), file=out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
