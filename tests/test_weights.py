"""Frozen weights: bitsandbytes' numbers, exact gradients, nothing dense kept, nothing repacked."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from tunesmith.model.weights import (
    Dense,
    FrozenLinear,
    FrozenWeight,
    Int8,
    Nf4,
    quantized,
)

HOW = ["none", "nf4", "int8"]


def dense(out: int = 96, into: int = 128) -> Tensor:
    return torch.randn(out, into, generator=torch.Generator().manual_seed(0)) * 0.05


def nf4_by_hand(data: Tensor) -> Tensor:
    """QLoRA's 16 levels and nearest rounding, with fp32 scales (single quantisation)."""
    levels = torch.tensor([
        -1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.091050036, 0.0,
        0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0,
    ])  # fmt: skip
    blocks = data.reshape(-1, 64)
    scale = blocks.abs().amax(1, keepdim=True)
    nearest = (blocks / scale).unsqueeze(-1).sub(levels).abs().argmin(-1)
    return (levels[nearest] * scale).view_as(data)


def test_nf4_is_bitsandbytes_and_the_papers() -> None:
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    data = dense()
    packed, state = quantize_4bit(data, blocksize=64, compress_statistics=True, quant_type="nf4")
    ours = Nf4.quantize(data)
    assert torch.equal(ours.dequantize(torch.float32), dequantize_4bit(packed, state))
    assert ours.packed.numel() == data.numel() // 2 and ours.absmax.dtype == torch.uint8
    by_hand = nf4_by_hand(data)
    # only the second quantisation of the scales lies between: a hundredth of the scale
    assert (ours.dequantize(torch.float32) - by_hand).abs().max() < 0.02 * by_hand.abs().max()
    assert 0 < (ours.dequantize(torch.float32) - data).abs().max() < 0.16 * data.abs().max()


def test_int8_is_bitsandbytes() -> None:
    from bitsandbytes.functional import int8_vectorwise_dequant, int8_vectorwise_quant

    data = dense()
    rows, scale, _ = int8_vectorwise_quant(data.half())
    ours = Int8.quantize(data).dequantize(torch.float32)
    assert torch.equal(ours, int8_vectorwise_dequant(rows, scale))
    assert ((ours - data).abs() <= data.abs().amax(1, keepdim=True) / 254 + 1e-4).all()


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_product_and_gradient(how: str, dtype: torch.dtype) -> None:
    weight, bias = quantized(dense(), how), torch.randn(96).to(dtype)
    image = weight.dequantize(dtype)
    assert image.dtype == dtype and weight.shape == (96, 128)
    x = torch.randn(2, 5, 128).to(dtype).requires_grad_()
    y = FrozenLinear(weight, bias)(x)
    assert torch.equal(y, linear(x, image, bias))
    dy = torch.randn_like(y)
    (dx,) = torch.autograd.grad(y, x, dy)
    assert torch.allclose(dx, dy @ image, rtol=1e-2 if dtype.itemsize == 2 else 1e-6, atol=1e-3)


@pytest.mark.parametrize("how", ["nf4", "int8"])
def test_no_dense_image_is_kept(how: str) -> None:
    """Between forward and backward no tensor of the weight's size in the activations' type is alive."""
    weight = quantized(dense(), how)
    x = torch.randn(3, 128, requires_grad=True)
    y = weight.linear(x)

    def images() -> int:
        gc.collect()
        return sum(
            1
            for o in gc.get_objects()
            if type(o) is Tensor and o.numel() == 96 * 128 and o.is_floating_point()
        )

    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        weight.linear(x)
    assert images() == 0 and not [t for t in saved if t.numel() >= 96 * 128]
    y.sum().backward()


@pytest.mark.parametrize("how", ["nf4", "int8"])
def test_no_forward_changes_the_stored_weight(how: str) -> None:
    """bitsandbytes' own Linear4bit repacks itself at its first forward in eval mode on some CPUs."""
    layer = FrozenLinear(quantized(dense(), how))
    before = copy.deepcopy(layer.state_dict())
    image = layer.weight.dequantize(torch.float32).clone()
    for training in (True, False):
        layer.train(training)
        with torch.no_grad():
            layer(torch.randn(1, 128, dtype=torch.bfloat16))
            layer(torch.randn(7, 128))
    assert all(torch.equal(before[key], value) for key, value in layer.state_dict().items())
    assert torch.equal(layer.weight.dequantize(torch.float32), image)


def test_state_moves_with_the_module() -> None:
    layer = FrozenLinear(Nf4.quantize(dense()), torch.zeros(96)).to("meta")
    assert all(tensor.is_meta for tensor in layer.state_dict().values()) and not list(layer.parameters())


def test_dense_is_shared_not_copied() -> None:
    data = dense()
    weight: FrozenWeight = Dense(data)
    assert weight.dequantize(torch.float32).data_ptr() == data.data_ptr()
