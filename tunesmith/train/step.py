"""One optimiser step: rows → micro-batches → one flat gradient → one update.

Every learned token of a step counts the same, however its rows are laid out: losses are summed, and divided once by
the step's count. On an accelerator nothing here waits for the device; `settle` reads all figures at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from tunesmith.engine.protocol import Engine, MicroBatchPlan, PackedBatch, pack
from tunesmith.errors import NotFinite
from tunesmith.rows import Rows
from tunesmith.train import scaling
from tunesmith.train.faults import not_finite
from tunesmith.train.optimizer import Optimizer, clip
from tunesmith.train.order import Order
from tunesmith.train.schedule import Schedule
from tunesmith.train.state import State


class Stepper:
    """Moves `state` on, step by step. `last_good()` gives the step of the newest checkpoint, for messages."""

    def __init__(
        self,
        *,
        engine: Engine,
        plan: MicroBatchPlan,
        rows: Rows,
        order: Order,
        schedule: Schedule,
        optimizer: Optimizer,
        clip: float | None,
        state: State,
        scaled: bool,
        last_good: Callable[[], int | None],
    ) -> None:
        self.engine, self.plan, self.rows, self.order = engine, plan, rows, order
        self.schedule, self.optimizer, self.clip, self.state = schedule, optimizer, clip, state
        self._last_good = last_good
        self._lengths = rows.lengths
        device = engine.parameters.data.device
        self._loss = torch.tensor(state.loss_sum, dtype=torch.float64, device=device)
        self._scaled = scaled
        self._reads_each_step = device.type == "cpu" or self._scaled
        self._unread: list[tuple[int, Tensor, Tensor]] = []
        self.now = "the start"

    def step(self) -> None:
        """The next step of the order."""
        state, step = self.state, self.state.step + 1
        batches = self._batches(step)
        learned = sum(batch.learned_tokens for batch in batches)
        while True:
            losses, norm = self._gradients(step, batches, learned)
            self._unread.append((step, losses, norm))
            if self._reads_each_step:
                if self._scaled and self._overflow(losses, norm) and scaling.overflowed(state):
                    self._unread.clear()
                    continue
                self.settle()
            break
        self.optimizer.step(self.schedule.rate(step))
        if self._scaled:
            scaling.went_well(state)
        self._loss += losses.sum()
        state.step = step
        state.tokens += sum(batch.tokens for batch in batches)
        state.learned_tokens += learned
        state.loss_tokens += learned

    def settle(self) -> None:
        """Brings figures from the device into the state. Raises NotFinite, naming the first bad step and its rows."""
        if self._unread:
            figures = torch.stack(
                [torch.cat([losses.sum()[None], norm[None]]) for _, losses, norm in self._unread]
            )
            for (step, losses, _), (loss, norm) in zip(self._unread, figures.tolist(), strict=True):
                self._require_finite(step, losses, loss, norm)
            self.state.gradient_norm = norm
            self._unread.clear()
        self.state.loss_sum = float(self._loss)

    def mean_loss(self) -> float:
        """Loss per learned token since the last call; begins to count anew."""
        mean = self.state.loss_sum / max(self.state.loss_tokens, 1)
        self.state.loss_sum, self.state.loss_tokens = 0.0, 0
        self._loss.zero_()
        return mean

    def _batches(self, step: int) -> list[PackedBatch]:
        return [pack(self.rows, numbers, step) for numbers in self._micro_batches(step)]

    def _micro_batches(self, step: int) -> list[list[int]]:
        """Row numbers by micro-batch."""
        numbers = self.order.numbers(step)
        return [numbers[part].tolist() for part in self.plan.split(self._lengths[numbers].tolist())]

    def _gradients(self, step: int, batches: list[PackedBatch], learned: int) -> tuple[Tensor, Tensor]:
        """Loss sums by micro-batch [fp64], and the norm of the whole step's gradient [fp64] before clipping."""
        parameters = self.engine.parameters
        parameters.zero_grad()
        scale = self.state.loss_scale / max(learned, 1)
        losses = []
        for i, batch in enumerate(batches, start=1):
            self.now = f"step {step}, micro-batch {i} of {len(batches)}: row lengths {sorted(batch.lengths)}"
            losses.append(self.engine.step(batch, scale).loss.double())
        if self._scaled:
            parameters.grad.mul_(1.0 / self.state.loss_scale)  # a power of two: exact
        return torch.stack(losses), clip(parameters.grad, self.clip).double()

    @staticmethod
    def _overflow(losses: Tensor, norm: Tensor) -> bool:
        """A sound loss whose scaled gradient is too large for float16."""
        return bool(torch.isfinite(losses).all()) and not bool(torch.isfinite(norm))

    def _require_finite(self, step: int, losses: Tensor, loss: float, norm: float) -> None:
        if not math.isfinite(loss):
            bad = int((~torch.isfinite(losses)).nonzero()[0])
            raise self._not_finite("the loss", step, self._micro_batches(step)[bad])
        if not math.isfinite(norm):
            raise self._not_finite("the gradient", step, self.order.numbers(step).tolist())

    def _not_finite(self, what: str, step: int, numbers: list[int]) -> NotFinite:
        return not_finite(what, step, self.rows, numbers, self._last_good())
