"""Loading: the same logits as transformers' own, whatever the layout of the folder; what doesn't fit is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import KINDS, tiny, write_tiny
from torch import nn
from transformers import PreTrainedModel

from tunesmith.base import Base
from tunesmith.errors import ModelError
from tunesmith.model.attention import Packed
from tunesmith.model.load import load_model
from tunesmith.model.weights import FrozenLinear, Int8, Nf4

IDS = torch.arange(3, 17)[None]  # longer than tiny Mistral's window


def base_of(folder: Path) -> Base:
    return Base("tiny", folder, None, json.loads((folder / "config.json").read_text()), folder)


def logits(model: PreTrainedModel) -> torch.Tensor:
    length = IDS.shape[1]
    packed = Packed(torch.tensor([0, length], dtype=torch.int32), length)
    positions = torch.arange(length)[None]
    with torch.no_grad():
        out = model(input_ids=IDS, position_ids=positions, use_cache=False, attention=packed).logits
    assert isinstance(out, torch.Tensor)
    return out


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sharded", [False, True])
def test_logits_equal_transformers(kind: str, sharded: bool, tmp_path: Path) -> None:
    theirs = write_tiny(tmp_path, kind, **({"max_shard_size": "40KB"} if sharded else {}))
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == sharded
    ours = load_model(base_of(tmp_path), dtype="float32")
    told = theirs(IDS).logits
    assert (logits(ours) - told).abs().max().item() < 1e-5 * told.abs().max().item()
    assert not ours.training and not any(p.requires_grad for p in ours.parameters())
    tied = ours.lm_head.weight is ours.model.embed_tokens.weight
    assert tied == (kind == "llama_tied")


@pytest.mark.parametrize("how", ["nf4", "int8"])
def test_quantised_linears_hold_the_referees_numbers(how: str, tmp_path: Path) -> None:
    """The loaded logits are those of a dense model whose linears hold bitsandbytes' rounded weights."""
    referee = write_tiny(tmp_path, "qwen2")
    model = load_model(base_of(tmp_path), dtype=torch.float32, quantize=how)
    for name, module in list(referee.model.layers.named_modules()):
        if isinstance(module, nn.Linear):
            frozen = model.model.layers.get_submodule(name)
            assert isinstance(frozen, FrozenLinear) and isinstance(
                frozen.weight, Nf4 if how == "nf4" else Int8
            )
            with torch.no_grad():
                module.weight.copy_(_referee(module.weight, how))
    assert isinstance(model.lm_head, nn.Linear)
    assert (logits(model) - referee(IDS).logits).abs().max().item() < 1e-4


def _referee(weight: torch.Tensor, how: str) -> torch.Tensor:
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    out, into = weight.shape
    if how == "nf4":
        layer = Linear4bit(
            into,
            out,
            bias=False,
            compress_statistics=True,
            quant_type="nf4",
            compute_dtype=torch.float32,
        )
    else:
        layer = Linear8bitLt(into, out, bias=False, has_fp16_weights=False)
    layer.weight.data = weight.detach().clone()
    layer = layer.to("cpu")
    if how == "nf4":
        return layer.train()(torch.eye(into)).t()
    return layer.weight.CB * (layer.weight.SCB / 127)[:, None]


def test_stored_nf4_loads(tmp_path: Path) -> None:
    """A folder as transformers and bitsandbytes write it."""
    write_tiny(tmp_path / "dense")
    told = load_model(base_of(tmp_path / "dense"), dtype=torch.float32, quantize="nf4")
    tensors = load_file(tmp_path / "dense" / "model.safetensors")
    from bitsandbytes.functional import quantize_4bit

    for name in [n for n in tensors if "proj" in n]:
        packed, state = quantize_4bit(tensors[name], blocksize=64, compress_statistics=True, quant_type="nf4")
        tensors[name] = packed
        tensors |= {f"{name}.{key}": value for key, value in state.as_dict(packed=True).items()}
    stored = tmp_path / "stored"
    shutil.copytree(tmp_path / "dense", stored)
    save_file(tensors, stored / "model.safetensors")
    edit(
        stored,
        quantization_config={
            "quant_method": "bitsandbytes",
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
        },
    )
    model = load_model(base_of(stored), dtype=torch.float32, quantize="nf4")
    assert (logits(model) - logits(told)).abs().max().item() < 1e-5
    with pytest.raises(ModelError, match="stored in NF4"):
        load_model(base_of(stored), dtype=torch.float32)
    edit(stored, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(ModelError, match="gptq"):
        load_model(base_of(stored), dtype=torch.float32)


def edit(folder: Path, **more: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | more))


def test_dtype_and_headless_checkpoints(tmp_path: Path) -> None:
    """Some bases were saved from the bare decoder: `layers.0…` without `model.`; a tied head is not stored at all."""
    write_tiny(tmp_path, "llama_tied")
    tensors = load_file(tmp_path / "model.safetensors")
    tensors = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    tensors["layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)  # old checkpoints carry it
    save_file(tensors, tmp_path / "model.safetensors")
    model = load_model(base_of(tmp_path), dtype="float64")
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert (logits(model) - tiny("llama_tied", dtype=torch.float64)(IDS).logits).abs().max().item() < 1e-5
    assert load_model(base_of(tmp_path), dtype="bfloat16").dtype == torch.bfloat16


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    path = tmp_path / "model.safetensors"
    good = load_file(path)
    norm, extra = "model.norm.weight", "model.layers.0.mlp.experts.gate_up_proj"
    for tensors, message in [
        ({k: v for k, v in good.items() if k != norm}, "has no model.norm.weight"),
        (good | {extra: torch.ones(3)}, "no place for .*experts"),
        (good | {norm: torch.ones(32)}, r"is \[32\], but config.json makes it \[64\]"),
    ]:
        save_file(tensors, path)
        with pytest.raises(ModelError, match=message):
            load_model(base_of(tmp_path), dtype="float32")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ModelError, match="can't be read"):
        load_model(base_of(tmp_path), dtype="float32")


def test_a_tied_head_that_differs_is_refused(tmp_path: Path) -> None:
    write_tiny(tmp_path)  # not tied: its head is another tensor
    edit(tmp_path, tie_word_embeddings=True)
    with pytest.raises(ModelError, match="ties them"):
        load_model(base_of(tmp_path), dtype="float32")


def test_rope_that_depends_on_the_batch_is_refused(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    edit(
        tmp_path,
        rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0},
    )
    with pytest.raises(ModelError, match="longest row"):
        load_model(base_of(tmp_path), dtype="float32")


def test_llama3_rope_is_rebuilt(tmp_path: Path) -> None:
    """Frequencies are computed, not stored; a loader that leaves the default ones passes every other test."""
    write_tiny(tmp_path)
    scaled = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    }
    edit(
        tmp_path,
        rope_parameters={
            **scaled,
            "rope_theta": 10000.0,
            "original_max_position_embeddings": 16,
        },
    )
    ours = load_model(base_of(tmp_path), dtype="float32")
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    assert torch.equal(ours.model.rotary_emb.inv_freq, theirs.model.rotary_emb.inv_freq)
    assert (logits(ours) - theirs(IDS).logits).abs().max().item() < 1e-4
    assert (logits(ours) - tiny()(IDS).logits).abs().max().item() > 1e-2
