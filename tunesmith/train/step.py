"""One optimiser step: rows → each rank's share → micro-batches → one flat gradient → one update.

Every learned token of a step counts the same, however its rows are laid out: losses are summed, and divided once by
the step's count, which every rank knows from the masks. On an accelerator nothing here waits for the device;
`settle` reads all figures at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from tunesmith.engine.plan import evenly
from tunesmith.engine.protocol import Engine, MicroBatchPlan, PackedBatch, pack
from tunesmith.errors import NotFinite
from tunesmith.rows import Rows
from tunesmith.train import scaling
from tunesmith.train.faults import not_finite
from tunesmith.train.optimizer import Optimizer, clip
from tunesmith.train.order import Order
from tunesmith.train.parallel import ALONE, Ranks
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
        ranks: Ranks = ALONE,
    ) -> None:
        self.engine, self.plan, self.rows, self.order = engine, plan, rows, order
        self.schedule, self.optimizer, self.clip, self.state = schedule, optimizer, clip, state
        self.ranks, self._last_good = ranks, last_good
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
        numbers, parts = self.order.numbers(step), self._parts(step)
        before = sum(len(part) for part in parts[: self.ranks.rank])
        batches = [pack(self.rows, own, step) for own in parts[self.ranks.rank]]
        learned = sum(
            int(self.rows.learned(n)[1:].sum()) for n in numbers
        )  # a row's first token is no target
        while True:
            losses = torch.zeros(sum(map(len, parts)), dtype=torch.float64, device=self._loss.device)
            norm = self._gradients(step, batches, learned, losses[before:])
            self.ranks.add(losses)  # each micro-batch has one rank that knows it
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
        state.tokens += int(self._lengths[numbers].sum())
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

    def _parts(self, step: int) -> list[list[list[int]]]:
        """Row numbers by rank and micro-batch."""
        numbers = self.order.numbers(step)
        owned = [numbers[own] for own in evenly(self._lengths[numbers].tolist(), self.ranks.size)]
        return [
            [own[part].tolist() for part in self.plan.split(self._lengths[own].tolist())] for own in owned
        ]

    def _gradients(self, step: int, batches: list[PackedBatch], learned: int, losses: Tensor) -> Tensor:
        """Loss sums by own micro-batch into `losses`; the norm of the whole step's gradient [fp64] before clipping."""
        parameters = self.engine.parameters
        parameters.zero_grad()
        scale = self.state.loss_scale / max(learned, 1)
        for i, batch in enumerate(batches):
            self.now = (
                f"step {step}, micro-batch {i + 1} of {len(batches)}: row lengths {sorted(batch.lengths)}"
            )
            losses[i] = self.engine.step(batch, scale).loss
        self.ranks.add(parameters.grad)
        if self._scaled:
            parameters.grad.mul_(1.0 / self.state.loss_scale)  # a power of two: exact
        return clip(parameters.grad, self.clip).double()

    @staticmethod
    def _overflow(losses: Tensor, norm: Tensor) -> bool:
        """A sound loss whose scaled gradient is too large for float16."""
        return bool(torch.isfinite(losses).all()) and not bool(torch.isfinite(norm))

    def _require_finite(self, step: int, losses: Tensor, loss: float, norm: float) -> None:
        if not math.isfinite(loss):
            bad = int((~torch.isfinite(losses)).nonzero()[0])
            micro_batches = [numbers for own in self._parts(step) for numbers in own]
            raise self._not_finite("the loss", step, micro_batches[bad])
        if not math.isfinite(norm):
            raise self._not_finite("the gradient", step, self.order.numbers(step).tolist())

    def _not_finite(self, what: str, step: int, numbers: list[int]) -> NotFinite:
        return not_finite(what, step, self.rows, numbers, self._last_good())
