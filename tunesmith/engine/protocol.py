"""What an engine is, and the few shapes that the loop and an engine exchange.

The loop knows only this: rows become a `PackedBatch`, `Engine.step` adds gradients to one flat buffer and returns
sums (never means), and a stored `MicroBatchPlan` says which rows of a step travel together. T tokens, R rows,
V vocabulary, n learned tokens, N trained numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tunesmith.engine.plan import MicroBatchPlan, Step

if TYPE_CHECKING:
    from tunesmith.rows import Rows


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Rows laid end to end, without padding.

    ids_T, positions_T (i64, from 0 in each row), cu_seqlens (i32 [R+1], where rows start), learned_T (bool: token t
    is a target, predicted at t-1 of its own row), targets_n (i64: the t that are learned, ascending), rows_R (i64:
    row numbers in the data set, for the dropout counter), row_of_T (i64: 0..R-1), step (the optimiser step, likewise).
    """

    ids: Tensor
    positions: Tensor
    cu_seqlens: Tensor
    max_length: int
    learned: Tensor
    targets: Tensor
    rows: Tensor
    row_of: Tensor
    lengths: tuple[int, ...]
    step: int

    @property
    def tokens(self) -> int:
        """T."""
        return self.ids.shape[0]

    @property
    def learned_tokens(self) -> int:
        """n, known without asking the device: the loop divides by its sum over one optimiser step."""
        return self.targets.shape[0]

    def to(self, device: torch.device | str) -> PackedBatch:
        """The same batch on `device`; to CUDA through pinned memory, so the host doesn't wait for running work."""
        pin = torch.device(device).type == "cuda" and not self.ids.is_cuda

        def move(tensor: Tensor) -> Tensor:
            return (tensor.pin_memory() if pin else tensor).to(device, non_blocking=True)

        return replace(
            self,
            ids=move(self.ids),
            positions=move(self.positions),
            cu_seqlens=move(self.cu_seqlens),
            learned=move(self.learned),
            targets=move(self.targets),
            rows=move(self.rows),
            row_of=move(self.row_of),
        )


def pack_sequences(
    ids: Sequence[Sequence[int] | NDArray[Any]],
    learned: Sequence[Sequence[bool] | NDArray[Any]],
    numbers: Sequence[int],
    step: int,
) -> PackedBatch:
    """Lay sequences end to end. A row's first token has no predecessor, so it is never a target."""
    if not ids or any(len(row) == 0 for row in ids):
        raise ValueError("a batch needs rows, and each row needs tokens")
    lengths = np.array([len(row) for row in ids], dtype=np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    flat = np.concatenate([np.asarray(row, dtype=np.int64) for row in ids])
    mask = np.concatenate([np.asarray(row, dtype=bool) for row in learned])
    if mask.shape != flat.shape:
        raise ValueError("ids and learned differ in length")
    mask[starts[:-1]] = False
    row_of = np.repeat(np.arange(len(lengths)), lengths)
    return PackedBatch(
        ids=torch.from_numpy(flat),
        positions=torch.from_numpy(np.arange(len(flat)) - starts[row_of]),
        cu_seqlens=torch.from_numpy(starts.astype(np.int32)),
        max_length=int(lengths.max()),
        learned=torch.from_numpy(mask),
        targets=torch.from_numpy(np.flatnonzero(mask)),
        rows=torch.tensor(list(numbers), dtype=torch.int64),
        row_of=torch.from_numpy(row_of),
        lengths=tuple(int(length) for length in lengths),
        step=step,
    )


def pack(rows: Rows, numbers: Sequence[int], step: int) -> PackedBatch:
    """The data set's rows `numbers` as one batch of optimiser step `step`."""
    return pack_sequences(
        [rows.ids(i) for i in numbers],
        [rows.learned(i) for i in numbers],
        numbers,
        step,
    )


class StepSums(NamedTuple):
    """What one micro-batch adds to a step: `loss` is a 0-d tensor on the device (no sync), unscaled, a sum."""

    loss: Tensor
    learned: int


class FlatParameters:
    """All trained numbers in one fp32 buffer and all gradients in another (fp64 both, for a model in fp64: proofs).

    A parameter of the buffer's own type becomes a view into it. One of a narrower type (full fine-tuning in bf16)
    stays a copy for computing: `publish` writes the masters into it, and its gradient is added to the flat one and
    dropped as soon as backward has made it.
    """

    def __init__(self, named: Iterable[tuple[str, nn.Parameter]]) -> None:
        pairs = list(named)
        if not pairs:
            raise ValueError("there is nothing to train")
        self.names = tuple(name for name, _ in pairs)
        self.shapes = tuple(tuple(p.shape) for _, p in pairs)
        wide = torch.float64 if any(p.dtype == torch.float64 for _, p in pairs) else torch.float32
        device = pairs[0][1].device
        self.data = torch.empty(sum(p.numel() for _, p in pairs), dtype=wide, device=device)
        self.grad = torch.zeros_like(self.data)
        self._copies: list[tuple[nn.Parameter, Tensor]] = []
        self.views: dict[str, Tensor] = {}
        self.grads: dict[str, Tensor] = {}
        start = 0
        for name, parameter in pairs:
            end = start + parameter.numel()
            view = self.data[start:end].view(parameter.shape)
            gradient = self.grad[start:end].view(parameter.shape)
            self.views[name], self.grads[name] = view, gradient
            view.copy_(parameter.detach())
            if parameter.dtype == wide:
                parameter.data, parameter.grad = view, gradient
            else:
                parameter.grad = None
                self._copies.append((parameter, view))
                parameter.register_post_accumulate_grad_hook(_into(gradient))  # type: ignore[no-untyped-call]
            start = end

    def zero_grad(self) -> None:
        """Forget the gradients of the last step."""
        self.grad.zero_()

    def publish(self) -> None:
        """Write the masters into the model's narrower copies; the engine does so before each forward."""
        for parameter, view in self._copies:
            parameter.data.copy_(view)


def _into(gradient: Tensor) -> Any:
    def add(parameter: Tensor) -> None:
        assert parameter.grad is not None
        gradient.add_(parameter.grad)
        parameter.grad = None

    return add


__all__ = [
    "Engine",
    "FlatParameters",
    "MicroBatchPlan",
    "PackedBatch",
    "Step",
    "StepSums",
    "pack",
    "pack_sequences",
]


class Engine(Protocol):
    """One training step's mathematics."""

    parameters: FlatParameters

    def plan(
        self, lengths: Sequence[int] | NDArray[np.int64], steps: Sequence[Step] | None = None
    ) -> MicroBatchPlan:
        """The plan for a data set of rows of these lengths; raises OutOfRoom when its longest row can't fit.

        `steps`, those of the run, say what will really lie in a micro-batch; without them the worst is assumed.
        """
        ...

    def use(self, plan: MicroBatchPlan) -> None:
        """Work by `plan` (fresh from `plan`, or the Run's stored one): sets which layers recompute."""
        ...

    def step(self, batch: PackedBatch, scale: float) -> StepSums:
        """Add the gradients of scale × (sum of losses over learned tokens); return the unscaled sum."""
        ...

    def logits(self, batch: PackedBatch) -> Tensor:
        """fp32 [n, V] at the positions that predict learned tokens, in stream order; no dropout, no gradient."""
        ...

    def row_losses(self, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        """(nll_R fp64 in nats, learned_R i64) per row, on the CPU; no dropout, no gradient."""
        ...
