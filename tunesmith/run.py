"""The Run: the folder that a recipe fills. Stages meet only here.

A file appears whole or not at all (`write_atomic`); a stage is stamped with the hashes of what it read, so that the
same command again does only what is missing; one process at a time (`lock`, freed by the kernel even on SIGKILL).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from tunesmith.errors import AccessError, OutOfRoom, ProofFailed, RunLocked, TunesmithError
from tunesmith.lookup import nearest
from tunesmith.proof import Proof

SCHEMA_VERSION = 1
_NO_SPACE = (28, 122)  # ENOSPC, EDQUOT
_READ_ONLY = 30  # EROFS
_PROOF = ("name", "passed", "figure", "limit", "detail")


def beside(path: Path) -> Path:
    """A new hidden name next to `path`, for what is to be renamed to it."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")


def write_atomic(path: Path, content: bytes) -> None:
    """`content` under `path`, or nothing: written beside it, synced, renamed. OutOfRoom on a full disk."""
    temporary = beside(path)
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise disk_error(error, path) or error from None


def disk_error(error: OSError, path: Path) -> TunesmithError | None:
    """The user's words for an OSError on writing `path`; None where it is something else."""
    if error.errno in _NO_SPACE:
        return OutOfRoom(
            "the disk is full", where=str(path), fix="free some space, then run the same command again"
        )
    if isinstance(error, PermissionError) or error.errno == _READ_ONLY:
        return AccessError(
            "may not be written", where=str(path), fix=f"chmod u+w {path.parent}, or choose another folder"
        )
    return None


def require_disk(place: Path, needed: int, what: str) -> None:
    """OutOfRoom where fewer than `needed` bytes are free for a file or folder `place`. `what`: it, in words."""
    free = shutil.disk_usage(place if place.is_dir() else place.absolute().parent).free
    if needed > free:
        raise OutOfRoom(
            f"{what} takes {needed / 2**30:.2f} GiB, and {free / 2**30:.2f} GiB are free",
            where=str(place),
            fix="free some space, then run the same command again",
            resumable=True,
        )


def require_writable(out: Path) -> None:
    """AccessError where `out`, which --out names, can't become a file: told before any work, by trying."""
    if out.is_dir():
        raise AccessError(f"{out} can't be written: it is a folder", where="--out", fix="name a file")
    try:
        with tempfile.TemporaryFile(dir=out.absolute().parent):
            pass
    except OSError as error:
        raise AccessError(
            f"{out} can't be written: {error.strerror}",
            where="--out",
            fix="--out FILE, in a folder where you may write",
        ) from None


def unreadable(path: Path, why: str, line: int | None = None) -> AccessError:
    """What to raise for a file of a run that is damaged, or is no run's at all."""
    return AccessError(
        f"{path.name} is damaged: {why}",
        where=f"{path}:{line}" if line else str(path),
        fix="put it back from a copy, or move this run out of the way",
    )


def parsed(path: Path, text: str, line: int | None = None) -> dict[str, Any]:
    """The JSON object in `text`, which is `path` or its line `line`; `unreadable` where it is none."""
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise unreadable(path, f"broken JSON ({error.msg})", line or error.lineno) from None
    if not isinstance(content, dict):
        raise unreadable(path, "it holds no JSON object", line)
    return content


def read_text(path: Path) -> str | None:
    """A file of a run; None where there is no such file, `unreadable` where it can't be read."""
    try:
        return path.read_text("utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise unreadable(path, "it is not UTF-8 text", line) from None
    except OSError as error:
        raise AccessError(
            f"{path.name} can't be read: {error.strerror}", where=str(path), fix=f"chmod u+r {path}"
        ) from None


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _lock(handle: TextIO) -> None:
    """BlockingIOError where another holds it for longer than `runs` and `show` do, which look for an instant."""
    for _ in range(3):
        with suppress(BlockingIOError):
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        time.sleep(0.02)
    return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Locks a folder for this process; BlockingIOError where another holds it, OSError where there are no locks."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


class Run:
    """Paths, stamps, proofs and state of one run folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        self.data = path / "data"
        self.checkpoints = path / "checkpoints"
        self.adapter = path / "adapter"
        self.predictions = path / "predictions"
        self.report = path / "report"
        self.merged = path / "merged"
        self.quantized = path / "quantized"
        self.gguf = path / "gguf"
        self.export_file = path / "export.json"
        self.tensorboard = path / "tensorboard"
        self.contract_folder = path
        self.recipe_file = path / "recipe.yaml"
        self.lock_file = path / "lock.json"
        self.state_file = path / "state.json"
        self.proofs_file = path / "proofs.json"
        self.stamps_file = path / "stages.json"
        self.metrics_file = path / "metrics.jsonl"
        self.timing_file = path / "timing.jsonl"
        self.log_file = path / "log.txt"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the run for this process; RunLocked where another does."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            handle = (self.path / ".lock").open("a+")
        except OSError as error:
            raise (
                disk_error(error, self.path)
                or AccessError(
                    f"the run's folder can't be made: {error.strerror}",
                    where=str(self.path),
                    fix="choose another --runs-dir",
                )
            ) from None
        with handle:
            try:
                _lock(handle)
            except BlockingIOError:
                handle.seek(0)
                holder = handle.read().strip() or "another process"
                raise RunLocked(
                    f"{holder} works in this run",
                    where=str(self.path),
                    fix="wait for it, or start another: --fork",
                ) from None
            handle.seek(0)
            handle.truncate()
            handle.write(f"process {os.getpid()}")
            handle.flush()
            yield

    # ---- small files

    def write_json(self, path: Path, content: Mapping[str, Any]) -> None:
        """A JSON file with `schema_version`, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"schema_version": SCHEMA_VERSION} | dict(content), indent=2, ensure_ascii=False)
        write_atomic(path, text.encode() + b"\n")

    def read_json(self, path: Path) -> dict[str, Any]:
        """What `write_json` wrote; empty where there is no such file."""
        text = read_text(path)
        return {} if text is None else parsed(path, text)

    def write_state(self, **changes: Any) -> None:
        """Merges `changes` (phase, step, …) into state.json with a new heartbeat."""
        self.write_json(
            self.state_file, self.read_json(self.state_file) | changes | {"heartbeat": time.time()}
        )

    # ---- proofs

    def prove(self, proof: Proof) -> None:
        """Keeps the proof (the newest of a name counts); ProofFailed where it did not pass."""
        from tunesmith import console

        kept = [one for one in self.proofs() if one["name"] != proof.name]
        self.write_json(self.proofs_file, {"proofs": [*kept, proof.to_json()]})
        console.note(proof.line())
        if not proof.passed:
            raise ProofFailed(
                f"proof {proof.name} failed: {proof.figure} (limit {proof.limit})",
                where=str(self.proofs_file),
                fix=proof.detail,
            )

    def proofs(self) -> list[dict[str, Any]]:
        """All proofs so far."""
        found: list[dict[str, Any]] = self.read_json(self.proofs_file).get("proofs", [])
        if not isinstance(found, list) or not all(
            isinstance(one, dict) and {*_PROOF} <= {*one} for one in found
        ):
            raise unreadable(self.proofs_file, f"a proof lacks one of {', '.join(_PROOF)}")
        return found

    def forget_proofs(self, names: Collection[str]) -> None:
        """Takes out proofs of what is no longer there."""
        kept = [one for one in self.proofs() if one["name"] not in names]
        if len(kept) < len(self.proofs()):
            self.write_json(self.proofs_file, {"proofs": kept})

    # ---- stamps

    def is_current(self, stage: str, inputs: Mapping[str, str]) -> bool:
        """Whether the stage has finished on these very inputs."""
        stamp = self.read_json(self.stamps_file).get("stages", {}).get(stage)
        return bool(stamp) and stamp["inputs"] == dict(inputs)

    def stamp(self, stage: str, inputs: Mapping[str, str]) -> None:
        """Says that the stage has finished on these inputs."""
        stages = self.read_json(self.stamps_file).get("stages", {})
        self.write_json(
            self.stamps_file, {"stages": stages | {stage: {"inputs": dict(inputs), "at": time.time()}}}
        )

    def unstamp(self, stages: Collection[str]) -> None:
        """Forgets that these stages have finished: before one of them begins to change what lies in the run."""
        kept = self.read_json(self.stamps_file).get("stages", {})
        left = {stage: stamp for stage, stamp in kept.items() if stage not in stages}
        if left != kept:
            self.write_json(self.stamps_file, {"stages": left})

    def inputs_of(self, stage: str) -> dict[str, str]:
        """The inputs that the finished stage read; empty where it has not finished."""
        stamp = self.read_json(self.stamps_file).get("stages", {}).get(stage, {})
        inputs: dict[str, str] = stamp.get("inputs", {})
        return inputs


def is_run(folder: Path) -> bool:
    """Whether this is a run: it has a recipe or a state, and is no checkpoint, which has a state too."""
    told = (folder / name for name in ("recipe.yaml", "state.json"))
    return any(path.is_file() for path in told) and not (folder / "MANIFEST.json").exists()


def runs_in(runs_dir: Path) -> list[Run]:
    """All runs of a folder, by name. AccessError where it is a file, or itself a run."""
    if runs_dir.is_file():
        raise AccessError(
            f"{runs_dir} is a file", where="--runs-dir", fix="give the folder that the runs lie in"
        )
    found = [Run(path) for path in sorted(runs_dir.glob("[!.]*")) if is_run(path)]
    if not found and (runs_dir / "state.json").is_file():
        raise AccessError(
            f"{runs_dir} is itself a run",
            where="--runs-dir",
            fix=f"tunesmith show {runs_dir}, or --runs-dir {runs_dir.absolute().parent}",
        )
    return found


def find_run(name: str, runs_dir: Path) -> Run:
    """RUN on the command line: a folder, a name under `runs_dir`, or `latest` (newest state)."""
    if name != "latest":
        for path in (Path(name), runs_dir / name):
            if is_run(path):
                return Run(path)
    known = {run.name: run for run in runs_in(runs_dir)}
    if name == "latest":
        if not known:
            raise TunesmithError("there is no run yet", where=str(runs_dir), fix="tunesmith run RECIPE")
        return max(known.values(), key=_written)
    guess = nearest(name, known)
    raise TunesmithError(
        f"there is no run {name!r}" + (f"; did you mean {guess!r}?" if guess else ""),
        where=str(runs_dir),
        fix=f"one of: {', '.join(known)}" if known else "tunesmith run RECIPE makes one",
    )


def _written(run: Run) -> float:
    return (run.state_file if run.state_file.is_file() else run.recipe_file).stat().st_mtime
