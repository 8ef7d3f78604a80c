"""The loop: a step; then, where due, validation, a log line, a checkpoint.

What belongs to a step is done in one order, so a checkpoint stands for all lines up to its step. A stop request
waits for the end of the step, the same one on all ranks; if it comes in the middle of a validation, the checkpoint
says that the step is not closed, and a resume begins by closing it. Nothing here draws a random number.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from tunesmith import console
from tunesmith.errors import OutOfRoom, Stopped
from tunesmith.recipe import Train
from tunesmith.rows import Rows
from tunesmith.run import Run
from tunesmith.train.checkpoint import Checkpoints
from tunesmith.train.faults import not_finite, room
from tunesmith.train.log import Log
from tunesmith.train.signals import StopRequest
from tunesmith.train.step import Stepper
from tunesmith.train.validate import validation_loss

_HEARTBEAT = 10.0  # seconds between two writes of state.json


@dataclass
class Loop:
    """`record` is what a checkpoint carries beside the state (environment, order)."""

    recipe: Train
    run: Run
    stepper: Stepper
    validation: Rows | None
    checkpoints: Checkpoints
    record: Mapping[str, Any]
    log: Log
    stop: StopRequest
    _beat: float = 0.0
    _asked: int = 0  # the signal that all ranks know of

    def train(self) -> None:
        """Goes on until the last step or until patience runs out. Raises Stopped, after a checkpoint, on a signal."""
        state = self.stepper.state
        self.log.start_clock(state.tokens)
        with (
            room(lambda: self.stepper.now, resumable=lambda: bool(self.checkpoints.steps())),
            self.checkpoints,
            console.progress("train", total=self.stepper.order.steps, done=state.step, unit="steps") as bar,
        ):
            if not state.closed:
                self._close(bar)
            while not state.finished:
                if self._stopping():
                    self._leave()
                self.checkpoints.check()
                self.stepper.step()
                bar.update(1)
                self._close(bar)

    def _close(self, bar: console.Progress) -> None:
        """Validation, line and checkpoint of the step just done."""
        state, step = self.stepper.state, self.stepper.state.step
        last = step >= self.stepper.order.steps
        state.closed = True
        validates = self.validation is not None and (self._due(self.recipe.evaluate_every, step) or last)
        validation, new_best = None, False
        if validates and self.validation is not None:
            validation = self._validate(self.validation)
            if validation is None:
                state.closed = False
                self._leave()
            new_best = self._judge(validation)
        if validates or last or step % self.recipe.log_every == 0:
            self._write_line(validation, bar)
        patience = self.recipe.patience
        state.finished = last or (patience is not None and state.without_best >= patience)
        if state.finished and not last:
            console.note(f"no better validation loss in {patience} validations: training ends at step {step}")
        if state.finished or new_best or self._due(self.recipe.save_every, step):
            self._save()
        self._heartbeat(step)

    def _due(self, every: int | Literal["epoch"], step: int) -> bool:
        return self.stepper.order.ends_epoch(step) if every == "epoch" else step % every == 0

    def _validate(self, rows: Rows) -> float | None:
        self.stepper.settle()  # a broken model is not worth a validation
        self.stepper.now = f"validation at step {self.stepper.state.step}"
        engine, plan = self.stepper.engine, self.stepper.plan
        with self.log.apart():
            loss = validation_loss(engine, rows, plan, self._stopping, self.stepper.ranks)
        if loss is not None and not math.isfinite(loss):
            step = self.stepper.state.step
            numbers = self.stepper.order.numbers(step).tolist()
            last_good = max(self.checkpoints.steps(), default=None)
            raise not_finite(
                "the validation loss after the update", step, self.stepper.rows, numbers, last_good
            )
        return loss

    def _judge(self, loss: float) -> bool:
        """Keeps the books of the best checkpoint; whether this is a new best."""
        state = self.stepper.state
        if state.best_loss is not None and not loss < state.best_loss:
            state.without_best += 1
            return False
        state.best_step, state.best_loss, state.without_best = state.step, loss, 0
        return True

    def _write_line(self, validation: float | None, bar: console.Progress) -> None:
        state = self.stepper.state
        self.stepper.settle()
        loss = self.stepper.mean_loss()
        line = {
            "step": state.step,
            "loss": loss,
            "validation_loss": validation,
            "learning_rate": self.stepper.schedule.rate(state.step),
            "gradient_norm": state.gradient_norm,
            "tokens": state.tokens,
            "learned_tokens": state.learned_tokens,
        }
        speed = self.log.metrics(line)
        figures = {"loss": loss, "tokens_per_second": round(speed)}
        bar.update(0, **figures, **({} if validation is None else {"validation_loss": validation}))

    def _save(self) -> None:
        self.stepper.settle()
        self.log.sync()
        state, parameters, ranks = self.stepper.state, self.stepper.engine.parameters, self.stepper.ranks
        with self.log.apart():
            if ranks.size > 1:
                self._require_agreement()
            if not ranks.first:
                return
            self.checkpoints.save(
                {**state.to_json(), **self.record, "order_sha256": self.stepper.order.sha256(state.step)},
                {"weights": parameters.views, "optimizer": self.stepper.optimizer.tensors()},
                best_step=state.best_step,
            )

    def _require_agreement(self) -> None:
        """A checkpoint stands for all ranks: ProofFailed where one has gone its own way."""
        parts = [self.stepper.engine.parameters.data, *self.stepper.optimizer.tensors().values()]
        proof = self.stepper.ranks.agree(parts)
        if self.stepper.ranks.first and (self.stepper.state.finished or not proof.passed):
            self.run.prove(proof)

    def _leave(self) -> NoReturn:
        """Checkpoints where the newest one is older, and stops."""
        state, ranks = self.stepper.state, self.stepper.ranks
        if ranks.told(state.step and state.step not in self.checkpoints.steps()):
            self._save()
        self.checkpoints.wait()
        name = signal.Signals(self._asked).name
        if ranks.first:
            self.run.write_state(phase="stopped", step=state.step)
        kept = "a checkpoint is saved" if state.step else "nothing is trained yet"
        raise Stopped(
            f"stopped by {name} after step {state.step} of {self.stepper.order.steps}; {kept}",
            fix="the same command goes on from there",
        )

    def _stopping(self) -> bool:
        """Whether any rank was asked to stop, in which all ranks agree; asked between steps and in a validation."""
        self._heartbeat(self.stepper.state.step)
        self._asked = self.stepper.ranks.highest(self.stop.signal or 0)
        return self._asked > 0

    def _heartbeat(self, step: int) -> None:
        if not self.stepper.ranks.first:
            return
        if self.stepper.state.finished or time.monotonic() - self._beat > _HEARTBEAT:
            self._beat = time.monotonic()
            try:
                self.run.write_state(phase="train", step=step, steps=self.stepper.order.steps)
            except OutOfRoom as error:  # a heartbeat is not worth the run: only a checkpoint is
                console.warn(f"no heartbeat: {error.what}")
