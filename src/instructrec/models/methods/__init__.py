"""Tuning methods: one file and one registration line each. A clash of names is refused at import."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from ...errors import InputError, did_you_mean
from ...prompts.template import Rendered

# For methods that change a model's layers and need nothing of how it is asked.
EVERY_KIND: tuple[str, ...] = ("decoder", "encoder-decoder", "encoder", "encoder with a mask")


class Method:
    """What a tuning method has to offer. Options come as plain values; the model is one of `transformers`.

    reference: paper or formula.  learning_rate: a peak that works on small models.
    identity_at_start: an attached method changes no output before the first step.
    switchable: `disabled` gives the untuned model back; else the model's own weights are changed.
    mergeable: `merge` is offered.
    several: more than one adapter fits on a model, each with a name (`add`, `load_more`, `using`).
    shardable: the frozen weights may be cut up between processes (`--use_fsdp`).
    kinds: names of the kinds of backbone (`models/kinds`) that it tunes.
    library: whose `from_pretrained` loads what `save` wrote, for model cards.
    """

    name: ClassVar[str]
    reference: ClassVar[str]
    learning_rate: ClassVar[float]
    identity_at_start: ClassVar[bool] = True
    switchable: ClassVar[bool] = True
    mergeable: ClassVar[bool] = False
    several: ClassVar[bool] = False
    shardable: ClassVar[bool] = True
    library: ClassVar[str] = "peft"
    kinds: ClassVar[tuple[str, ...]] = ("decoder",)

    def check_kind(self, kind: str) -> None:
        """Raises InputError for a kind of backbone that it does not tune."""
        if kind not in self.kinds:
            able = sorted(name for name, method in METHODS.items() if kind in method.kinds)
            raise InputError(f"method: '{self.name}' can't tune an {kind} (want {' or '.join(able)})")

    def attach(self, model: Any, options: Mapping[str, Any], seed: int) -> Any:
        """The model made trainable by this method. Checks precede any change to the model."""
        raise NotImplementedError

    def start(
        self, model: Any, options: Mapping[str, Any], seed: int, *, rows: Sequence[Rendered], tokenizer: Any
    ) -> None:
        """Better first values than `attach` could give, from the rows that will be trained on."""

    def positions(self, options: Mapping[str, Any]) -> int:
        """Positions of the backbone that the method takes for itself, so that rows have fewer."""
        return 0

    def positions_of(self, model: Any) -> int:
        """The same of a loaded model."""
        return 0

    def save(self, model: Any, folder: Path, base: str) -> None:
        """Write the trained weights into `folder` (PEFT's names and format where it has the method)."""
        raise NotImplementedError

    def load(self, model: Any, folder: Path, *, trainable: bool = False) -> Any:
        """The model with weights from `folder`. `model` is the untouched backbone."""
        raise NotImplementedError

    @contextmanager
    def disabled(self, model: Any) -> Iterator[Any]:
        """The model with the method switched off, for as long as the block lasts."""
        raise InputError(f"method: '{self.name}' can't be switched off: it changes the model's own weights")
        yield model

    def add(self, model: Any, name: str, options: Mapping[str, Any], seed: int) -> None:
        """One adapter more on an attached model, trainable as the first is."""
        raise InputError(f"method: '{self.name}' has one set of weights, strokes can't have their own")

    def load_more(self, model: Any, folder: Path, name: str, *, trainable: bool = False) -> None:
        """The adapter `name`, as `save` wrote it beside the first one."""
        raise InputError(f"method: '{self.name}' has one set of weights, strokes can't have their own")

    @contextmanager
    def using(self, model: Any, weights: str) -> Iterator[Any]:
        """The model with other weights than its first adapter's, for as long as the block lasts: 'off' for none, or the
        name of one that was added. It may take `requires_grad` away from the adapters that are left."""
        if weights != "off":
            raise InputError(f"method: '{self.name}' has no adapter called '{weights}'")
        with self.disabled(model):
            yield model

    def merge(self, model: Any) -> Any:
        """A plain model with the tuning folded into its weights."""
        raise InputError(f"method: '{self.name}' has nothing to merge")


METHODS: dict[str, Method] = {}


def register(method: Method) -> Method:
    """Add a method to the registry; a second method of the same name is refused."""
    if method.name in METHODS:
        raise ValueError(f"tuning method '{method.name}' is registered already")
    METHODS[method.name] = method
    return method


def get(name: str) -> Method:
    """The method called `name`. Raises InputError naming the nearest."""
    if name not in METHODS:
        raise InputError(f"method: unknown tuning method '{name}', {did_you_mean(name, METHODS)}")
    return METHODS[name]


def narrowed(backbone: Any, method: Method, taken: int) -> Any:
    """The backbone with the positions that are left for rows. Raises InputError where none is left."""
    limit = backbone.max_positions
    if taken >= limit:
        raise InputError(f"{method.name}.length: leaves rows no position (got {taken}, want less than {limit})")
    return replace(backbone, max_positions=limit - taken) if taken else backbone


def trained_parameters(model: Any) -> dict[str, Any]:
    """Name -> parameter for everything the optimizer may change: the module is asked, names are never matched."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


from .adapter import Adapter  # noqa: E402  registration needs the base class above
from .full import Full  # noqa: E402
from .ia3 import Ia3  # noqa: E402
from .lora import Lora  # noqa: E402
from .p_tuning import PTuning  # noqa: E402
from .prefix_tuning import PrefixTuning  # noqa: E402
from .prompt_tuning import PromptTuning  # noqa: E402

register(Full())
register(Lora())
register(PrefixTuning())
register(PromptTuning())
register(PTuning())
register(Ia3())
register(Adapter())
