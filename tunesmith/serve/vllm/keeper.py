"""Stands between tunesmith and vLLM, and ends all of vLLM's processes once tunesmith has ended, by SIGKILL too.

A program of its own: `python -m tunesmith.serve.vllm.keeper FOLDER COMMAND…`. Its standard input is a pipe that nobody
writes to: when it closes, the other side wants an end or is gone, and FOLDER (socket and log) goes too. Processes of
the command that lose their parent become this one's children (prctl's subreaper), so none is left behind; and the
command dies with this one (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

GRACE = 10.0  # seconds from SIGTERM to SIGKILL
_LOOKS = 0.2  # seconds between looks at the command
_SET_PDEATHSIG, _SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h


def keep(folder: str, command: list[str], lifeline: int = 0) -> int:
    """Runs the command until it ends or the pipe `lifeline` closes. Its exit code, 128 + n where signal n ended it."""
    _prctl(_SET_CHILD_SUBREAPER, 1)
    own = os.getpid()
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=lambda: _die_with(own),
        )
    except OSError as error:
        sys.stderr.write(f"{command[0]}: {error.strerror}\n")
        return 127
    while child.poll() is None:
        ready, _, _ = select.select([lifeline], [], [], _LOOKS)
        if ready and not os.read(lifeline, 1):
            _signal_group(child.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                child.wait(GRACE)
            shutil.rmtree(folder, ignore_errors=True)
            break
    _signal_group(child.pid, signal.SIGKILL)
    code = child.wait()
    _end_orphans()
    return code if code >= 0 else 128 - code


def _end_orphans() -> None:
    """Descendants that left the group: they are ours now."""
    until = time.monotonic() + GRACE
    while (orphans := _children()) and time.monotonic() < until:
        for pid in orphans:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.01)


def _children() -> list[int]:
    try:
        return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
    except OSError:
        return []


def _signal_group(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _die_with(parent: int) -> None:
    _prctl(_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was gone before this was asked for
        os._exit(1)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(keep(sys.argv[1], sys.argv[2:]))
