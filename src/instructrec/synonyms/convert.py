"""Names of other programs whose value changes on the way, or which depend on other names."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .datasets import datasets, watched
from .given import TRUTHS, Given, Outcome, number, whole, word
from .templates import NOT_OFFERED, OWN

Others = Mapping[str, Given]
Convert = Callable[[Given, Others], Outcome]
LONGEST = 2048  # tokens of a row where nobody says; what max_length is at most by default
_LENGTHS = ("cutoff_len", "max_length", "max_seq_length")


def _value(others: Others, *names: str) -> str:
    """What the first of these names that is given says, in lower case; '' for nothing."""
    return next((word(others[name].value) for name in names if name in others), "")


def _on(text: str) -> bool | None:
    return TRUTHS.get(text)


def _length(others: Others) -> int | None:
    return next((whole(others[name].value) for name in _LENGTHS if name in others), None)


def _batch(item: Given, others: Others) -> Outcome:
    rows = whole(item.value)
    if _on(_value(others, "packing")):
        return Outcome(left="packed rows are counted by tokens: batch_tokens")
    # batch_tokens is another limit: it must not be the one that holds.
    room = {"batch_tokens": str(rows * (_length(others) or LONGEST))} if rows and rows > 0 else {}
    return Outcome({"batch_rows": item.value}, room)


def _packing(item: Given, others: Others) -> Outcome:
    if not _on(word(item.value)):
        return Outcome(left="rows are not packed anyway")
    rows, length = whole(_value(others, "per_device_train_batch_size")), _length(others)
    if not rows or not length:
        return Outcome(refused="needs per_device_train_batch_size and a length (cutoff_len or max_length)")
    return Outcome({"batch_tokens": str(rows * length)})  # micro-batches of as many tokens; no row sees another


def _schedule(item: Given, others: Others) -> Outcome:
    name = word(item.value)
    if name == "constant":  # theirs has no warm-up, whatever warmup_ratio says
        return Outcome({"schedule": "constant", "warmup": "0"})
    if name == "constant_with_warmup":
        return Outcome({"schedule": "constant"})
    if name in ("cosine", "linear"):
        return Outcome({"schedule": name})
    return Outcome(refused="unknown schedule (want cosine, linear, constant or constant_with_warmup)")


def _warmup_ratio(item: Given, others: Others) -> Outcome:
    if _value(others, "lr_scheduler_type") == "constant":
        return Outcome(left="lr_scheduler_type: constant has no warm-up")
    if (number(_value(others, "warmup_steps")) or 0) > 0:
        return Outcome(left="warmup_steps holds")
    return Outcome({"warmup": item.value})


def _warmup_steps(item: Given, others: Others) -> Outcome:
    steps, total = number(item.value), number(_value(others, "max_steps"))
    if _value(others, "lr_scheduler_type") == "constant":
        return Outcome(left="lr_scheduler_type: constant has no warm-up")
    if steps == 0:
        return Outcome(unless={"warmup": "0"})
    if steps is not None and steps < 1:
        return Outcome({"warmup": item.value})
    if steps and total and steps < total:
        return Outcome({"warmup": f"{steps / total:.9g}"})
    return Outcome(refused="a number of steps needs max_steps beside it (want a share of the steps: warmup_ratio)")


def _bf16(item: Given, others: Others) -> Outcome:
    on = _on(word(item.value))
    if on is None:
        return Outcome(refused="want true or false")
    return Outcome({"precision": "bf16"}) if on else Outcome(unless={"precision": "fp32"})


def _dtype(item: Given, others: Others) -> Outcome:
    name = word(item.value).removeprefix("torch.")
    if name in ("", "auto"):
        return Outcome(left="precision is chosen by what the processor has")
    if name in ("bfloat16", "bf16", "float32", "fp32"):
        return Outcome({"precision": "bf16" if name.startswith("b") else "fp32"})
    return Outcome(refused="no such precision here (want bfloat16, float32 or auto)")


def _max_steps(item: Given, others: Others) -> Outcome:
    return Outcome({"max_steps": "none" if whole(item.value) == -1 else item.value})  # their way to say: no limit


def _target(item: Given, others: Others) -> Outcome:
    text = word(item.value) if isinstance(item.value, str) else ",".join(item.value)
    return Outcome({"lora.target": "all-linear" if text.lower() in ("all", "all-linear") else text})


def _rank(item: Given, others: Others) -> Outcome:
    rank = whole(item.value)
    return Outcome({"lora.rank": item.value}, {"lora.alpha": str(2 * rank)} if rank else {})


def _finetuning(item: Given, others: Others) -> Outcome:
    name = word(item.value)
    return Outcome({"method": name}) if name in ("lora", "full") else Outcome(refused="want lora or full")


def _use_peft(item: Given, others: Others) -> Outcome:
    return Outcome({"method": "lora" if _on(word(item.value)) else "full"})


def _stage(item: Given, others: Others) -> Outcome:
    sft = word(item.value) == "sft"
    return Outcome(left="tuning on answers is what tune does") if sft else Outcome(refused="want sft")


def _template(item: Given, others: Others) -> Outcome:
    text = item.value if isinstance(item.value, str) else ""
    if text in NOT_OFFERED:
        want = f"{', '.join(OWN)}, a Jinja file, or a format by name such as llama3 or qwen"
        return Outcome(refused=f"this chat format is not offered (want {want})")
    return Outcome({"template": text})


def _checkpointing_off(item: Given, others: Others) -> Outcome:
    return Outcome(unless={"checkpointing": "false" if _on(word(item.value)) else "true"})


def _clip(item: Given, others: Others) -> Outcome:
    return Outcome({"clip": "1e9" if number(item.value) == 0 else item.value})  # their 0 clips nothing


def _resume(item: Given, others: Others) -> Outcome:
    text = word(item.value)
    if not text:
        return Outcome(left="nothing is said")
    if _on(text) is not None:
        return Outcome({"resume": "true" if _on(text) else "false"})
    return Outcome(refused="a run goes on from its last checkpoint (want true; the run is named by output_dir)")


def _every(ours: str, strategy: str) -> Convert:
    def convert(item: Given, others: Others) -> Outcome:
        steps, when = number(item.value), _value(others, *strategy.split())
        if when in ("no", "epoch", "best"):
            return Outcome(left=f"{strategy.split()[0]} is {when}")
        if steps is not None and 0 < steps < 1:
            return Outcome(refused="a share of the steps can't be honoured (want a number of steps)")
        return Outcome({ours: item.value})

    return convert


def _eval_strategy(item: Given, others: Others) -> Outcome:
    when = word(item.value)
    if when in ("no", "false") and not {"val_size", "eval_dataset", "validation"} & set(others):
        return Outcome({"held_out": "none"})
    if when in ("no", "false", "epoch", "steps"):
        return Outcome(left="held-out rows are looked at twice an epoch, or by eval_steps")
    return Outcome(refused="want no, steps or epoch")


def _val_size(item: Given, others: Others) -> Outcome:
    size = number(item.value)
    if _value(others, "eval_dataset"):
        return Outcome(left="eval_dataset holds")
    if not size:
        return Outcome({"held_out": "none"}) if size == 0 else Outcome(left="nothing is said")
    if size >= 1:
        return Outcome(refused="a number of rows can't be honoured (want a share of the rows, such as 0.1)")
    return Outcome({"held_out": "row", "held_out_share": item.value})


def _best(item: Given, others: Others) -> Outcome:
    if _on(word(item.value)):
        return Outcome(left="the step that is best on held-out rows is always kept")
    return Outcome(refused="the step that is best on held-out rows is always kept (held_out: none keeps the last)")


def _metric(item: Given, others: Others) -> Outcome:
    name = word(item.value).removeprefix("eval_")
    return Outcome({"watch": name}) if name else Outcome(left="the loss is watched")


def _report_to(item: Given, others: Others) -> Outcome:
    names = [name.strip() for name in word(item.value).split(",") if name.strip() not in ("", "none")]
    if set(names) <= {"tensorboard", "wandb", "mlflow"}:
        return Outcome({"trackers": ",".join(names) or "none"})
    return Outcome(refused="want none, or some of tensorboard, wandb, mlflow, each by its name")


def _tensorboard(item: Given, others: Others) -> Outcome:
    """The name that the setting had when there was no other tracker."""
    on, given = _on(word(item.value)), {"trackers", "report_to"} & set(others)
    if on is None:
        return Outcome(refused="want true or false")
    if not given:
        return Outcome({"trackers": "tensorboard" if on else "none"})
    if on == ("tensorboard" in _value(others, *given)):
        return Outcome(left=f"{min(given)} says so")
    return Outcome(refused=f"{min(given)} says otherwise")


def _data_seed(item: Given, others: Others) -> Outcome:
    if word(item.value) in ("", _value(others, "seed")):
        return Outcome(left="seed holds for everything")
    return Outcome(refused="one seed holds for everything")


def _rows(item: Given, others: Others) -> Outcome:
    return Outcome({"data": item.value})


SPECIAL: dict[str, Convert] = {
    "per_device_train_batch_size": _batch,
    "packing": _packing,
    "neat_packing": lambda item, others: Outcome(left="no row sees another anyway"),
    "lr_scheduler_type": _schedule,
    "warmup_ratio": _warmup_ratio,
    "warmup_steps": _warmup_steps,
    "bf16": _bf16,
    "dtype": _dtype,
    "torch_dtype": _dtype,
    "max_steps": _max_steps,
    "lora_rank": _rank,
    "lora_target": _target,
    "lora_target_modules": _target,
    "target_modules": _target,
    "lora.target_modules": _target,
    "lora.target": _target,
    "finetuning_type": _finetuning,
    "use_peft": _use_peft,
    "stage": _stage,
    "template": _template,
    "disable_gradient_checkpointing": _checkpointing_off,
    "max_grad_norm": _clip,
    "resume_from_checkpoint": _resume,
    "eval_steps": _every("eval_every", "eval_strategy evaluation_strategy"),
    "save_steps": _every("save_steps", "save_strategy"),
    "eval_strategy": _eval_strategy,
    "evaluation_strategy": _eval_strategy,
    "val_size": _val_size,
    "load_best_model_at_end": _best,
    "metric_for_best_model": _metric,
    "report_to": _report_to,
    "tensorboard": _tensorboard,
    "data_seed": _data_seed,
    "dataset": datasets,
    "eval_dataset": watched,
    "dataset_name": _rows,
}
# For the page of names: what each of them sets, and what is special about it.
TARGETS = {
    "per_device_train_batch_size": "`batch_rows`; `batch_tokens` is made large enough",
    "packing": "`batch_tokens`: batch size times length; no row sees another",
    "lr_scheduler_type": "`schedule`: cosine, linear, constant (without warm-up), constant_with_warmup",
    "warmup_ratio": "`warmup`",
    "warmup_steps": "`warmup`: a share, or a number of steps where max_steps is given",
    "bf16": "`precision`: bf16 or fp32",
    "dtype": "`precision`: bfloat16, float32 or auto",
    "torch_dtype": "`precision`: bfloat16, float32 or auto",
    "max_steps": "`max_steps`: -1 is none",
    "lora_rank": "`lora.rank`; `lora.alpha` is twice that where nobody says",
    "lora_target": "`lora.target`: all is all-linear",
    "lora_target_modules": "`lora.target`",
    "target_modules": "`lora.target`",
    "lora.target_modules": "`lora.target`",
    "lora.target": "`lora.target`: all is all-linear",
    "finetuning_type": "`method`: lora or full",
    "use_peft": "`method`: true is lora, false is full",
    "template": "`template`: llama3, qwen … are the model's own, if it is of that format",
    "disable_gradient_checkpointing": "`checkpointing`, turned round",
    "max_grad_norm": "`clip`: 0 clips nothing",
    "resume_from_checkpoint": "`resume`: true or false",
    "eval_steps": "`eval_every`",
    "save_steps": "`save_steps`",
    "eval_strategy": "`held_out`: no is none",
    "evaluation_strategy": "`held_out`: no is none",
    "val_size": "`held_out`: row, and `held_out_share`; 0 is none",
    "metric_for_best_model": "`watch`",
    "report_to": "`trackers`",
    "tensorboard": "`trackers`: tensorboard or none",
    "dataset": "`data` and `columns`, by dataset_info.json in dataset_dir",
    "eval_dataset": "`validation`",
    "dataset_name": "`data`",
    "stage": "nothing to set: sft is what tune does; refused otherwise",
    "neat_packing": "nothing to set: no row sees another",
    "load_best_model_at_end": "nothing to set: the best step on held-out rows is kept; false is refused",
    "data_seed": "nothing to set where it is `seed`; refused otherwise",
}
