"""The parts of models are found in families of many shapes, by their modules and not by their names."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tiny
from instructrec.errors import InputError
from instructrec.models.methods import METHODS, trained_parameters
from instructrec.models.structure import sublayers

SMALL: dict[str, Any] = {
    "vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GPT: dict[str, Any] = {"vocab_size": 100, "n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_positions": 64}
SIDES = {
    f"{side}_{name}": value
    for side in ("encoder", "decoder")
    for name, value in {"layers": 2, "attention_heads": 4, "ffn_dim": 64}.items()
}
EXPERTS = {"num_key_value_heads": 2, "num_local_experts": 4}

# Name -> what makes it, what reads keys and values, what gives attention's result, what gives the feed-forward result;
# in the second layer of the (decoder's) stack.
FAMILIES: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "OPT": (SMALL | {"ffn_dim": 64, "word_embed_proj_dim": 32}, "k_proj v_proj", "self_attn.out_proj", "fc2"),
    "Bloom": ({"vocab_size": 100, "hidden_size": 32, "n_layer": 2, "n_head": 4}, "query_key_value", "self_attention.dense", "mlp.dense_4h_to_h"),
    "GPTNeoX": (SMALL, "query_key_value", "attention.dense", "mlp.dense_4h_to_h"),
    "GPTJ": (GPT, "k_proj v_proj", "attn.out_proj", "mlp.fc_out"),
    "CodeGen": (GPT | {"n_ctx": 64}, "qkv_proj", "attn.out_proj", "mlp.fc_out"),
    "Mpt": ({"vocab_size": 100, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64}, "wqkv", "attn.out_proj", "ffn.down_proj"),
    "Phi": (SMALL, "k_proj v_proj", "self_attn.dense", "mlp.fc2"),
    "Phi3": (SMALL, "qkv_proj", "self_attn.o_proj", "mlp.down_proj"),
    "Gemma2": (SMALL | {"num_key_value_heads": 2, "head_dim": 8}, "k_proj v_proj", "self_attn.o_proj", "mlp.down_proj"),
    "Mixtral": (SMALL | EXPERTS, "k_proj v_proj", "self_attn.o_proj", "mlp"),
    "T5": ({"vocab_size": 100, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}, "k v", "layer.1.EncDecAttention.o", "layer.2.DenseReluDense.wo"),
    "Marian": (SIDES | {"vocab_size": 100, "d_model": 32, "pad_token_id": 0, "decoder_start_token_id": 0, "max_position_embeddings": 64}, "k_proj v_proj", "encoder_attn.out_proj", "fc2"),
    "Bert": (SMALL, "key value", "attention.output.dense", "output.dense"),
    "DistilBert": ({"vocab_size": 100, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}, "k_lin v_lin", "attention.out_lin", "ffn.lin2"),
}  # fmt: skip


def made(family: str) -> Any:
    import transformers

    config = getattr(transformers, f"{family}Config")(**FAMILIES[family][0])
    kind = "MaskedLM" if "Bert" in family else "Seq2SeqLM" if config.is_encoder_decoder else "CausalLM"
    torch.manual_seed(0)
    return getattr(transformers, f"AutoModelFor{kind}").from_config(config).eval()


def logits(model: Any) -> torch.Tensor:
    ids = torch.arange(5, 15)[None]
    both = getattr(model.config, "is_encoder_decoder", False)
    found: torch.Tensor = model(input_ids=ids, **({"decoder_input_ids": ids} if both else {})).logits
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_the_parts_of_a_family(family: str) -> None:
    model = made(family)
    found = sublayers(model)
    assert len(found) == (10 if model.config.is_encoder_decoder else 4)
    attention, inside = found[-2:]
    _, keys, output, result = FAMILIES[family]
    assert attention.attention and not inside.attention
    assert " ".join(name.rpartition(".")[2].lower() for name in attention.keys_and_values) == keys
    assert attention.output.endswith(f".1.{output}") and inside.output.endswith(f".1.{result}")
    assert bool(inside.inputs) == (family != "Mixtral")


class OutputFirstAttention(torch.nn.Module):
    """All of one width, the output defined before what it is made of."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("o_proj", "q_proj", "k_proj", "v_proj"):
            setattr(self, name, torch.nn.Linear(32, 32))


def test_the_order_of_definition_does_not_make_values_the_output() -> None:
    model = tiny.model("llama")
    model.model.layers[1].self_attn = OutputFirstAttention()
    found = [part for part in sublayers(model) if part.attention][1]
    assert found.output == "model.layers.1.self_attn.o_proj"
    assert found.keys_and_values == ("model.layers.1.self_attn.k_proj", "model.layers.1.self_attn.v_proj")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["adapter", "ia3"])
def test_a_method_works_in_all_of_them(name: str, family: str) -> None:
    """Nothing changes at the start, and every weight of the method takes part in the output."""
    options = {"width": 4, "placement": "houlsby", "activation": "gelu", "dropout": 0.0, "target": "auto"}
    model, method = made(family), METHODS[name]
    with torch.no_grad():
        base = logits(model)
    if (name, family) == ("ia3", "Mixtral"):
        with pytest.raises(InputError) as caught:
            method.attach(model, options, 0)
        assert str(caught.value) == (
            "ia3.target: found no feed-forward layers (are they a mixture of experts?) in this model "
            "(want names of linear layers)"
        )
        return
    tuned = method.attach(model, options, 0).eval()
    with torch.no_grad():
        assert torch.equal(logits(tuned), base)
        draw = torch.Generator().manual_seed(1)
        for weight in trained_parameters(tuned).values():
            weight.add_(0.3 * torch.randn(weight.shape, generator=draw))
    changed = logits(tuned)
    changed.square().sum().backward()
    assert not torch.equal(changed.detach(), base)
    assert all(bool(weight.grad.abs().sum() > 0) for weight in trained_parameters(tuned).values())


@pytest.mark.parametrize(
    ("kind", "target", "inside"),
    [
        ("llama", {"k_proj", "v_proj", "down_proj"}, {"down_proj"}),
        ("gpt2", {"attn.c_attn", "mlp.c_proj"}, {"mlp.c_proj"}),  # attention has a c_proj, too
        ("qwen", {"k_proj", "v_proj", "down_proj"}, {"down_proj"}),
        ("gemma", {"k_proj", "v_proj", "down_proj"}, {"down_proj"}),
    ],
)
def test_what_ia3_scales(kind: str, target: set[str], inside: set[str]) -> None:
    config = METHODS["ia3"].attach(tiny.model(kind), {"target": "auto"}, 0).peft_config["default"]
    assert (config.target_modules, config.feedforward_modules) == (target, inside)


def test_targets_of_ia3_by_name() -> None:
    model = METHODS["ia3"].attach(tiny.model("llama"), {"target": "q_proj, down_proj"}, 0)
    config = model.peft_config["default"]
    assert (config.target_modules, config.feedforward_modules) == ({"q_proj", "down_proj"}, {"down_proj"})
    for target, reason in (
        ("k_prj", "no linear layer is called 'k_prj', did you mean 'k_proj'?"),
        (",", "empty (want auto or names of linear layers)"),
    ):
        with pytest.raises(InputError) as caught:
            METHODS["ia3"].attach(tiny.model("llama"), {"target": target}, 0)
        assert str(caught.value) == f"ia3.target: {reason}"
