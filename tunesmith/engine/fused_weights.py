"""Linears that share an input (q, k, v; gate, up; o; down) as one product, their adapters folded into it.

With z = s · A drop(x), and A, B of all adapters stacked (B block by block), the base and the adapters are one matrix:

    y = [x, z] · [W, B]ᵀ          dx = [dy, dz] · [W; A]          dz = s · dy B

so each product reads and writes its large sides once, and the adapter's share is added in the fp32 accumulator. An
image holds [[W, B], [A, ·]]; the tails are copied from the masters before each step. Where a stream asks for fp8, the
base's product is fp8's (`fused_fp8.py`) and the adapters' are added to it, in the stream's own type.
N outputs, K inputs, R ranks of all adapters together, rounded up to 16.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from tunesmith.engine.fused_fp8 import Fp8Weights
from tunesmith.engine.fused_stream import Stream, with_tail
from tunesmith.kernels.kernel_set import Drops, Kernels
from tunesmith.model.lora import LoraLinear
from tunesmith.model.weights import Dense, FrozenLinear, FrozenWeight, Nf4

_ALIGNED = 16


class Shared:
    """One buffer in which dense images of quantised weights are made, one after another."""

    def __init__(self) -> None:
        self._buffer: Tensor | None = None

    def release(self) -> None:
        """Give the buffer back until somebody asks for room again."""
        self._buffer = None

    def room(self, rows: int, columns: int, like: Tensor) -> Tensor:
        """[rows, columns] of uninitialised numbers; what was there before is lost."""
        if self._buffer is None or self._buffer.numel() < rows * columns:
            self._buffer = None
            self._buffer = torch.empty(rows * columns, dtype=like.dtype, device=like.device)
        return self._buffer[: rows * columns].view(rows, columns)


class Projection:
    """Frozen linears over one input, and the adapters beside some of them: `names` of `holder`'s modules."""

    def __init__(
        self, holder: nn.Module, names: Sequence[str], kernels: Kernels, shared: Shared, like: Tensor
    ) -> None:
        self.kernels, self._shared, self._like = kernels, shared, like
        self._holder, self._names = holder, tuple(names)
        modules = self._modules
        self._frozen = [_frozen(module) for module in modules]
        self.outs = [weight.shape[0] for weight, _ in self._frozen]
        self.N, self.K = sum(self.outs), self._frozen[0][0].shape[1]
        edges = [sum(self.outs[:i]) for i in range(len(self.outs) + 1)]
        self._places = [slice(start, end) for start, end in pairwise(edges)]
        found = [
            (m, place) for m, place in zip(modules, self._places, strict=True) if isinstance(m, LoraLinear)
        ]
        self.adapters = [adapter for adapter, _ in found]
        ranks = [sum(a.rank for a in self.adapters[:i]) for i in range(len(found) + 1)]
        self.ranks = tuple(ranks)
        self._own = [(place, slice(*own)) for (_, place), own in zip(found, pairwise(ranks), strict=True)]
        self.tail = -(-ranks[-1] // _ALIGNED) * _ALIGNED
        self.bias = self._joined_bias()
        self._factors = torch.stack([a.factors for a in self.adapters]) if self.adapters else None
        self._columns = with_tail(1, self.K, self.tail, like).stride(0)
        self._image: Tensor | None = None
        self._fp8: Fp8Weights | None = None
        if all(isinstance(weight, Dense) for weight, _ in self._frozen):
            self._take_over()
        a_RK, b_NR = self._tails_of(self._image) if self._image is not None else self._own_tails()
        self.a_RK, self.b_NR = a_RK, b_NR

    @property
    def _modules(self) -> list[nn.Module]:
        return [self._holder.get_submodule(name) for name in self._names]

    @property
    def _parts(self) -> list[tuple[LoraLinear, slice, slice]]:
        """(adapter, its outputs, its ranks)."""
        return [(adapter, *own) for adapter, own in zip(self.adapters, self._own, strict=True)]

    @property
    def quantised(self) -> bool:
        """Whether an image has to be made of the weights."""
        return not all(isinstance(weight, Dense) for weight, _ in self._frozen)

    @property
    def active(self) -> bool:
        """Whether there are adapters, and they are switched on."""
        return bool(self.adapters) and self.adapters[0].enabled

    def keep(self, keeps: bool) -> None:
        """Make the image of quantised weights once and keep it, or drop it."""
        if not self.quantised or keeps == (self._image is not None):
            return
        self._image = None
        if keeps:
            image = torch.zeros(
                self.N + self.tail, self._columns, dtype=self._like.dtype, device=self._like.device
            )
            self._write(image)
            self._image = image
        self.a_RK, self.b_NR = self._tails_of(image) if keeps else self._own_tails()

    def keep_fp8(self) -> None:
        """Make the fp8 copies, which training steps may ask for."""
        self._fp8 = Fp8Weights(self._weights(forward=True)[: self.N, : self.K], self.kernels)

    def refresh(self) -> None:
        """Copy the adapters' masters into the tails; the adapters that stand in the model now, they may be new."""
        self.adapters = [module for module in self._modules if isinstance(module, LoraLinear)]
        for adapter, place, own in self._parts:
            self.a_RK[own].copy_(adapter.A)
            self.b_NR[place, own].copy_(adapter.B)

    def input(self, tokens: int) -> Tensor:
        """An uninitialised [tokens, K + R] whose first K columns the caller fills."""
        return with_tail(tokens, self.K, self.tail, self._like)

    def output_gradient(self, tokens: int) -> Tensor:
        """An uninitialised [tokens, N + R] whose first N columns the caller fills."""
        return with_tail(tokens, self.N, self.tail, self._like)

    def forward(self, x_TK: Tensor, stream: Stream, *, tail: bool = False) -> tuple[Tensor, Tensor | None]:
        """(y [T, N], z [T, R]) for x [T, K] or `input`'s [T, K + R]; with `tail` R columns are free behind y's rows.

        z, which `learn` wants again, is None without adapters, and may be a view into x's tail.
        """
        narrow_TK = x_TK[:, : self.K]
        y_TN = (self.output_gradient if tail else self._plain_output)(len(x_TK))[:, : self.N]
        if stream.fp8:
            return self._forward_fp8(narrow_TK, stream, y_TN)
        w = self._weights(forward=True)
        if not self.active:
            return self._product(narrow_TK, w[: self.N, : self.K], y_TN), None
        if x_TK.shape[1] > self.K:
            z_TR = self.down(narrow_TK, stream, x_TK[:, self.K :])
            return self._product(x_TK, w[: self.N, : self.K + self.tail], y_TN), z_TR
        z_TR = self.down(narrow_TK, stream)
        self._product(narrow_TK, w[: self.N, : self.K], y_TN)
        return y_TN.addmm_(z_TR, self.b_NR.t()), z_TR

    def _forward_fp8(self, x_TK: Tensor, stream: Stream, y_TN: Tensor) -> tuple[Tensor, Tensor | None]:
        assert self._fp8 is not None
        self._fp8.forward(x_TK, y_TN)
        if self.bias is not None:
            y_TN += self.bias
        if not self.active:
            return y_TN, None
        z_TR = self.down(x_TK, stream)
        return y_TN.addmm_(z_TR, self.b_NR.t()), z_TR

    def down(self, x_TK: Tensor, stream: Stream, out_TR: Tensor | None = None) -> Tensor:
        """z [T, R] = s · A drop(x), zeros beyond the ranks."""
        z_TR = (
            torch.empty(len(x_TK), self.tail, dtype=x_TK.dtype, device=x_TK.device)
            if out_TR is None
            else out_TR
        )
        drops = self._drops(stream)
        if drops is None:
            return _scaled_product(x_TK, self.a_RK.t(), self._scale(stream), z_TR)
        self.kernels.lora_down(x_TK, self.a_RK, drops, self._scale(stream), z_TR)
        return z_TR

    def input_gradient(self, d_TN: Tensor, stream: Stream) -> Tensor:
        """dx [T, K]. `d_TN` is `output_gradient`'s: its tail is filled with dz, which `learn` needs."""
        narrow_TN, drops = d_TN[:, : self.N], self._drops(stream)
        if self.active:
            self._fill_tail(d_TN, stream)
        if stream.fp8:
            assert self._fp8 is not None
            dx_TK = self._fp8.input_gradient(narrow_TN)
            if not self.active:
                return dx_TK
            if drops is None:
                return dx_TK.addmm_(d_TN[:, self.N :], self.a_RK)
        else:
            w = self._weights(forward=False)
            if not self.active:
                return narrow_TN @ w[: self.N, : self.K]
            if drops is None:
                return d_TN @ w[: self.N + self.tail, : self.K]
            dx_TK = narrow_TN @ w[: self.N, : self.K]
        self.kernels.lora_up(d_TN[:, self.N :], self.a_RK, drops, dx_TK)
        return dx_TK

    def learn(
        self, d_TN: Tensor, x_TK: Tensor, z_TR: Tensor | None, stream: Stream, *, tail_filled: bool = True
    ) -> None:
        """Add the adapters' gradients to their masters' `.grad`; z is what `forward` gave."""
        if not self.active:
            return
        assert z_TR is not None
        if not tail_filled:
            self._fill_tail(d_TN, stream)
        x_TK, dz_TR, drops = x_TK[:, : self.K], d_TN[:, self.N :], self._drops(stream)
        da_RK = (
            wide_product(dz_TR.t(), x_TK) if drops is None else self.kernels.lora_outer(dz_TR, x_TK, drops)
        )
        db_NR = wide_product(d_TN[:, : self.N].t(), z_TR)
        for adapter, place, own in self._parts:
            assert adapter.A.grad is not None and adapter.B.grad is not None
            adapter.A.grad += da_RK[own]
            adapter.B.grad += db_NR[place, own]

    def _fill_tail(self, d_TN: Tensor, stream: Stream) -> None:
        _scaled_product(d_TN[:, : self.N], self.b_NR, self._scale(stream), d_TN[:, self.N :])

    def _product(self, x_TK: Tensor, w_NK: Tensor, out_TN: Tensor) -> Tensor:
        if self.bias is not None:
            return torch.addmm(self.bias, x_TK, w_NK.t(), out=out_TN)
        return torch.mm(x_TK, w_NK.t(), out=out_TN)

    def _plain_output(self, tokens: int) -> Tensor:
        return torch.empty(tokens, self.N, dtype=self._like.dtype, device=self._like.device)

    def _drops(self, stream: Stream) -> Drops | None:
        if stream.keys_T is None or self._factors is None:
            return None
        return Drops(stream.keys_T, self._factors, self.adapters[0].dropout.threshold, self.ranks)

    def _scale(self, stream: Stream) -> float:
        adapter = self.adapters[0]
        return adapter.scaling / (1 - adapter.dropout.p) if stream.keys_T is not None else adapter.scaling

    def _weights(self, *, forward: bool) -> Tensor:
        if self._image is not None:
            return self._image
        image = self._shared.room(self.N + self.tail, self._columns, self._like)
        self._write(image)
        if self.tail and forward:
            image[: self.N, self.K : self.K + self.tail].copy_(self.b_NR)
        elif self.tail:
            image[self.N :, : self.K].copy_(self.a_RK)
        return image

    def _write(self, image: Tensor) -> None:
        for (weight, _), place in zip(self._frozen, self._places, strict=True):
            out_OI = image[place, : self.K]
            if isinstance(weight, Nf4) and self.kernels.nf4_image is not None and self.K % 64 == 0:
                self.kernels.nf4_image(
                    weight.packed,
                    weight.absmax,
                    weight.nested_absmax,
                    weight.nested_code,
                    weight.offset,
                    out_OI,
                )
            else:
                out_OI.copy_(weight.dequantize(out_OI.dtype))

    def _take_over(self) -> None:
        """Dense weights move into the image, and become views of it: they are there once, whoever reads them."""
        image = torch.zeros(
            self.N + self.tail, self._columns, dtype=self._like.dtype, device=self._like.device
        )
        for module, place in zip(self._modules, self._places, strict=True):
            image[place, : self.K].copy_(_frozen(module)[0].dequantize(image.dtype))
            base = module.base if isinstance(module, LoraLinear) else module
            holder = base.weight
            holder.data = image[place, : self.K]  # a Dense's buffer, or a parameter's tensor
        self._frozen = [_frozen(module) for module in self._modules]
        self._image = image

    def _tails_of(self, image: Tensor) -> tuple[Tensor, Tensor]:
        return image[self.N :, : self.K], image[: self.N, self.K : self.K + self.tail]

    def _own_tails(self) -> tuple[Tensor, Tensor]:
        return self._like.new_zeros(self.tail, self.K), self._like.new_zeros(self.N, self.tail)

    def _joined_bias(self) -> Tensor | None:
        if all(bias is None for _, bias in self._frozen):
            return None
        return torch.cat(
            [
                torch.zeros(out, dtype=self._like.dtype, device=self._like.device)
                if bias is None
                else bias.detach()
                for (_, bias), out in zip(self._frozen, self.outs, strict=True)
            ]
        )


def _scaled_product(a: Tensor, b: Tensor, scale: float, out: Tensor) -> Tensor:
    """out = scale · a · b, scaled before it is rounded."""
    return torch.addmm(out, a, b, beta=0, alpha=scale, out=out)


def wide_product(a: Tensor, b: Tensor) -> Tensor:
    """a · b in fp32 (fp64 for fp64), however narrow the factors."""
    if a.dtype in (torch.float32, torch.float64):
        return a @ b
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()


def _frozen(module: nn.Module) -> tuple[FrozenWeight, Tensor | None]:
    """Weight and bias of a linear in any of its clothes."""
    if isinstance(module, LoraLinear):
        module = module.base
    if isinstance(module, FrozenLinear):
        return module.weight, module.bias
    assert isinstance(module, nn.Linear)
    return Dense(module.weight), module.bias
