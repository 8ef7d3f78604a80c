"""What a run writes while it trains: metrics.jsonl (deterministic), timing.jsonl (not), TensorBoard, other trackers.

On resume all three are cut back to the resumed step, so a killed and resumed run leaves the same metrics.jsonl,
byte for byte, as one that was never killed.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

import torch

from tunesmith import console
from tunesmith.errors import Stopped
from tunesmith.run import Run, write_atomic
from tunesmith.train.tracker import CURVES, Outcome
from tunesmith.train.trackers import Tracked
from tunesmith.view.logged import logged

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

GIB = 2**30


class Log:
    """`metrics(line)` once a logged step. Lines after step `keep` are dropped at the start."""

    def __init__(
        self, run: Run, *, keep: int, device: torch.device, trackers: Sequence[Tracked] = ()
    ) -> None:
        self._device, self._trackers = device, trackers
        self._metrics = _reopen(run.metrics_file, keep)
        self._timing = _reopen(run.timing_file, keep)
        self._board = _board(run.tensorboard, keep)
        self._begin, self._tokens = time.monotonic(), 0
        known = logged({run.name: run})[1] if trackers else []
        for tracked in trackers:
            tracked.begin(known)

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for tracked in self._trackers:
            tracked.close(_outcome(error))
        for file in (self._metrics, self._timing, self._board):
            # on a full disk closing fails too: the first error is the one to tell
            with suppress(OSError) if error else nullcontext():
                if file is not None:
                    file.close()

    def start_clock(self, tokens: int) -> None:
        """Time counts from here; `tokens` have been seen before."""
        self._begin, self._tokens = time.monotonic(), tokens

    @contextmanager
    def apart(self) -> Iterator[None]:
        """A validation or a checkpoint: its time counts for no step."""
        begin = time.monotonic()
        try:
            yield
        finally:
            self._begin += time.monotonic() - begin

    def metrics(self, line: Mapping[str, Any]) -> float:
        """Writes a line with `step`, and the time since the last one; returns tokens per second."""
        _write(self._metrics, line)
        seconds, speed = self._speed(line)
        timing = {"step": line["step"], "seconds": round(seconds, 4), "tokens_per_second": round(speed, 1)}
        timing |= {"memory_gib": round(peak_memory(self._device) / GIB, 3), "time": time.time()}
        if self._device.type == "cuda":  # without what the allocator holds in reserve
            timing["allocated_gib"] = round(torch.cuda.max_memory_allocated(self._device) / GIB, 3)
        _write(self._timing, timing)
        whole = {**line, **timing}
        if self._board is not None:
            for key, tag in CURVES.items():
                if whole[key] is not None:
                    self._board.add_scalar(tag, whole[key], line["step"])
        for tracked in self._trackers:
            tracked.log(whole)
        return speed

    def _speed(self, line: Mapping[str, Any]) -> tuple[float, float]:
        """Seconds and tokens per second since the last line."""
        seconds, tokens = time.monotonic() - self._begin, line["tokens"] - self._tokens
        self._begin, self._tokens = time.monotonic(), line["tokens"]
        return seconds, tokens / max(seconds, 1e-9)

    def sync(self) -> None:
        """Makes all lines durable: called before a checkpoint is published, which stands for them."""
        for file in (self._metrics, self._timing):
            file.flush()
            os.fsync(file.fileno())
        if self._board is not None:
            self._board.flush()


class NoLog(Log):
    """Of a rank that writes nothing."""

    def __init__(self) -> None:
        self._begin, self._tokens = time.monotonic(), 0

    def __exit__(self, *_: object) -> None:
        pass

    def metrics(self, line: Mapping[str, Any]) -> float:
        """Tokens per second, of all ranks."""
        return self._speed(line)[1]

    def sync(self) -> None:
        """Nothing is there."""


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that the accelerator held; on a CPU the most that the process did."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_reserved(device))
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _outcome(error: BaseException | None) -> Outcome:
    if error is None:
        return "finished"
    return "stopped" if isinstance(error, Stopped | KeyboardInterrupt) else "failed"


def _write(file: TextIO, line: Mapping[str, Any]) -> None:
    file.write(json.dumps(line, allow_nan=False) + "\n")
    file.flush()


def _reopen(path: Path, keep: int) -> TextIO:
    """Opens for appending, after dropping lines beyond step `keep` and a torn last one."""
    if path.exists():
        kept = []
        for line in path.read_bytes().splitlines(keepends=True):
            try:
                if json.loads(line)["step"] <= keep and line.endswith(b"\n"):
                    kept.append(line)
            except (ValueError, KeyError, TypeError):
                continue
        write_atomic(path, b"".join(kept))
    return path.open("a", encoding="utf-8")


def _board(folder: Path, keep: int) -> SummaryWriter | None:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        console.note("no TensorBoard files: pip install tensorboard writes them")
        return None
    return SummaryWriter(str(folder), purge_step=keep + 1)
