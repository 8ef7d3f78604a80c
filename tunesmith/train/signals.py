"""SIGTERM and Ctrl-C: the first asks the loop to stop after the step, the second ends the process at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType, TracebackType

from tunesmith import console

_ECHO = 2.0  # seconds: Slurm and a batch script's trap both send SIGTERM for one and the same cancel


class StopRequest:
    """`with StopRequest() as stop:` then ask `stop.signal`. Handlers are put back at the end.

    `speaks`: says on the terminal that the signal was heard. Of processes that train together one does.
    """

    def __init__(self, *, speaks: bool = True) -> None:
        self._speaks = speaks
        self.signal: signal.Signals | None = None
        self._at = 0.0
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                self._before[number] = signal.signal(number, self._received)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # typeshed: handlers read back are `object` here

    def _received(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.signal is not None:
            if number == signal.SIGTERM and self.signal == number and now - self._at < _ECHO:
                return
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.signal, self._at = signal.Signals(number), now
        if self._speaks:
            console.note(f"{self.signal.name}: finishing this step, then a checkpoint (again: leave at once)")
