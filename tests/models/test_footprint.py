"""What the estimate of memory rests on: numbers of weights that are exact, and parts that follow the settings."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import tiny
from instructrec.config import TuneSettings
from instructrec.errors import InputError
from instructrec.models import footprint, products
from instructrec.models.footprint import Shape, architecture, method
from instructrec.models.kinds.decoder import collate, sharing
from instructrec.models.lowrank import quicken
from instructrec.models.methods import METHODS, get, trained_parameters
from instructrec.models.reading import install
from instructrec.prompts.template import Rendered
from instructrec.training.loss import token_losses

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


def kept(model: Any, batch: Any) -> int:
    """Bytes that autograd keeps for the backward pass, weights left out."""
    frozen = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    sizes: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in frozen:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        losses = token_losses(model, batch)
    total = sum(sizes.values())
    del losses
    return total


@pytest.mark.parametrize(("rows", "length", "rest"), [(16, 0, 60), (16, 200, 25), (4, 400, 200), (12, 40, 40)])
def test_what_rows_keep_that_share_their_beginning(rows: int, length: int, rest: int) -> None:
    config = {**LLAMA, "hidden_size": 144, "intermediate_size": 384, "num_hidden_layers": 4, "head_dim": 36}
    model = LlamaForCausalLM(LlamaConfig(**config))
    options = {"rank": 4, "alpha": 8.0, "dropout": 0.0, "target": "all-linear"}
    tuned = METHODS["lora"].attach(model, options, 0)
    quicken(tuned)
    install(tuned.get_base_model())
    draw = random.Random(0)
    start = [draw.randrange(9, 900) for _ in range(length)]
    ids = [[*start, *(draw.randrange(9, 900) for _ in range(rest))] for _ in range(rows)]
    made = [Rendered(one, [False] * (len(one) - 1) + [True], len(one) - 1, len(one) - 1) for one in ids]
    batch = sharing(made, 0) if length else collate(made, 0)
    assert batch is not None and bool(batch.shared) == bool(length)
    shape = Shape(rows, length + rest, rows, 1 if length else 0, length)
    counted = 4 * footprint.per_layer(architecture(config), method(architecture(config), "lora", options), shape, False)
    assert 0.85 < kept(tuned, batch) / counted < 1.15


def test_what_is_not_estimated() -> None:
    with pytest.raises(InputError, match="^estimate: memory of encoder-decoders is not estimated .got t5.$"):
        architecture({"model_type": "t5"})
    with pytest.raises(InputError, match="^config.json: none of vocab_size is given, so memory can't be estimated$"):
        architecture({name: value for name, value in LLAMA.items() if name != "vocab_size"})
    nested = {"model_type": "gemma3", "text_config": {**LLAMA, "model_type": "gemma3_text", "head_dim": 32}}
    assert architecture(nested).head == 32
