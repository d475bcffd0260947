"""Vectors of texts: the mean over a text's own tokens, whatever stands beside it in a batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from instructrec.data.records import Record
from instructrec.inference.embedding import embedder, mean_states
from instructrec.inference.loading import open_target

TEXTS = ["The lamp is broken.", "x", "我的包裹还没有到，现在在哪里？" * 3, ""]


def test_the_mean_of_a_text_alone(tiny_folder: Any, kind: str) -> None:
    loaded = open_target(str(tiny_folder(kind)), precision="fp32")
    found = mean_states(loaded, TEXTS)
    for text, vector in zip(TEXTS, found, strict=True):
        ids = loaded.backbone.tokenizer(text, add_special_tokens=False)["input_ids"] or [loaded.backbone.pad_id]
        with torch.no_grad():
            states = loaded.backbone.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0]
        assert np.abs(vector - states.double().mean(0).numpy()).max() < 1e-5
    again = mean_states(loaded, TEXTS[::-1], batch_tokens=1)[::-1]
    assert np.abs(found - again).max() < 1e-5


def test_a_text_is_read_once(tiny_folder: Any, monkeypatch: Any) -> None:
    loaded = open_target(str(tiny_folder("llama")), precision="fp32")
    vectors = embedder(loaded)
    records = [Record.of(text) for text in TEXTS[:3]]
    first = vectors(records)
    monkeypatch.setattr("instructrec.inference.embedding.mean_states", None)
    assert (vectors(records[::-1]) == first[::-1]).all()
