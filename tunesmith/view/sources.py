"""Where a run to look at lies: a folder here, or S3, from which only the small files are fetched.

A run in S3 may still be mirrored and one in a folder may still train: what is there is taken as it is.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from tunesmith.errors import AccessError, TunesmithError
from tunesmith.lookup import nearest
from tunesmith.run import Run, find_run, runs_in
from tunesmith.store.s3 import S3, Found, is_s3

SMALL = (
    "state.json", "recipe.yaml", "lock.json", "stages.json", "proofs.json", "metrics.jsonl", "timing.jsonl",
    "data/report.json", "report/report.json",
)  # fmt: skip
_AT_ONCE = 8


class Source(NamedTuple):
    """A run and what its small files don't tell."""

    run: Run
    address: str
    """How to name it on a command line: a path or s3://…"""
    size: int
    """Bytes of all its files."""
    locked: bool | None
    """Whether a process works in it; None where nobody can be asked (S3)."""


@contextmanager
def look_at(names: Sequence[str], runs_dir: str | Path) -> Iterator[list[Source]]:
    """The named runs, in order: folder, name under `runs_dir`, `latest`, or s3://bucket/prefix/name."""
    with ExitStack() as stack:
        found = []
        for name in names:
            if is_s3(name):
                found.append(stack.enter_context(_fetched(name)))
            elif is_s3(runs_dir):
                found.append(stack.enter_context(_fetched(_address(name, str(runs_dir)))))
            else:
                found.append(_local(find_run(name, Path(runs_dir))))
        yield found


@contextmanager
def all_runs(runs_dir: str | Path) -> Iterator[list[Source]]:
    """Every run under `runs_dir`, in no order."""
    if not is_s3(runs_dir):
        yield [_local(run) for run in runs_in(Path(runs_dir))]
        return
    store = S3(str(runs_dir))
    runs: dict[str, list[Found]] = {}
    for one in store.list():
        name, slash, inside = one.name.partition("/")
        if slash:
            runs.setdefault(name, []).append(one._replace(name=inside))
    if not runs:
        raise _nothing(store.address)
    with TemporaryDirectory(prefix="tunesmith-") as folder:
        wanted = [
            (f"{name}/{file.name}", Path(folder) / name / file.name)
            for name, files in runs.items()
            for file in files
            if file.name in SMALL
        ]
        _get_all(store, wanted)
        yield [
            Source(Run(Path(folder) / name), f"{store.address}/{name}", sum(f.size for f in files), None)
            for name, files in runs.items()
            if _is_run(files)
        ]


def is_locked(run: Run) -> bool:
    """Whether a process works in the run. A look: shared, and let go at once."""
    try:
        with (run.path / ".lock").open("rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # nobody has worked here yet, or the file system knows no locks
        return False
    return False


def folder_size(folder: Path) -> int:
    """Bytes of all files below `folder`; what vanishes meanwhile counts nothing."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(f"{parent}/{name}").st_size
            except FileNotFoundError:
                continue
    return total


def _local(run: Run) -> Source:
    return Source(run, str(run.path), folder_size(run.path), is_locked(run))


def _is_run(files: Sequence[Found]) -> bool:
    return any(file.name in ("state.json", "recipe.yaml") for file in files)


@contextmanager
def _fetched(address: str) -> Iterator[Source]:
    store = S3(address)
    files = list(store.list())
    if not _is_run(files):
        raise _nothing(store.address)
    name = store.prefix.rpartition("/")[2] or store.bucket
    with TemporaryDirectory(prefix="tunesmith-") as folder:
        small = [file.name for file in files if file.name in SMALL]
        _get_all(store, [(inside, Path(folder) / name / inside) for inside in small])
        yield Source(Run(Path(folder) / name), store.address, sum(file.size for file in files), None)


def _address(name: str, runs_dir: str) -> str:
    """The address of a run under an S3 `runs_dir`; `latest` is the one whose state.json was written last."""
    runs_dir = runs_dir.rstrip("/")
    if "/" in name:
        raise TunesmithError(
            f"there is no run {name!r} in S3", where=runs_dir, fix=f"give its name, or {runs_dir}/NAME"
        )
    states: dict[str, float] = {}
    for one in S3(runs_dir).list():
        found, _, inside = one.name.partition("/")
        if inside in ("state.json", "recipe.yaml"):
            states[found] = max(one.modified, states.get(found, 0.0))
    if not states:
        raise _nothing(runs_dir)
    if name == "latest":
        return f"{runs_dir}/{max(states, key=lambda one: states[one])}"
    if name not in states:
        guess = nearest(name, states)
        raise TunesmithError(
            f"there is no run {name!r}" + (f"; did you mean {guess!r}?" if guess else ""),
            where=runs_dir,
            fix=f"one of: {', '.join(sorted(states))}",
        )
    return f"{runs_dir}/{name}"


def _nothing(address: str) -> AccessError:
    return AccessError(
        "there is no run here",
        where=address,
        fix=f"check the spelling: tunesmith runs --runs-dir {_up(address)}",
    )


def _up(address: str) -> str:
    bucket, slash, prefix = address.removeprefix("s3://").partition("/")
    return f"s3://{bucket}{slash}{prefix.rpartition('/')[0]}".rstrip("/")


def _get_all(store: S3, wanted: Sequence[tuple[str, Path]]) -> None:
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(lambda one: store.get(*one), wanted))
