"""P-tuning: learned embeddings in front of every row that a small network makes.

Reference: Liu et al., arXiv 2103.10385. Differs from it: all of them stand in front; the network's output is added to
what it is given and starts at 0 (arXiv 2305.03937), so that training starts from real words. PEFT's network and PEFT's
files, which keep what the network makes; `prompt_encoder.safetensors` keeps the network itself, for training on.

P learned positions, D width of the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import InputError
from ..loading import read_tensors
from .prompt_tuning import drawn
from .soft import CONFIG, SoftMethod, check_tensors, whole

ENCODER = "prompt_encoder.safetensors"
_KINDS = ("mlp", "lstm")
_WIDEST, _DEEPEST = 1 << 16, 16


class PTuning(SoftMethod):
    """P embeddings [P, D] and the weights of an MLP or LSTM."""

    name = "p_tuning"
    reference = "arXiv 2103.10385"
    learning_rate = 3e-3
    shardable = False  # its embeddings go through the layers before torch brings the weights together
    peft_type = "P_TUNING"
    fields = ("encoder_reparameterization_type", "encoder_hidden_size", "encoder_num_layers", "encoder_dropout")

    def make(self, model: Any, shape: Any, options: Mapping[str, Any], seed: int) -> Any:
        """Random embeddings and a network that adds nothing yet."""
        from ..soft import Encoded

        embeddings = drawn(model, options["length"], seed)
        network = {
            "kind": options["encoder"],
            "width": options["width"] or embeddings.shape[1],
            "layers": options["layers"] if options["encoder"] == "lstm" else 2,  # the MLP's are always as many
            "dropout": options["dropout"],
        }
        made = Encoded(options["length"], embeddings.shape[1], network, seed)
        made.encoder.embedding.weight.data.copy_(embeddings)
        return made

    def config(self, prompt: Any) -> Any:
        """PEFT's configuration."""
        from peft import PromptEncoderConfig

        saved, network = prompt.saved(), getattr(prompt, "options", None)
        more = {} if network is None else _named(network)
        return PromptEncoderConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=saved.shape[0],
            token_dim=saved.shape[1],
            num_transformer_submodules=1,
            **more,
        )

    def save_more(self, prompt: Any, folder: Path) -> None:
        """The network."""
        from safetensors.torch import save_file

        if encoder := getattr(prompt, "encoder", None):
            weights = {name: value.detach().cpu().contiguous() for name, value in encoder.state_dict().items()}
            save_file(weights, folder / ENCODER, {"format": "pt"})

    def read_in(self, folder: Path, given: dict[str, Any], saved: Any, shape: Any, trainable: bool) -> Any:
        """What the network made, or the network, to train it on. Raises InputError when that is missing or damaged."""
        from ..soft import Embeddings, Encoded

        if not trainable:
            return Embeddings(saved)
        made = Encoded(len(saved), saved.shape[1], _network(folder / CONFIG, given), 0)
        wanted = made.encoder.state_dict()
        weights = read_tensors(folder / ENCODER)
        check_tensors(folder / ENCODER, weights, {name: list(value.shape) for name, value in wanted.items()})
        made.encoder.load_state_dict(weights)
        return made


def _named(network: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "encoder_reparameterization_type": network["kind"].upper(),
        "encoder_hidden_size": network["width"],
        "encoder_num_layers": network["layers"],
        "encoder_dropout": network["dropout"],
    }


def _network(file: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """The network that a configuration describes."""
    kind, dropout = given.get("encoder_reparameterization_type"), given.get("encoder_dropout")
    if not isinstance(kind, str) or kind.lower() not in _KINDS:
        raise InputError(f"{file}: encoder_reparameterization_type: got {kind!r:.60}, want {' or '.join(_KINDS)}")
    if type(dropout) not in (int, float) or not 0 <= dropout < 1:  # type: ignore[operator]
        raise InputError(f"{file}: encoder_dropout: got {dropout!r:.60}, want a number from 0 to below 1")
    width = whole(file, given, "encoder_hidden_size", _WIDEST)
    layers = whole(file, given, "encoder_num_layers", _DEEPEST)
    return {"kind": kind.lower(), "width": width, "layers": layers, "dropout": dropout}
