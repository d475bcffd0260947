"""Every setting a user can give, with its default, range and unit. Settings stop at the door: rooms under
`models/` and `training/` take plain numbers.

`TuneSettings` is flat; what belongs to one tuning method lives in that method's own small class (`lora.rank`).
A class's `group` is the title under which its fields stand in the help of the command line.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, field_validator

Share = Annotated[float, Field(ge=0.0, lt=1.0)]
ShotsBy = Literal["random", "balanced", "bm25", "embedding", "diverse"]


class Settings(BaseModel):
    """Base: unknown keys are refused, values are checked, NaN and infinity are not numbers here."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())
    group: ClassVar[str] = "Settings"


def _pairs(value: Any) -> Any:
    """`a=b,c=d` as a dict."""
    if not isinstance(value, str):
        return value
    pairs = [pair.partition("=") for pair in value.split(",") if pair.strip()]
    if any(not equals for _, equals, _ in pairs):
        raise ValueError("want pairs such as instruction=text,answer=label")
    return {name.strip(): column.strip() for name, _, column in pairs}


def _listed(value: Any, known: tuple[str, ...]) -> str:
    """Some of the known names, from a list or `a,b`, each once; `none` where there are none."""
    parts = value if isinstance(value, (list, tuple)) else str(value).split(",")
    names = list(dict.fromkeys(str(part).strip() for part in parts if str(part).strip() not in ("", "none")))
    if not set(names) <= {*known}:
        raise ValueError(f"want none, or some of {', '.join(known)}")
    return ",".join(names) or "none"


class DataSettings(Settings):
    """How rows are read."""

    group: ClassVar[str] = "Data"
    format: Literal["auto", "tsv", "csv", "json", "jsonl", "parquet"] = Field(
        "auto", description="file format; auto goes by name and content"
    )
    columns: dict[str, str] = Field(
        default_factory=dict, description="which column is what: instruction=text,answer=label (TSV: name or number)"
    )
    instruction: str = Field(
        "",
        description="one instruction for every row; with {column} in it, filled from the row, else its text is input",
    )
    labels: dict[str, str] = Field(
        default_factory=dict,
        description="answers that the values of the answer column stand for: 0=negative,1=positive",
    )
    mix_temperature: PositiveFloat = Field(
        1.0, description="share of a source in the mix: its rows to the power of 1/T; 1: every row once an epoch"
    )
    on_bad_row: Literal["stop", "skip"] = Field(
        "stop", description="stop at bad rows, or skip them into rejected.jsonl"
    )

    @field_validator("columns", "labels", mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return _pairs(value)


class Source(Settings):
    """One of several sources of rows, as an item of `data:`; what is not said here is as for all of them."""

    group: ClassVar[str] = "Source"
    path: str = Field("", description="file, folder, pattern such as data/*.jsonl, or hub id")
    weight: PositiveFloat | None = Field(None, description="share in the mix, beside the weights of the other sources")
    format: Literal["auto", "tsv", "csv", "json", "jsonl", "parquet"] | None = Field(None, description="as --format")
    columns: dict[str, str] | None = Field(None, description="as --columns")
    instruction: str | None = Field(None, description="as --instruction")
    labels: dict[str, str] | None = Field(None, description="as --labels")

    @field_validator("columns", "labels", mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return _pairs(value)

    def __str__(self) -> str:
        return self.path if self.weight is None else f"{self.path}:{self.weight:g}"


class TrainingRowsSettings(DataSettings):
    """Which of the rows are tuned on."""

    group: ClassVar[str] = "Data"
    max_rows: PositiveInt | None = Field(
        None, description="rows of each file to train on at most, drawn by seed, held-out ones apart; default: all"
    )
    train_share: float = Field(
        1.0, gt=0, le=1, description="share of the training rows to use, drawn by seed: smaller ones are part of larger"
    )


class LoraSettings(Settings):
    """LoRA (arXiv 2106.09685) on all linear layers of the backbone."""

    group: ClassVar[str] = "LoRA (--method lora)"
    rank: PositiveInt = Field(16, description="rank of the update")
    alpha: PositiveFloat = Field(32.0, description="scale: the update is multiplied by alpha / rank")
    dropout: Share = Field(0.0, description="dropout on the input of the update")
    target: str = Field("all-linear", description="all-linear, or module names separated by commas")
    dora: bool = Field(False, description="DoRA: learn the length of each output's weights beside their direction")
    rslora: bool = Field(False, description="rsLoRA: the update is multiplied by alpha / sqrt(rank) instead")


class Ia3Settings(Settings):
    """IA3 (arXiv 2205.05638): learned scales of keys, values and inner feed-forward activations."""

    group: ClassVar[str] = "IA3 (--method ia3)"
    target: str = Field(
        "auto", description="auto: keys, values, last feed-forward layers; or module names separated by commas"
    )


class AdapterSettings(Settings):
    """Bottleneck task adapter (arXiv 1902.00751)."""

    group: ClassVar[str] = "Task adapter (--method adapter)"
    width: PositiveInt = Field(64, description="width of the bottleneck")
    placement: Literal["houlsby", "pfeiffer"] = Field(
        "houlsby", description="behind attention and feed-forward layers, or behind feed-forward layers only"
    )
    activation: Literal["gelu", "relu", "silu"] = Field("gelu", description="what bends the bottleneck")
    dropout: Share = Field(0.0, description="dropout inside the bottleneck")


class SoftPromptSettings(Settings):
    """What the methods share that put learned positions in front of every row."""

    group: ClassVar[str] = "Soft prompts"
    length: int = Field(20, ge=1, le=1024, description="learned positions in front of every row")
    init: Literal["text", "vocabulary", "random"] = Field(
        "text", description="first values: those of real text, of words drawn from the vocabulary, or random numbers"
    )
    text: str = Field("", description="the text to start from; default: what training rows ask")


class PrefixTuningSettings(SoftPromptSettings):
    """Prefix-Tuning (arXiv 2101.00190): learned keys and values in all layers."""

    group: ClassVar[str] = "Prefix-Tuning (--method prefix_tuning)"


class PromptTuningSettings(SoftPromptSettings):
    """Prompt tuning (arXiv 2104.08691): learned embeddings."""

    group: ClassVar[str] = "Prompt tuning (--method prompt_tuning)"


class PTuningSettings(SoftPromptSettings):
    """P-tuning (arXiv 2103.10385): embeddings that a small network makes."""

    group: ClassVar[str] = "P-tuning (--method p_tuning)"
    encoder: Literal["mlp", "lstm"] = Field("mlp", description="the network that makes the embeddings")
    width: int = Field(0, ge=0, le=8192, description="width of its hidden layer; 0: that of the model")
    layers: int = Field(2, ge=1, le=8, description="layers of the LSTM")
    dropout: Share = Field(0.0, description="dropout between layers of the LSTM")


class EncoderSettings(Settings):
    """How a masked encoder (BERT-like) answers; other models have nothing of this."""

    group: ClassVar[str] = "Masked encoders"
    head: Literal["auto", "cloze", "mean", "cls"] = Field(
        "auto",
        description="cloze: the label whose words fit at a mask; mean, cls: a classification head over the mean or the "
        "first state; auto: cloze where the model has a masked-LM head, else mean",
    )
    verbalizer: str = Field(
        "auto", description="words of the labels: auto (the labels of the rows, in their own words), or a file"
    )


class FullSettings(Settings):
    """Full fine-tuning has no settings of its own."""


class MachineSettings(Settings):
    """Where and how precisely to compute."""

    group: ClassVar[str] = "Machine"
    precision: Literal["auto", "bf16", "fp32"] = Field("auto", description="auto: bf16 where the processor has it")
    threads: int = Field(
        0, ge=0, description="processor threads; 0: torch's own choice, as many as the cores it may use"
    )
    offline: bool = Field(False, description="never ask the network for anything")


class ModelSettings(Settings):
    """What is tuned, and by which method."""

    group: ClassVar[str] = "Model"
    model: str = Field("smollm2-135m", description="built-in name, local folder, GGUF file or hub id")
    method: str = Field("lora", description="tuning method")
    lora: LoraSettings = Field(default_factory=LoraSettings)
    full: FullSettings = Field(default_factory=FullSettings)
    prefix_tuning: PrefixTuningSettings = Field(default_factory=PrefixTuningSettings)
    prompt_tuning: PromptTuningSettings = Field(default_factory=PromptTuningSettings)
    p_tuning: PTuningSettings = Field(default_factory=PTuningSettings)
    ia3: Ia3Settings = Field(default_factory=Ia3Settings)
    adapter: AdapterSettings = Field(default_factory=AdapterSettings)


class TemplateSettings(Settings):
    """How the model is asked."""

    group: ClassVar[str] = "Prompt"
    template: str = Field(
        "auto", description="auto (the model's own, else alpaca), model, alpaca, plain, cloze, or a Jinja file"
    )
    system: str = Field("", description="system message for rows that have none")
    encoder: EncoderSettings = Field(default_factory=EncoderSettings)


class ReadingSettings(Settings):
    """How often and how an instruction is read (docs/rrtransformer.md)."""

    group: ClassVar[str] = "Reading (RRTransformer)"
    strokes: Annotated[str, "a number such as 2, or several such as 1,2,3"] = Field(
        "1", description="how often an instruction is read, or several numbers of which one is drawn for each step"
    )
    prior: Literal["tuned", "frozen"] = Field("tuned", description="weights of the first reading; frozen: untuned")
    stroke_adapters: Literal["shared", "separate"] = Field(
        "shared", description="one adapter for all readings, or one each"
    )
    deep: bool = Field(False, description="in training, answer after every reading")
    consistency: float = Field(0.0, ge=0, description="weight of agreement between the answers of deep")
    slots: int = Field(0, ge=0, le=256, description="learned keys and values that stand before the instruction")
    memory: Literal["all", "sink+last"] = Field(
        "all", description="what answers see of earlier readings: all, or only the first tokens of the first"
    )
    direction: Literal["causal", "bidirectional"] = Field("causal", description="attention in the later readings")
    mix: Literal["concat", "gated"] = Field(
        "concat", description="how a reading joins the memory: behind it, or averaged with it by learned gates"
    )

    @field_validator("strokes", mode="before")
    @classmethod
    def _strokes_as_text(cls, value: Any) -> Any:
        parts = value if isinstance(value, (list, tuple)) else str(value).split(",")
        texts = [str(part).strip() for part in parts]
        if not texts or not all(re.fullmatch("[0-9]{1,4}", text) for text in texts):
            raise ValueError("want a number such as 2, or several such as 1,2,3")
        return ",".join(str(int(text)) for text in texts)  # one spelling: a resumed run compares it


class PromptSettings(TemplateSettings):
    """What a row looks like to the model."""

    group: ClassVar[str] = "Prompt"
    max_length: PositiveInt | None = Field(
        None, description="tokens a row may have; default: what the model can, up to 2048"
    )
    on_long: Literal["stop", "drop", "trim-input"] = Field("stop", description="what to do with rows over max_length")


class HeldOutSettings(Settings):
    """What is kept out of training to watch, and what is done with it."""

    group: ClassVar[str] = "Held-out rows"
    validation: str | None = Field(None, description="file of rows to watch instead of holding out training rows")
    held_out: Literal["auto", "task", "wording", "row", "none"] = Field(
        "auto", description="what is kept out of training to watch: whole tasks, wordings, rows"
    )
    held_out_share: Share = Field(0.1, description="share of rows (or wordings) kept out")
    held_out_tasks: Annotated[int, Field(ge=0)] | None = Field(
        None, description="tasks kept out; default: one in six, at most 4"
    )
    test_share: Share = Field(
        0.0, description="share of rows kept for `evaluate` alone: whole tasks, wordings and rows; 0: bring a test file"
    )
    unseen_weight: float = Field(0.5, ge=0, le=1, description="weight of unseen tasks in the watched mix")
    watch: str = Field("loss", description="what decides the best checkpoint: loss, or a metric such as exact_match")
    eval_every: PositiveInt | None = Field(
        None, description="steps between two looks at the held-out rows; default: 2 an epoch"
    )
    eval_rows: PositiveInt = Field(100, description="held-out rows looked at, for each set")
    patience: Annotated[int, Field(ge=0)] = Field(
        4, description="looks without improvement before stopping; 0: never stop early"
    )


class OptimisationSettings(Settings):
    """How long and how fast to train."""

    group: ClassVar[str] = "Optimisation"
    epochs: PositiveFloat = Field(4.0, description="passes over the training rows")
    max_steps: PositiveInt | None = Field(None, description="stop after so many optimizer steps")
    batch_tokens: PositiveInt = Field(512, description="tokens of one micro-batch, padding included")
    batch_rows: PositiveInt | None = Field(None, description="rows of one micro-batch at most")
    accumulation: PositiveInt = Field(1, description="micro-batches of one optimizer step")
    learning_rate: PositiveFloat | None = Field(
        None, description="peak learning rate; default: what the method works well with"
    )
    schedule: Literal["cosine", "linear", "constant"] = Field("cosine", description="decay after the warm-up")
    warmup: Share = Field(0.05, description="share of steps with rising learning rate")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's decoupled weight decay")
    clip: PositiveFloat = Field(1.0, description="largest gradient norm")
    checkpointing: bool = Field(False, description="recompute activations: less memory, a third more time")
    seed: int = Field(0, ge=0, lt=2**31, description="of everything random")


class OutputSettings(Settings):
    """What is written, and where."""

    group: ClassVar[str] = "Output"
    out: str | None = Field(None, description="run folder; default: runs/ and the name of the data file")
    save_steps: PositiveInt | None = Field(None, description="steps between two checkpoints; default: at each look")
    resume: Literal[False, True, "latest-valid"] = Field(
        False,
        description="go on from the last checkpoint in the run folder; latest-valid: from the last undamaged one",
    )
    learning_curve: bool = Field(
        False, description="also tune on a quarter and half of the rows, and say how much more of them would help"
    )
    trackers: Annotated[str, "none, or some of tensorboard, wandb, mlflow"] = Field(
        "tensorboard", description="what keeps track of the figures, separated by commas: tensorboard, wandb, mlflow"
    )
    ignore: str = Field(
        "", description="names of other programs' settings to leave out although the result depends on them: a,b"
    )

    @field_validator("trackers", mode="before")
    @classmethod
    def _known_trackers(cls, value: Any) -> Any:
        return _listed(value, ("tensorboard", "wandb", "mlflow"))


# Fields come in the order of the bases read from right to left.
class TuneSettings(
    OutputSettings,
    OptimisationSettings,
    HeldOutSettings,
    ReadingSettings,
    PromptSettings,
    MachineSettings,
    ModelSettings,
    TrainingRowsSettings,
):
    """Everything `instructrec tune` can be told."""


class EvaluateSettings(TemplateSettings, MachineSettings, DataSettings):
    """Everything `instructrec evaluate` can be told."""

    group: ClassVar[str] = "Evaluation"
    arms: str = Field(
        "base,reread,few_shot,tuned",
        description="what to compare, separated by commas: base, reread (where strokes > 1), few_shot, tuned",
    )
    shots: PositiveInt = Field(3, description="rows shown to the few-shot model")
    shots_by: ShotsBy = Field("random", description="which rows: drawn, of each label in turn, or the nearest")
    max_new_tokens: PositiveInt | None = Field(
        None, description="tokens of an answer at most; default: by the longest right one"
    )
    rows: PositiveInt | None = Field(None, description="rows of a suite at most, drawn by seed; default: all")
    training_rows: bool = Field(False, description="also measure rows that were trained on, as a suite of their own")
    extract: bool = Field(True, description="score the answer found in what was generated; off: all of its text")
    ranking: bool = Field(True, description="where answers are labels, also rank the labels by likelihood")
    suites: Annotated[str, "none, or some of bias, constraints, forgetting"] = Field(
        "bias,forgetting",
        description="further suites with rows of our own: bias, constraints, forgetting, separated by commas; or none",
    )
    strokes: PositiveInt | None = Field(
        None, description="how often an instruction is read; default: as often as in tuning"
    )
    batch_rows: PositiveInt = Field(32, description="rows answered at once")
    robustness: Literal["quick", "full", "none"] = Field(
        "quick", description="damage rows and measure again: some ways on few rows, all ways on more, or not at all"
    )
    robustness_rows: PositiveInt | None = Field(
        None, description="rows damaged at most, drawn by seed; default: 40 (quick) or 200 (full)"
    )
    perturbations: str = Field("auto", description="ways of damage, some with a strength: typos,case:0.5")
    damage: Literal["instruction", "input", "both"] = Field(
        "instruction", description="what is damaged of a row; damage to an input can change what the right answer is"
    )
    require: str = Field(
        "", description="what must be reached, by commas: unseen_tasks.accuracy>=0.6; else the command ends with code 4"
    )
    language: Literal["en", "zh"] = Field("en", description="language of the report")
    seed: int = Field(0, ge=0, lt=2**31, description="of everything random")
    out: str | None = Field(None, description="folder of the report; default: the run folder")

    @field_validator("suites", mode="before")
    @classmethod
    def _known_suites(cls, value: Any) -> Any:
        return _listed(value, ("bias", "constraints", "forgetting"))


class ComparisonSettings(Settings):
    """What `instructrec compare` is told beside the settings of each run."""

    group: ClassVar[str] = "Comparison"
    seeds: str = Field("3", description="how many seeds each setting is tuned with, or which: 0,5,7")
    test_share: Annotated[float, Field(gt=0, le=0.5)] = Field(
        0.2, description="share of the rows (or wordings) set aside to test on, where no test rows are given"
    )
    against: str = Field("", description="compare each setting with the one of this name only; default: all pairs")
    smallest: PositiveFloat = Field(
        1.0, description="difference that matters, in points of a score (in hundredths of a nat for losses)"
    )
    max_new_tokens: PositiveInt | None = Field(
        None, description="tokens of an answer at most; default: by the longest right one"
    )
    out: str | None = Field(None, description="folder of the comparison; default: comparisons/ and the data's name")


class CompareSettings(
    ComparisonSettings,
    OptimisationSettings,
    HeldOutSettings,
    ReadingSettings,
    PromptSettings,
    MachineSettings,
    ModelSettings,
    TrainingRowsSettings,
):
    """Everything `instructrec compare` can be told; what is not of the comparison holds for all its settings."""


class PromptingSettings(TemplateSettings, MachineSettings, DataSettings):
    """Everything `instructrec prompt` can be told."""

    group: ClassVar[str] = "Prompting"
    model: str = Field("smollm2-135m", description="run folder, built-in name, local folder, GGUF file or hub id")
    shots: int = Field(0, ge=0, le=64, description="solved examples put before each row")
    by: ShotsBy = Field("random", description="which examples: drawn, of each label in turn, or the nearest")
    order: Literal["auto", "nearest_last", "nearest_first", "random", "shortest_first", "longest_first"] = Field(
        "auto", description="order of the examples; auto: nearest last where nearness is known, else as drawn"
    )
    examples: str | None = Field(None, description="file of solved rows to choose from; default: a share of the rows")
    examples_share: Share = Field(
        0.3, description="share of the rows set aside as examples, where any are needed and no file is given"
    )
    score: Literal["auto", "rank", "generate"] = Field(
        "auto", description="rank the labels by likelihood, or generate; auto: rank where the labels are a closed set"
    )
    verbalizer: str = Field(
        "auto", description="words of the labels: auto (the template's, else the labels themselves), learned, or a file"
    )
    calibrate: Literal["none", "contextual", "pmi"] = Field(
        "none", description="take away what a model says of rows that say nothing (contextual), or of none (pmi)"
    )
    combine: Literal["any", "mean"] = Field("any", description="several words a label: their sum, or their mean log")
    per_token: bool = Field(False, description="divide a word's log-likelihood by its number of tokens")
    search: bool = Field(
        False, description="try wordings, verbalizers, examples and calibrations on set-aside rows and take the best"
    )
    search_rows: PositiveInt = Field(60, description="set-aside rows to try them on")
    max_new_tokens: PositiveInt | None = Field(
        None, description="tokens of a generated answer at most; default: by the longest right one"
    )
    rows: PositiveInt | None = Field(None, description="rows at most, drawn by seed; default: all")
    strokes: PositiveInt | None = Field(
        None, description="how often an instruction is read; default: as often as in tuning, or once"
    )
    batch_rows: PositiveInt = Field(16, description="rows answered at once")
    seed: int = Field(0, ge=0, lt=2**31, description="of everything random")
    out: str | None = Field(None, description="folder of the results; default: under runs/")


class ExportSettings(MachineSettings):
    """Everything `instructrec export` can be told."""

    group: ClassVar[str] = "Export"
    strokes: PositiveInt | None = Field(
        None, description="how often the chat template reads an instruction; default: as often as in tuning"
    )


class AnswerSettings(MachineSettings):
    """Everything `instructrec run` and `instructrec chat` can be told."""

    group: ClassVar[str] = "Answer"
    template: str = Field("auto", description="auto (the run's own), model, alpaca, plain, or a Jinja file")
    system: str = Field("", description="system message")
    max_new_tokens: PositiveInt = Field(256, description="tokens of an answer at most")
    strokes: PositiveInt | None = Field(
        None, description="how often the instruction is read; default: as often as in tuning, or once"
    )
    temperature: float = Field(0.0, ge=0, description="0: always the likeliest token; higher: more varied")
    seed: int = Field(0, ge=0, lt=2**31, description="of the sampling")
