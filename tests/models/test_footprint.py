"""What the estimate of memory rests on: numbers of weights that are exact, and parts that follow the settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tiny
from instructrec.config import TuneSettings
from instructrec.errors import InputError
from instructrec.models import footprint, products
from instructrec.models.footprint import Shape, architecture, method
from instructrec.models.methods import METHODS, get, trained_parameters

LLAMA = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 1000, "max_position_embeddings": 2048, "tie_word_embeddings": True,
}  # fmt: skip


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def test_weights_are_counted_exactly(kind: str, tiny_folder: Any) -> None:
    model = tiny.model(kind)
    found = architecture(config_of(tiny_folder(kind)))
    assert found.parameters() == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", ["lora", "full", "prefix_tuning", "prompt_tuning", "ia3", "adapter"])
def test_trained_weights_are_counted_exactly(name: str, tiny_folder: Any) -> None:
    model = tiny.model("qwen")
    options = getattr(TuneSettings(), name).model_dump()
    found = method(architecture(config_of(tiny_folder("qwen"))), name, options)
    tuned = get(name).attach(model, options, 0)
    assert found.parameters == sum(parameter.numel() for parameter in trained_parameters(tuned).values())


def test_every_method_is_counted() -> None:
    settings, model = TuneSettings(), architecture(LLAMA)
    counts = {name: method(model, name, getattr(settings, name).model_dump()).parameters for name in METHODS}
    assert all(counts.values()) and counts["full"] == model.parameters() == max(counts.values())


def test_some_layers_only() -> None:
    model = architecture(LLAMA)
    options = {"rank": 8, "target": "q_proj, v_proj", "dropout": 0.0}
    found = method(model, "lora", options)
    assert found.parameters == 3 * 8 * ((64 + 64) + (64 + 32)) and found.inputs == {"q_proj", "v_proj"}
    shape = Shape(4, 32, 40)
    everything = method(model, "lora", options | {"target": "all-linear"})
    dropped = method(model, "lora", options | {"target": "all-linear", "dropout": 0.1})
    sizes = [footprint.per_layer(model, one, shape, False) for one in (found, everything, dropped)]
    assert sizes == sorted(sizes) and len(set(sizes)) == 3
    # Inputs of the output projection, of the feed-forward part, and inside of it.
    assert sizes[1] - sizes[0] == 4 * 32 * (64 + 64 + 160) * 4


def test_parts_follow_the_settings() -> None:
    model = architecture(LLAMA)
    tuned = method(model, "lora", {"rank": 4, "target": "all-linear"})
    one, two = Shape(2, 100, 50), Shape(4, 100, 100)

    def at(shape: Shape = one, **more: Any) -> footprint.Footprint:
        return footprint.footprint(model, tuned, shape, **{"half": False, **more})

    plain = at()
    assert plain.weights == 4 * model.parameters() == 2 * at(half=True).weights
    assert plain.optimizer == 2 * plain.gradients == 2 * plain.trained == 8 * tuned.parameters
    assert at(two).activations == 2 * plain.activations and at(two).logits == 2 * plain.logits == 100 * 1000 * 8
    assert at(checkpointing=True).activations < plain.activations / 2
    assert at(half=True).activations < plain.activations
    assert at(processor=False).allocator == 0 < plain.allocator
    assert at(look=Shape(8, 300, 1000)).total > plain.total > plain.first
    whole = footprint.footprint(model, method(model, "full", {}), one, half=True)
    assert whole.weights == 0 and whole.trained == 4 * model.parameters()
    assert plain.total == sum(
        (
            plain.weights,
            plain.trained,
            plain.optimizer,
            plain.libraries,
            plain.allocator,
            plain.activations,
            plain.logits,
        )
    )


def test_attention_shares_are_kept_up_to_a_number_of_scores() -> None:
    assert (footprint.BLOCK, footprint.KEPT) == (products.BLOCK, products._KEPT)
    model = architecture(LLAMA)
    assert footprint._shares(model, Shape(2, 100, 0), 4) == 2 * 4 * 100 * 100 * 4
    assert footprint._shares(model, Shape(1, 600, 0), 2) == 4 * (256 * 256 + 256 * 512 + 88 * 600) * 2
    assert footprint._shares(model, Shape(1, 1928, 0), 2) == 0 < footprint._shares(model, Shape(1, 1927, 0), 2)


def test_what_is_not_estimated() -> None:
    with pytest.raises(InputError, match="^estimate: memory of encoder-decoders is not estimated .got t5.$"):
        architecture({"model_type": "t5"})
    with pytest.raises(InputError, match="^config.json: none of vocab_size is given, so memory can't be estimated$"):
        architecture({name: value for name, value in LLAMA.items() if name != "vocab_size"})
    nested = {"model_type": "gemma3", "text_config": {**LLAMA, "model_type": "gemma3_text", "head_dim": 32}}
    assert architecture(nested).head == 32
