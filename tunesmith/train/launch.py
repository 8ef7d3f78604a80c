"""Stage train on as many devices as the recipe asks for: here, or in a process for each of them.

The processes meet as torchrun's do (a store on this machine), and are started here and not by torchrun: that makes
exit code 1 of every other, and tracebacks of an error that the user can mend (docs/adr/0005-ranks-without-torchrun.md).
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tunesmith import console
from tunesmith.errors import OutOfRoom, SetupError, Stopped, TunesmithError
from tunesmith.recipe import Recipe
from tunesmith.recipe_file import dump_recipe
from tunesmith.run import Run
from tunesmith.train.parallel import PeerLost
from tunesmith.train.signals import StopRequest

COUNT = "TUNESMITH_RANKS"  # how many processes, where it is not one for each visible GPU
_POLL = 0.05  # seconds
_GRACE = 20.0  # seconds for rank 0, which may be writing a checkpoint, after another rank has failed
_SHORT = 3.0  # seconds for the others
_SHOWN = 15  # last lines of a rank's own log
_KILLED_LATE = (signal.SIGABRT,)  # NCCL's watchdog ends its process so when another rank has gone
_CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)


def train(recipe: Recipe, run: Run) -> None:
    """As `tunesmith.train.train.train`, on every device for `train.parallel: ddp`."""
    ranks = count() if recipe.train.parallel == "ddp" else 1
    if ranks > 1:
        return _together(recipe, run, ranks)
    if recipe.train.parallel == "ddp":
        console.note("train.parallel: ddp: there is one device here, so it trains alone")
    # not at the top: it takes several seconds, which starting the ranks need not wait for
    from tunesmith.train.train import train as here

    return here(recipe, run)


def count() -> int:
    """The number of ranks: the visible GPUs, or as the environment variable TUNESMITH_RANKS says."""
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    asked = os.environ.get(COUNT)
    if asked is None:
        return max(1, cards)
    most = cards or os.cpu_count() or 1
    if not asked.isdecimal() or not 1 <= int(asked) <= most:
        raise SetupError(
            f"{COUNT}={asked}, and there are {most} {'GPUs' if cards else 'cores'}",
            where="train.parallel",
            fix=f"export {COUNT}=… with a number from 1 to {most}, or unset it",
        )
    return int(asked)


@dataclass
class _Rank:
    """A process, and how it ended."""

    number: int
    process: subprocess.Popen[bytes]
    log: Path | None
    ours: bool = False  # ended by us
    at: float = 0.0
    error: TunesmithError | str | None = None

    @property
    def killed(self) -> signal.Signals | None:
        """The signal that ended it, where nobody here had sent it."""
        code = self.process.poll()
        return signal.Signals(-code) if code is not None and code < 0 and not self.ours else None


def _together(recipe: Recipe, run: Run, size: int) -> None:
    if not dist.is_available():
        raise SetupError(
            "this torch has no torch.distributed", where="train.parallel", fix="set train.parallel: none"
        )
    store = _store()
    console.note(
        f"train.parallel: ddp: {size} ranks, one {'GPU' if torch.cuda.is_available() else 'CPU'} each"
    )
    if size > recipe.train.batch:
        idle = size - recipe.train.batch
        console.warn(
            f"train.batch: {recipe.train.batch} rows a step: {idle} of {size} ranks have nothing to do"
        )
    with tempfile.TemporaryDirectory(prefix="tunesmith-") as name, StopRequest() as stop:
        folder, ranks, before = Path(name), list[_Rank](), _saved(run)
        (folder / "recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
        try:
            for number in range(size):
                ranks.append(_start(run, folder, number, size, store.port))
            _watch(ranks, stop)
        finally:
            _end(ranks)
        for rank in ranks:
            if (told := folder / f"{rank.number}.ended").exists():
                rank.at, rank.error = pickle.loads(told.read_bytes())  # our own process wrote it
        _raise_cause(ranks, run, stop, before)


def _store() -> Any:
    """Where the ranks meet. By itself torch would listen on all networks, and anybody there could write into it."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        return dist.TCPStore(  # type: ignore[attr-defined]  # torch names it without exporting it
            "127.0.0.1", port, is_master=True, wait_for_workers=False, master_listen_fd=listening.detach()
        )


def _start(run: Run, folder: Path, number: int, size: int, port: int) -> _Rank:
    """A process group of its own, so that Ctrl-C reaches it through us alone, once."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    environment = {"OMP_NUM_THREADS": str(max(1, cores // size)), **os.environ}
    environment["PYTHONPATH"] = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
    command = [sys.executable, "-P", "-m", "tunesmith.train.rank", str(run.path), str(folder)]
    command += [str(one) for one in (number, size, port)]
    log = run.path / f"log.rank{number}.txt" if number else None
    with ExitStack() as stack:
        out = stack.enter_context(log.open("wb")) if log else None
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=out, stderr=out, process_group=0
        )
    return _Rank(number, process, log)


def _watch(ranks: list[_Rank], stop: StopRequest) -> None:
    """Until all have ended. Once one has failed the others can't go on, and get a little time to end by themselves."""
    passed_on, end = False, float("inf")
    while any(rank.process.poll() is None for rank in ranks):
        if stop.signal and not passed_on:
            passed_on = True
            for rank in ranks:
                rank.process.send_signal(stop.signal)
        if any(rank.process.poll() for rank in ranks):
            at_work = ranks[0].process.poll() is None
            end = min(end, time.monotonic() + (_GRACE if at_work else _SHORT))
        if time.monotonic() > end:
            return
        time.sleep(_POLL)


def _end(ranks: list[_Rank]) -> None:
    for rank in ranks:
        if rank.process.poll() is None:
            rank.ours = True
            rank.process.kill()
        rank.process.wait()
        assert rank.process.stdin is not None
        rank.process.stdin.close()


def _raise_cause(ranks: list[_Rank], run: Run, stop: StopRequest, before: list[str]) -> None:
    """What one rank failed with makes the others fail, too: raises the first cause alone.

    `before`: the checkpoints that were there at the start.
    """
    mendable = [r for r in ranks if isinstance(r.error, TunesmithError) and not isinstance(r.error, Stopped)]
    if mendable:
        # rank 0's where it has one: it knows of checkpoints that were still being written
        first = mendable[0]
        assert isinstance(first.error, TunesmithError)
        if isinstance(first.error, OutOfRoom) and first.number:
            first.error.where = f"rank {first.number}, {first.error.where}"
            first.error.exit_code = 75 if _saved(run) else first.error.exit_code
        raise first.error
    lost = [rank for rank in ranks if rank.killed]
    if stop.signal and any(rank.killed == stop.signal for rank in lost):
        raise _stopped(stop.signal, "before training went on")
    early = [rank for rank in lost if rank.killed not in _KILLED_LATE]
    faults = sorted((rank for rank in ranks if isinstance(rank.error, str)), key=lambda rank: rank.at)
    if early or (lost and not faults):
        raise _lost((early or lost)[0], len(ranks), run)
    if faults:
        raise RuntimeError(f"rank {faults[0].number} of {len(ranks)} failed:\n{faults[0].error}")
    silent = [rank for rank in ranks if rank.error is None and rank.process.returncode and not rank.ours]
    if silent:  # before it could tell anything, as an import does
        _show_log(silent[0])
        raise RuntimeError(f"ranks ended with {[rank.process.returncode for rank in ranks]}")
    told = sorted((rank for rank in ranks if isinstance(rank.error, Stopped)), key=lambda rank: rank.at)
    agreed = [rank.error for rank in ranks if rank in told and not isinstance(rank.error, PeerLost)]
    if agreed and isinstance(agreed[0], Stopped):
        raise agreed[0]
    if told and stop.signal:
        raise _stopped(stop.signal, "before training went on")
    if len(told) == len(ranks):
        raise _parted(told[0], len(ranks), run, _saved(run) != before)
    if told and isinstance(told[0].error, Stopped):
        raise told[0].error
    if stop.signal:
        raise _stopped(stop.signal, "after training had ended")


def _stopped(number: signal.Signals, when: str) -> Stopped:
    return Stopped(f"stopped by {number.name} {when}", fix="the same command goes on")


def _parted(first: _Rank, size: int, run: Run, further: bool) -> SetupError:
    """All ranks lost one another, and none had failed: they can't talk, which the same command won't mend."""
    assert isinstance(first.error, TunesmithError)
    error = SetupError(
        f"the {size} ranks lost each other, and none of them had failed (rank {first.number}: {first.error.what})",
        where=str(first.log or run.log_file),
        fix="NCCL_DEBUG=INFO in the environment says more (a container with a small /dev/shm is one reason); "
        "train.parallel: none trains on one GPU",
    )
    if further:  # checkpoints were made since the start: it did work for a while
        error.exit_code = Stopped.exit_code
    return error


def _show_log(rank: _Rank) -> None:
    if rank.log:
        lines = rank.log.read_text(encoding="utf-8", errors="replace").splitlines()[-_SHOWN:]
        console.note("\n".join([f"the last lines of {rank.log.name}:", *(f"  {line}" for line in lines)]))


def _saved(run: Run) -> list[str]:
    return sorted(path.parent.name for path in run.checkpoints.glob("step-*/MANIFEST.json"))


def _lost(rank: _Rank, size: int, run: Run) -> Exception:
    """What to say of a rank that something outside has killed. A crash is a bug, which the same command repeats."""
    name = rank.killed.name if rank.killed else "a signal"
    _show_log(rank)
    if rank.killed in _CRASHES:
        full = " (a container's /dev/shm that is too small is one reason)" if name == "SIGBUS" else ""
        return RuntimeError(f"rank {rank.number} of {size} crashed with {name}{full}")
    steps = _saved(run)
    kept = f"goes on from checkpoint {steps[-1]}" if steps else "begins again: there was no checkpoint yet"
    why = " (too little host memory is one reason)" if name == "SIGKILL" else ""
    return Stopped(
        f"rank {rank.number} of {size} was ended by {name}{why}; the others were stopped",
        where=str(rank.log or run.log_file),
        fix=f"the same command {kept}",
    )
