"""Settings by the names of transformers, TRL and LLaMA-Factory: what each comes to, and that none is passed over."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from instructrec.config import EvaluateSettings, TuneSettings
from instructrec.errors import InputError
from instructrec.leaves import leaves_of
from instructrec.prompts.builtin import BUILTIN
from instructrec.settings import Resolved, SettingsError, checked, foreign_notes, resolve, values_of
from instructrec.synonyms import NAMES, SWITCHES, convert, outcome_of, table, templates, translate
from instructrec.synonyms.given import Given
from instructrec.synonyms.words import as_assignments

# The layout of LLaMA-Factory's examples, with its names for all that a LoRA run needs.
FACTORY = """\
### model
model_name_or_path: smollm2-135m
trust_remote_code: true

### method
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all

### dataset
dataset: words,colours
template: qwen
cutoff_len: 256
max_samples: 1000
overwrite_cache: true
preprocessing_num_workers: 16

### output
output_dir: saves/ours
logging_steps: 10
save_steps: 500
plot_loss: true
overwrite_output_dir: true
report_to: none

### train
per_device_train_batch_size: 2
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
ddp_timeout: 180000000
resume_from_checkpoint: null

### eval
val_size: 0.1
per_device_eval_batch_size: 1
eval_strategy: steps
eval_steps: 500
"""
# The layout that TRL's parser of YAML files reads.
TRL = """\
model_name_or_path: smollm2-135m
dtype: float32
attn_implementation: sdpa
dataset_name: rows.jsonl
dataset_train_split: train
use_peft: true
lora_r: 32
lora_alpha: 16
lora_dropout: 0.05
lora_target_modules: [q_proj, v_proj]
learning_rate: 2.0e-4
num_train_epochs: 1
per_device_train_batch_size: 4
packing: true
max_length: 512
gradient_checkpointing: true
gradient_checkpointing_kwargs: {use_reentrant: false}
lr_scheduler_type: constant
warmup_ratio: 0.1
optim: adamw_torch
eval_strategy: 'no'
logging_steps: 1
output_dir: out
"""
INFO = {
    "words": {"file_name": "words.jsonl", "columns": {"prompt": "q", "response": "a"}},
    "colours": {"file_name": "colours.jsonl", "columns": {"prompt": "q", "response": "a"}},
    "talk": {
        "file_name": "talk.jsonl",
        "formatting": "sharegpt",
        "columns": {"messages": "turns", "system": "sys"},
        "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
    },
    "pairs": {"file_name": "pairs.jsonl", "ranking": True},
    "odd": {"file_name": "odd.jsonl", "formatting": "sharegpt", "tags": {"role_tag": "who"}},
    "script": {"script_url": "loader"},
}


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    Path("data/dataset_info.json").write_text(json.dumps(INFO))


def given(text: str, *overrides: tuple[str, str]) -> Resolved[TuneSettings]:
    Path("run.yaml").write_text(text)
    return resolve(TuneSettings, Path("run.yaml"), overrides)


def refused(text: str, *overrides: tuple[str, str]) -> list[str]:
    with pytest.raises(InputError) as caught:
        given(text, *overrides)
    return str(caught.value).splitlines()


def changed(resolved: Resolved[TuneSettings]) -> dict[str, Any]:
    return {key: value for key, value in values_of(resolved.settings).items() if resolved.origins[key] != "default"}


def test_a_file_of_llama_factory_runs_as_it_is() -> None:
    resolved = given(FACTORY)
    assert resolved.data == ("data/words.jsonl", "data/colours.jsonl")
    assert changed(resolved) == {
        "columns": {"instruction": "q", "answer": "a"}, "max_rows": 1000, "model": "smollm2-135m", "method": "lora",
        "lora.rank": 8, "lora.alpha": 16.0, "lora.target": "all-linear", "precision": "bf16", "template": "qwen",
        "max_length": 256, "held_out": "row", "held_out_share": 0.1, "eval_every": 500, "epochs": 3.0,
        "batch_tokens": 512, "batch_rows": 2, "accumulation": 8, "learning_rate": 1e-4, "schedule": "cosine",
        "warmup": 0.1, "out": "saves/ours", "save_steps": 500, "trackers": "none",
    }  # fmt: skip
    origins = {key: resolved.origins[key] for key in ("data", "lora.alpha", "batch_tokens", "learning_rate", "clip")}
    assert origins == {
        "data": "run.yaml:13 as dataset",
        "lora.alpha": "run.yaml:9 as lora_rank",
        "batch_tokens": "run.yaml:29 as per_device_train_batch_size",
        "learning_rate": "run.yaml:31",
        "clip": "default",
    }


def test_every_name_of_a_file_is_told() -> None:
    resolved = given(FACTORY)
    own = {"template", "learning_rate", "save_steps"}
    names = {line.partition(":")[0] for line in FACTORY.splitlines() if line and line[0] != "#"}
    assert {fate.item.key for fate in resolved.fates} == names - own
    honoured, left, silent = foreign_notes(resolved)
    assert honoured.startswith("run.yaml: settings by other names: model_name_or_path as model, finetuning_type as")
    for text in ("lora_rank as lora.rank 8, lora.alpha 16", "lora_target as lora.target all-linear", "bf16 as precision"
                 " bf16", "dataset as data data/words.jsonl,data/colours.jsonl, columns instruction=q,answer=a",
                 "per_device_train_batch_size as batch_rows 2, batch_tokens 512", "val_size as held_out row, held_out"):  # fmt: skip
        assert text in honoured
    assert "overwrite_cache, preprocessing_num_workers (rows are read and rendered in one process)" in left
    assert silent == "run.yaml: not said, so our defaults hold: weight_decay 0.0, lora.dropout 0.0, patience 4, seed 0"
    assert foreign_notes(given("epochs: 2\n")) == []


def test_a_file_of_trl_runs_as_it_is() -> None:
    resolved = given(TRL)
    assert resolved.data == ("rows.jsonl",)
    assert changed(resolved) == {
        "model": "smollm2-135m", "method": "lora", "lora.rank": 32, "lora.alpha": 16.0, "lora.dropout": 0.05,
        "lora.target": "q_proj,v_proj", "precision": "fp32", "max_length": 512, "held_out": "none", "epochs": 1.0,
        "batch_tokens": 2048, "learning_rate": 2e-4, "schedule": "constant", "warmup": 0.0, "checkpointing": True,
        "out": "out",
    }  # fmt: skip


def test_all_that_cannot_be_honoured_is_named_at_once() -> None:
    lines = (
        FACTORY.replace("cosine", "polynomial") + "neftune_noise_alpha: 5\nuse_galore: true\nfoo: 3\nbatch_tokens: 0\n"
    )
    assert refused(lines, ("quantization_bit", "4")) == [
        "run.yaml:33: lr_scheduler_type: unknown schedule (want cosine, linear, constant or constant_with_warmup) "
        "(got polynomial)",
        "run.yaml:44: neftune_noise_alpha: noise on the embeddings is not offered (got 5)",
        "run.yaml:45: use_galore: the optimizer is AdamW (got true)",
        "run.yaml:46: foo: unknown setting ('instructrec config show' lists all)",
        "run.yaml:47: batch_tokens: out of range (got 0, want a whole number from 1 upwards)",
        "command line: quantization_bit: a quantised backbone is not offered (got 4)",
        "--ignore lr_scheduler_type,neftune_noise_alpha,use_galore,quantization_bit,foo leaves these out, "
        "with another result",
    ]
    many = refused("".join(f"x{number}: 1\n" for number in range(30)))
    assert len(many) == 30 and many[29].startswith("run.yaml:30: x29: unknown")


def test_what_is_to_be_ignored_is_named() -> None:
    lines = "num_train_epochs: 2\nuse_galore: true\nfoo: 3\n"
    resolved = given(lines, ("ignore", "use_galore, foo"))
    assert changed(resolved) == {"epochs": 2.0, "ignore": "use_galore, foo"}
    assert "run.yaml: left out as asked, with another result: use_galore, foo" in foreign_notes(resolved)
    assert refused(lines, ("ignore", "use_galore,foo,use_gallore,epochs")) == [
        "command line: ignore: 'epochs' is not given",
        "command line: ignore: 'use_gallore' is not given, did you mean 'use_galore'?",
        "command line: ignore: 'epochs' is a setting of this program: take it out instead",
    ]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("batch_rows: 2\nper_device_train_batch_size: 4", "2: per_device_train_batch_size: means batch_rows 4, but batch_rows in line 1 gives it as 2"),
        ("lora_r: 4\nlora: {rank: 8}", "2: lora.rank: means lora.rank 8, but lora_r in line 1 gives it as 4"),
        ("cutoff_len: 64\nmax_length: 65", "2: max_length: means max_length 65, but cutoff_len in line 1 gives it as 64"),
        ("data: a.jsonl\ndataset_name: b.jsonl", "2: dataset_name: means data b.jsonl, but data in line 1 gives it as a list"),
    ],
)  # fmt: skip
def test_two_names_with_different_values(lines: str, message: str) -> None:
    assert refused(lines) == [f"run.yaml:{message}".replace("as a list", "as a.jsonl")]


def test_two_names_with_one_value_and_the_command_line() -> None:
    assert given("cutoff_len: 64\nmax_length: 64.0\nmax_seq_length: 64\n").settings.max_length == 64
    resolved = given("num_train_epochs: 2\ncutoff_len: 64\n", ("epochs", "5"), ("max_seq_length", "32"))
    assert (resolved.settings.epochs, resolved.settings.max_length) == (5.0, 32)
    assert resolved.origins["max_length"] == "command line as max_seq_length"


@pytest.mark.parametrize(
    ("lines", "want"),
    [
        ("bf16: false", {"precision": "fp32"}),
        ("bf16: true\ndtype: auto", {"precision": "bf16"}),
        ("torch_dtype: torch.bfloat16", {"precision": "bf16"}),
        ("max_steps: -1", {"max_steps": None}),
        ("warmup_steps: 5\nmax_steps: 100", {"warmup": 0.05, "max_steps": 100}),
        ("warmup_steps: 0", {"warmup": 0.0}),
        ("warmup_steps: 0\nwarmup_ratio: 0.2", {"warmup": 0.2}),
        ("warmup_steps: 0.1", {"warmup": 0.1}),
        ("lr_scheduler_type: constant_with_warmup\nwarmup_ratio: 0.2", {"schedule": "constant", "warmup": 0.2}),
        ("max_grad_norm: 0", {"clip": 1e9}),
        ("max_grad_norm: 0.3", {"clip": 0.3}),
        ("use_peft: false", {"method": "full"}),
        ("finetuning_type: full", {"method": "full"}),
        ("lora_target: [q_proj, k_proj]", {"lora.target": "q_proj,k_proj"}),
        ("lora: {r: 4, lora_alpha: 8, target_modules: all-linear}", {"lora.rank": 4, "lora.alpha": 8.0, "lora.target": "all-linear"}),
        ("use_dora: true\nuse_rslora: false", {"lora.dora": True, "lora.rslora": False}),
        ("lora_rank: 4\nlora_alpha: 4", {"lora.rank": 4, "lora.alpha": 4.0}),
        ("disable_gradient_checkpointing: true", {"checkpointing": False}),
        ("report_to: [tensorboard, wandb]", {"trackers": "tensorboard,wandb"}),
        ("report_to: all\nignore: report_to", {"ignore": "report_to"}),
        ("trackers: [mlflow]", {"trackers": "mlflow"}),
        ("tensorboard: false", {"trackers": "none"}),
        ("tensorboard: true\ntrackers: wandb, tensorboard", {"trackers": "wandb,tensorboard"}),
        ("resume_from_checkpoint: true", {"resume": True}),
        ("eval_strategy: 'no'\nval_size: 0.2", {"held_out": "row", "held_out_share": 0.2}),
        ("val_size: 0", {"held_out": "none"}),
        ("eval_strategy: epoch\neval_steps: 10", {}),
        ("per_device_train_batch_size: 4", {"batch_rows": 4, "batch_tokens": 8192}),
        ("per_device_train_batch_size: 4\nbatch_tokens: 100", {"batch_rows": 4, "batch_tokens": 100}),
        ("early_stopping_patience: 3", {"patience": 3}),
        ("metric_for_best_model: eval_loss", {"watch": "loss"}),
        ("default_system: Be short.", {"system": "Be short."}),
        ("optim: adamw_torch\nadam_epsilon: 1e-08\nlabel_smoothing_factor: 0.0\nfp16: false\nenv:\n", {}),
        ("seed: 4\ndata_seed: 4", {"seed": 4}),
        ("eval_dataset: words", {"validation": "data/words.jsonl"}),
        ("dataset: talk", {"columns": {"messages": "turns", "system": "sys"}}),
    ],
)  # fmt: skip
def test_values_that_change_on_the_way(lines: str, want: dict[str, Any]) -> None:
    assert changed(given(lines)) == want


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("fp16: true", "fp16 needs scaling of the loss, which is not offered (want bf16: true) (got true)"),
        ("warmup_steps: 20", "a number of steps needs max_steps beside it (want a share of the steps: warmup_ratio) (got 20)"),
        ("val_size: 500", "a number of rows can't be honoured (want a share of the rows, such as 0.1) (got 500)"),
        ("eval_steps: 0.25", "a share of the steps can't be honoured (want a number of steps) (got 0.25)"),
        ("packing: true", "needs per_device_train_batch_size and a length (cutoff_len or max_length) (got true)"),
        ("report_to: all", "want none, or some of tensorboard, wandb, mlflow, each by its name (got all)"),
        ("tensorboard: maybe", "want true or false (got maybe)"),
        ("stage: dpo", "want sft (got dpo)"),
        ("template: vicuna", "this chat format is not offered (want auto, model, alpaca, plain, cloze, a Jinja file, or a format by name such as llama3 or qwen) (got vicuna)"),
        ("completion_only_loss: false", "only answers are learned (got false)"),
        ("resume_from_checkpoint: out/checkpoint-50", "a run goes on from its last checkpoint (want true; the run is named by output_dir) (got out/checkpoint-50)"),
        ("optim: paged_adamw_32bit", "the optimizer is AdamW (got paged_adamw_32bit)"),
        ("adam_beta2: 0.95", "AdamW has its usual constants (got 0.95)"),
        ("env: {CUDA_VISIBLE_DEVICES: '0'}", "set environment variables in the shell (got a section)"),
        ("datasets: [{path: a}]", "a mixture comes as data: a list of files (got a list)"),
        ("dataset: wrds", "'wrds' is not in data/dataset_info.json, did you mean 'words'? (got wrds)"),
        ("dataset: pairs", "data/dataset_info.json: pairs: pairs of answers to rank are for stages other than sft (got pairs)"),
        ("dataset: odd", "data/dataset_info.json: odd: tags: want from, value, human, gpt or role, content, user, assistant (got odd)"),
        ("dataset: script", "data/dataset_info.json: script: script_url can't be honoured (want a file_name) (got script)"),
        ("dataset: words,talk", "the data sets have different columns; tune on one, or give the files one set of names (got words,talk)"),
        ("eval_dataset: words,colours", "one file is watched (got 2) (got words,colours)"),
    ],
)  # fmt: skip
def test_values_that_cannot_be_honoured(line: str, reason: str) -> None:
    name = line.partition(":")[0]
    assert refused(line) == [
        f"run.yaml:1: {name}: {reason}",
        f"--ignore {name} leaves these out, with another result",
    ]


def test_data_sets_without_a_list_of_them() -> None:
    Path("data/dataset_info.json").unlink()
    Path("rows.jsonl").write_text("{}")
    assert given("dataset: rows.jsonl").data == ("rows.jsonl",)
    (line, _) = refused("dataset: rows\ndataset_dir: sets")
    assert line.endswith(
        "'rows' is no file, and there is no sets/dataset_info.json to say which one it means (got rows)"
    )
    Path("data/dataset_info.json").write_text("{")
    assert "data/dataset_info.json: not JSON" in refused("dataset: rows")[0]


def test_the_list_of_data_sets_beside_the_settings_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("run.yaml").write_text("dataset: words\n")
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert resolve(TuneSettings, Path("../run.yaml"), []).data == (str(Path("../data/words.jsonl")),)


def test_evaluate_knows_only_its_own() -> None:
    Path("run.yaml").write_text("per_device_eval_batch_size: 8\ndtype: bfloat16\n")
    settings = resolve(EvaluateSettings, Path("run.yaml"), []).settings
    assert settings.batch_rows == 8
    Path("run.yaml").write_text("logging_steps: 8\nnum_train_epochs: 1\n")
    with pytest.raises(SettingsError) as caught:
        resolve(EvaluateSettings, Path("run.yaml"), [])
    assert len(str(caught.value).splitlines()) == 2


def test_keyword_arguments_by_other_names(capsys: pytest.CaptureFixture[str]) -> None:
    values = {"num_train_epochs": 2, "per_device_train_batch_size": 4, "lora_target": "all", "lora": {"r": 4},
              "bf16": False, "logging_steps": 5, "report_to": [], "max_steps": -1, "seed": 3, "lora_alpha": 8}  # fmt: skip
    settings = checked(TuneSettings, values)
    assert settings == TuneSettings.model_validate(
        {"epochs": 2, "batch_rows": 4, "batch_tokens": 8192, "lora": {"rank": 4, "alpha": 8}, "precision": "fp32",
         "trackers": "none", "max_steps": None, "seed": 3}
    )  # fmt: skip
    honoured, left = capsys.readouterr().err.splitlines()
    assert honoured.startswith("keyword arguments: settings by other names: num_train_epochs as epochs, ")
    assert left == "keyword arguments: not needed here: logging_steps (each step is logged)"
    with pytest.raises(InputError) as caught:
        checked(TuneSettings, {"epochs": 1, "num_train_epochs": 2, "use_galore": True, "dataset_name": "a.jsonl"})
    assert str(caught.value).splitlines() == [
        "num_train_epochs: means epochs 2, but epochs gives it as 1",
        "dataset_name: the rows are the first argument",
        "use_galore: the optimizer is AdamW (got true)",
        "ignore=use_galore leaves these out, with another result",
    ]
    assert checked(TuneSettings, {"use_galore": True, "ignore": "use_galore"}).ignore == "use_galore"


def test_options_by_other_names() -> None:
    words = (
        "rows.tsv --num-train-epochs 3 --bf16 --use-peft true --lora-rank 4 --lora-target-modules=q_proj --no-packing"
    )
    result = (
        "rows.tsv num_train_epochs=3 bf16=true use_peft=true --lora-rank 4 lora_target_modules=q_proj packing=false"
    )
    assert as_assignments(words.split(), {"--lora-rank"}) == result.split()
    assert as_assignments(["--zzz", "--", "--bf16"], ()) == ["--zzz", "--", "--bf16"]
    with pytest.raises(InputError, match="^--num-train-epochs: has no value$"):
        as_assignments(["--num-train-epochs"], ())


def test_the_tables_hold_together() -> None:
    known = leaves_of(TuneSettings)
    assert set(table.SAME.values()) <= set(known)
    assert set(table.SAME_IN_EVALUATE.values()) <= set(leaves_of(EvaluateSettings))
    groups = [set(table.SAME), set(convert.SPECIAL), set(table.NOT_NEEDED), set(table.REFUSED)]
    assert len(set().union(*groups)) == sum(map(len, groups)) == len(NAMES) > 250
    assert SWITCHES <= NAMES
    ours = (set(table.SAME) | set(table.NOT_NEEDED) | set(table.REFUSED)) & set(known)
    assert not ours
    named = {key for text in convert.TARGETS.values() for key in re.findall("`([a-z_.]+)`", text)}
    assert named <= {*known, "data"}
    assert set(convert.TARGETS) == set(convert.SPECIAL)
    assert set(BUILTIN) <= set(templates.OWN) and not set(templates.MARKS) & {*templates.OWN, *templates.NOT_OFFERED}


def test_every_name_comes_to_one_thing_whatever_its_value() -> None:
    known = leaves_of(TuneSettings)
    for name in sorted(NAMES):
        for value in ("", "true", "false", "0", "1", "0.5", "word", "none", ["a"], {"a": "b"}):
            item = Given(name, value, "run.yaml", 1)
            outcome = outcome_of(item, {name: item}, known)
            assert outcome is not None
            said = [bool(outcome.sets or outcome.unless), bool(outcome.left), bool(outcome.refused)]
            assert sum(said) == 1, (name, value, outcome)
            assert {*outcome.sets, *outcome.unless} <= {*known, "data"}
            assert not translate([item], known, [name]).given
