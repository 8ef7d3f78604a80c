"""Checkpoints: atomic, without pickle, verified before use.

A checkpoint is a folder `step-00000040` of safetensors and JSON files. It is written as `.step-00000040.<uuid>.tmp`,
every file synced, MANIFEST.json (sizes, sha256) last; then renamed, the parent synced, LATEST moved, old ones pruned.
Whatever kills the process leaves either a whole checkpoint or a `.tmp` folder that the next start removes.

Training doesn't wait for the disk. `save` takes a copy of the state as it is at that step and returns; a thread
writes the copy. Host memory: one copy of the state, on a CPU only while it is written, on CUDA for the whole training
(and pinned, where it is at most 4 GiB). One write at a time.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import threading
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from tunesmith import console
from tunesmith.errors import OutOfRoom
from tunesmith.model.shards import Entry, write_file
from tunesmith.train.faults import is_full_disk

MANIFEST, STATE, LATEST = "MANIFEST.json", "state.json", "LATEST"
SCHEMA_VERSION = 1
_NAME = re.compile(r"step-(\d{8})")
_OLD = ".old.tmp"  # ends the name of a checkpoint whose step is being saved again
_PINNED = 4 << 30  # bytes of host memory that are pinned at most


@dataclass(frozen=True)
class Checkpoint:
    """A published checkpoint whose files match its manifest."""

    folder: Path
    step: int
    state: dict[str, Any]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of one file, on the CPU."""
        return load_file(self.folder / f"{name}.safetensors")


class Checkpoints:
    """The checkpoints of one run. `run` identifies it: those of another run are never used.

    As a context it waits at its end for what is being written, and raises what that failed with.
    """

    def __init__(self, folder: Path, *, run: str, keep: int) -> None:
        self.folder, self.run, self.keep = folder, run, keep
        self._thread: threading.Thread | None = None
        self._failed: Exception | None = None
        self._host: dict[tuple[str, str], Tensor] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._join()
        self._host.clear()
        if error is None:  # else the first error is the one to tell
            self.check()

    def clean(self) -> None:
        """Removes what killed saves have left; puts back a checkpoint that was being replaced by a newer one."""
        for left in sorted([*self.folder.glob(".*.tmp")]):
            name = left.name.split(".")[1]
            if left.name.endswith(_OLD) and not (self.folder / name).exists():
                left.rename(self.folder / name)
                console.note(f"put {name} back: the process ended while it was replaced")
                continue
            shutil.rmtree(left) if left.is_dir() else left.unlink()
            console.note(f"removed {left.name}: the process ended while it was written or removed")

    def steps(self) -> list[int]:
        """Steps with a published checkpoint, ascending; not verified. Waits for the one that is being written."""
        self._join()
        return self._published()

    def save(
        self, state: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]], best_step: int | None
    ) -> Path:
        """Begins a checkpoint of `state["step"]`: `tensors` by file name, as they are now. Returns where it will lie.

        Waits for the one before. Raises, as `check` and `wait` do, what that failed with: OutOfRoom on a full disk.
        """
        self.wait()
        step, files = int(state["step"]), {STATE: _json(state)}
        copy = self._copied(tensors)
        self._thread = threading.Thread(
            target=self._write, args=(step, files, copy, best_step), name=f"checkpoint {step}"
        )
        self._thread.start()
        return self.folder / _name(step)

    def check(self) -> None:
        """Raises what a write has failed with, once; doesn't wait for one that is under way."""
        failed, self._failed = self._failed, None
        if failed is not None:
            raise failed

    def wait(self) -> None:
        """Until nothing is being written; then as `check`."""
        self._join()
        self.check()

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _copied(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
        """The same on the host: training changes the originals while the copy is written."""
        pairs = [
            ((file, name), value) for file, content in tensors.items() for name, value in content.items()
        ]
        on_device = [value for _, value in pairs if value.is_cuda]
        pin = sum(value.nbytes for value in on_device) <= _PINNED
        copies: dict[str, dict[str, Tensor]] = {file: {} for file in tensors}
        for key, value in pairs:
            if value.is_cuda:
                host = self._host.get(key)
                if host is None or (host.shape, host.dtype) != (value.shape, value.dtype):
                    host = self._host[key] = torch.empty(value.shape, dtype=value.dtype, pin_memory=pin)
                copies[key[0]][key[1]] = host.copy_(value.detach(), non_blocking=True)
        for device in {value.device for value in on_device}:
            torch.cuda.synchronize(device)
        for (file, name), value in pairs:
            if not value.is_cuda:  # after the device has ended its work: it may write into these, too (paged)
                copies[file][name] = value.detach().clone(memory_format=torch.contiguous_format)
        return copies

    def _write(
        self,
        step: int,
        files: Mapping[str, bytes],
        tensors: Mapping[str, Mapping[str, Tensor]],
        best: int | None,
    ) -> None:
        """The thread's work."""
        try:
            self._publish(step, files, tensors)
            self._prune(best)
        except Exception as error:  # told where training can be stopped
            self._failed = error

    def _publish(
        self, step: int, files: Mapping[str, bytes], tensors: Mapping[str, Mapping[str, Tensor]]
    ) -> None:
        final = self.folder / _name(step)
        temporary = self.folder / f".{final.name}.{uuid.uuid4().hex}.tmp"
        try:
            temporary.mkdir()
            described = {}
            for name, content in tensors.items():
                path = temporary / f"{name}.safetensors"
                entries = [Entry(key, value.dtype, tuple(value.shape)) for key, value in content.items()]
                sha256 = write_file(path, entries, content.__getitem__)
                described[path.name] = {"bytes": path.stat().st_size, "sha256": sha256}
            for name, text in files.items():
                _write(temporary / name, text)
                described[name] = {"bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()}
            about = {"schema_version": SCHEMA_VERSION, "run": self.run, "step": step, "files": described}
            _write(temporary / MANIFEST, _json(about))
            _sync(temporary)
            aside = self.folder / f".{final.name}.{uuid.uuid4().hex}{_OLD}"
            if final.exists():  # the same step, saved again after a signal had cut its validation short
                final.rename(aside)
            temporary.rename(final)
            _sync(self.folder)
            shutil.rmtree(aside, ignore_errors=True)
            self._point_at(final.name)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if not is_full_disk(error):
                raise
            last = self._published()
            raise OutOfRoom(
                f"no room on disk for the checkpoint of step {step}"
                + (f"; the one of step {last[-1]} is whole" if last else ""),
                where=str(self.folder),
                fix="make room (or lower train.keep), then give the same command again",
                resumable=bool(last),
            ) from error

    def newest(self) -> Checkpoint | None:
        """The newest whole checkpoint. Broken ones are named in a warning and set aside as `broken-<name>`."""
        for step in reversed(self.steps()):
            if found := self.at(step):
                return found
        return None

    def at(self, step: int) -> Checkpoint | None:
        """The checkpoint of a step; None, with a warning, when it doesn't match its manifest."""
        folder = self.folder / _name(step)
        problem = self.problem(folder)
        if problem is None:
            return Checkpoint(folder, step, json.loads((folder / STATE).read_text(encoding="utf-8")))
        aside = self.folder / f"broken-{folder.name}-{uuid.uuid4().hex[:8]}"
        if folder.exists():
            folder.rename(aside)
        console.warn(f"checkpoint {folder.name} is not usable ({problem}); set aside as {aside.name}")
        return None

    def problem(self, folder: Path) -> str | None:
        """Why a published checkpoint can't be used; None: it is whole and of this run."""
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            if manifest["run"] != self.run:
                return "it belongs to another run"
            for name, expected in manifest["files"].items():
                if _described(folder / name) != expected:
                    return f"{name} differs from the manifest"
        except FileNotFoundError as error:
            return f"{Path(str(error.filename)).name} is missing"
        except (ValueError, KeyError, TypeError):
            return f"{MANIFEST} can't be read"
        return None

    def _point_at(self, name: str) -> None:
        """LATEST is for people and tools; a resume looks at the folders themselves."""
        temporary = self.folder / f".{LATEST}.{uuid.uuid4().hex}.tmp"
        _write(temporary, name.encode() + b"\n")
        temporary.replace(self.folder / LATEST)
        _sync(self.folder)

    def _published(self) -> list[int]:
        found = [_NAME.fullmatch(path.name) for path in self.folder.iterdir() if path.is_dir()]
        return sorted(int(match[1]) for match in found if match)

    def _prune(self, best_step: int | None) -> None:
        for step in self._published()[: -self.keep]:
            if step != best_step:
                self._remove(_name(step))

    def _remove(self, name: str) -> None:
        """Renamed first, so that a process killed here leaves no half checkpoint under a good name."""
        if (self.folder / name).exists():
            doomed = self.folder / f".{name}.{uuid.uuid4().hex}.tmp"
            (self.folder / name).rename(doomed)
            shutil.rmtree(doomed)


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _described(path: Path) -> dict[str, int | str]:
    """Size and sha256 of what lies on the disk."""
    with path.open("rb") as file:
        return {
            "bytes": os.fstat(file.fileno()).st_size,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, allow_nan=False) + "\n").encode()


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Makes renames and new names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
