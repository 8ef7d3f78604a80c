"""Frozen base weights [out, in] as they are stored: dense, NF4 or 8-bit rows.

All are used the same way: the forward makes a dense image in the activations' type, multiplies and drops it; the
backward makes it again. Nothing dense is kept between the two, and no weight is ever repacked, so what a training
step sees, what an evaluation sees and what a merge reads are the same numbers. Activations are never quantised.
Sources: QLoRA (arXiv 2305.14314) for NF4, LLM.int8 (arXiv 2208.07339) for the rows' scales.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tunesmith.errors import ModelError, SetupError

STATE_BYTES = 256  # of the JSON beside an NF4 weight; bitsandbytes writes about 170
BLOCK = 64  # NF4: numbers that share one scale; 256 scales share one of the second kind
HALF_TYPES = (torch.bfloat16, torch.float16, torch.float32)


class FrozenWeight(nn.Module):
    """A weight [out, in] that never learns."""

    shape: tuple[int, int]

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """The dense image, [out, in] in `dtype` (for `Dense` of that type: the tensor itself)."""
        raise NotImplementedError

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x_*I -> y_*O = x Wᵀ (+ bias), differentiable in x alone."""
        y: Tensor = _FrozenProduct.apply(x, bias, self)  # type: ignore[no-untyped-call]  # torch's is untyped
        return y

    def extra_repr(self) -> str:
        return f"{self.shape[1]} -> {self.shape[0]}"


class _FrozenProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, weight: FrozenWeight) -> Tensor:
        ctx.weight = weight
        return functional.linear(x, weight.dequantize(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0] @ ctx.weight.dequantize(grads[0].dtype), None, None


class Dense(FrozenWeight):
    """bf16, fp16, fp32 or fp64, as it is."""

    data: Tensor

    def __init__(self, data: Tensor) -> None:
        super().__init__()
        self.shape = (data.shape[0], data.shape[1])
        self.register_buffer("data", data.detach())

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        return self.data.to(dtype)


class Nf4(FrozenWeight):
    """4-bit normal floats in blocks of 64, their scales quantised once more; bitsandbytes' numbers and layout."""

    packed: Tensor  # u8 [out * in / 2, 1]
    absmax: Tensor  # u8, a scale per block
    nested_absmax: Tensor  # fp32, a scale per 256 scales
    nested_code: Tensor  # fp32 [256]
    offset: Tensor  # fp32 0-d, added to every scale

    def __init__(
        self,
        packed: Tensor,
        shape: tuple[int, int],
        absmax: Tensor,
        nested: tuple[Tensor, Tensor, Tensor],
    ) -> None:
        super().__init__()
        self.shape = shape
        self.register_buffer("packed", packed)
        self.register_buffer("absmax", absmax)
        self.register_buffer("nested_absmax", nested[0])
        self.register_buffer("nested_code", nested[1])
        self.register_buffer("offset", nested[2])

    @classmethod
    def quantize(cls, data: Tensor) -> Nf4:
        """From a dense [out, in] tensor, on its own device."""
        packed, state = _bitsandbytes().quantize_4bit(
            data.contiguous(),
            blocksize=BLOCK,
            compress_statistics=True,
            quant_type="nf4",
        )
        nested = (
            state.state2.absmax,
            state.state2.code,
            torch.as_tensor(state.offset).to(data.device),
        )
        return cls(packed, (data.shape[0], data.shape[1]), state.absmax, nested)

    @classmethod
    def stored(cls, name: str, tensors: Mapping[str, Tensor]) -> Nf4:
        """From a checkpoint that bitsandbytes wrote: `name` (u8) and its companions `name.absmax`, ... in `tensors`."""
        companion = tensors.get(f"{name}.quant_state.bitsandbytes__nf4")
        about = json.loads(bytes(companion.tolist())) if companion is not None else {}
        if (
            about.get("blocksize") != BLOCK
            or about.get("nested_blocksize") != 256
            or len(about["shape"]) != 2
        ):
            raise ModelError(
                f"{name} is quantised in a way that can't be read: only NF4 in blocks of 64, double quantised",
                fix="use the base in 16-bit with model.quantize: nf4",
            )
        offset = torch.tensor(about["nested_offset"], dtype=torch.float32)
        nested = (
            tensors[f"{name}.nested_absmax"],
            tensors[f"{name}.nested_quant_map"],
            offset,
        )
        out, into = about["shape"]
        return cls(tensors[name], (out, into), tensors[f"{name}.absmax"], nested)

    def tensors(self, name: str, dtype: torch.dtype) -> dict[str, Tensor]:
        """What `stored` reads, as bitsandbytes writes it for a weight that is used in `dtype`."""
        about = {
            "quant_type": "nf4",
            "blocksize": BLOCK,
            "dtype": str(dtype).removeprefix("torch."),
            "shape": list(self.shape),
            "nested_blocksize": 256,
            "nested_dtype": "float32",
            "nested_offset": float(self.offset),
        }
        state = (
            json.dumps(about).encode().ljust(STATE_BYTES)
        )  # of one length: its place in a file is known before
        return {
            name: self.packed,
            f"{name}.absmax": self.absmax,
            f"{name}.quant_map": _bitsandbytes().get_4bit_type("nf4", device="cpu"),
            f"{name}.nested_absmax": self.nested_absmax,
            f"{name}.nested_quant_map": self.nested_code,
            f"{name}.quant_state.bitsandbytes__nf4": torch.frombuffer(bytearray(state), dtype=torch.uint8),
        }

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        bitsandbytes = _bitsandbytes()
        wanted = dtype if dtype in HALF_TYPES else torch.float32
        second = bitsandbytes.QuantState(
            absmax=self.nested_absmax,
            code=self.nested_code,
            blocksize=256,
            dtype=torch.float32,
        )
        state = bitsandbytes.QuantState(
            absmax=self.absmax,
            shape=torch.Size(self.shape),
            blocksize=BLOCK,
            quant_type="nf4",
            dtype=wanted,
            offset=self.offset,
            state2=second,
        )
        dense: Tensor = bitsandbytes.dequantize_4bit(self.packed, state)
        return dense.to(dtype)


class Int8(FrozenWeight):
    """Rows of 8-bit integers, each row with one scale: W[o, i] = rows[o, i] · scale[o] / 127."""

    rows: Tensor  # i8 [out, in]
    scale: Tensor  # fp32 [out], the row's largest magnitude

    def __init__(self, rows: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.shape = (rows.shape[0], rows.shape[1])
        self.register_buffer("rows", rows)
        self.register_buffer("scale", scale)

    @classmethod
    def quantize(cls, data: Tensor) -> Int8:
        """From a dense [out, in] tensor, on its own device (through fp16, as bitsandbytes does)."""
        rows, scale, _ = _bitsandbytes().int8_vectorwise_quant(data.to(torch.float16).contiguous())
        return cls(rows, scale)

    @classmethod
    def stored(cls, name: str, tensors: Mapping[str, Tensor]) -> Int8:
        """From a checkpoint that bitsandbytes wrote: `name` (i8), its linear's SCB, and 0 (rows) as its format."""
        form = tensors.get(f"{name}_format")
        if tensors[name].dtype != torch.int8 or (form is not None and int(form) != 0):
            raise ModelError(
                f"{name} is quantised in a way that can't be read: only 8-bit rows with a scale each",
                fix="use the base in 16-bit with model.quantize: int8",
            )
        return cls(tensors[name], tensors[f"{name.removesuffix('.weight')}.SCB"].float())

    def tensors(self, name: str) -> dict[str, Tensor]:
        """What `stored` reads, as bitsandbytes writes it."""
        return {
            name: self.rows,
            f"{name.removesuffix('.weight')}.SCB": self.scale,
            f"{name}_format": torch.zeros((), dtype=torch.uint8),
        }

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        return (self.rows * self.scale.unsqueeze(1)).mul_(1 / 127).to(dtype)


class FrozenLinear(nn.Module):
    """A linear layer over a frozen weight; what `nn.Linear` becomes when the base is quantised or carries LoRA."""

    bias: Tensor | None

    def __init__(self, weight: FrozenWeight, bias: Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.weight = weight
        self.register_buffer("bias", bias)

    @classmethod
    def over(cls, linear: nn.Linear) -> FrozenLinear:
        """The same layer, its dense weight shared and frozen."""
        bias = None if linear.bias is None else linear.bias.detach()
        return cls(Dense(linear.weight), bias)

    def forward(self, x: Tensor) -> Tensor:
        """x_*I -> y_*O."""
        return self.weight.linear(x, self.bias)


@cache
def _bitsandbytes() -> ModuleType:
    # importing it warns about a missing kernel of another project that nothing here would use
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    try:
        import bitsandbytes.functional
    except ImportError as error:
        raise SetupError(
            "quantised weights need the package bitsandbytes",
            where="model.quantize",
            fix="pip install bitsandbytes, or model.quantize: none",
        ) from error
    return bitsandbytes.functional


def stored_weight(name: str, tensors: Mapping[str, Tensor]) -> FrozenWeight:
    """A weight with its companions in `tensors`, as bitsandbytes stored them: NF4 or 8 bits."""
    nf4 = f"{name}.absmax" in tensors
    return Nf4.stored(name, tensors) if nf4 else Int8.stored(name, tensors)


def quantized(data: Tensor, how: str) -> FrozenWeight:
    """`how` is the recipe's `model.quantize`: none, nf4 or int8."""
    if how == "none":
        return Dense(data)
    return Nf4.quantize(data) if how == "nf4" else Int8.quantize(data)
