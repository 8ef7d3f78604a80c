"""Checkpoints: atomic, without pickle, verified before use.

A checkpoint is a folder `step-00000040` of safetensors and JSON files. It is written as `.step-00000040.<uuid>.tmp`,
every file synced, MANIFEST.json (sizes, sha256) last; then renamed, the parent synced, LATEST moved, old ones pruned.
Whatever kills the process leaves either a whole checkpoint or a `.tmp` folder that the next start removes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tunesmith import console
from tunesmith.errors import OutOfRoom
from tunesmith.train.faults import is_full_disk

MANIFEST, STATE, LATEST = "MANIFEST.json", "state.json", "LATEST"
SCHEMA_VERSION = 1
_NAME = re.compile(r"step-(\d{8})")


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
    """The checkpoints of one run. `run` identifies it: those of another run are never used."""

    def __init__(self, folder: Path, *, run: str, keep: int) -> None:
        self.folder, self.run, self.keep = folder, run, keep
        folder.mkdir(parents=True, exist_ok=True)

    def clean(self) -> None:
        """Removes what killed saves have left."""
        for left in sorted([*self.folder.glob(".*.tmp")]):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
            console.note(f"removed {left.name}: the process ended while it was written or removed")

    def steps(self) -> list[int]:
        """Steps with a published checkpoint, ascending; not verified."""
        found = [_NAME.fullmatch(path.name) for path in self.folder.iterdir() if path.is_dir()]
        return sorted(int(match[1]) for match in found if match)

    def save(
        self, state: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]], best_step: int | None
    ) -> Path:
        """Publishes a checkpoint of `state["step"]`: `tensors` by file name. Raises OutOfRoom on a full disk."""
        final = self.folder / _name(int(state["step"]))
        temporary = self.folder / f".{final.name}.{uuid.uuid4().hex}.tmp"
        try:
            temporary.mkdir()
            for name, content in tensors.items():
                save_file(
                    {key: value.contiguous() for key, value in content.items()},
                    temporary / f"{name}.safetensors",
                )
            _write_json(temporary / STATE, state)
            files = {path.name: _described(path) for path in sorted(temporary.iterdir())}
            _write_json(
                temporary / MANIFEST,
                {"schema_version": SCHEMA_VERSION, "run": self.run, "step": state["step"], "files": files},
            )
            _sync(temporary)
            aside = self.folder / f".{final.name}.{uuid.uuid4().hex}.old.tmp"
            if final.exists():  # the same step, saved again after a signal had cut its validation short
                final.rename(aside)
            temporary.rename(final)
            _sync(self.folder)
            shutil.rmtree(aside, ignore_errors=True)
            self._point_at(final.name)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if not is_full_disk(error):
                raise
            last = self.steps()
            raise OutOfRoom(
                f"no room on disk for the checkpoint of step {state['step']}"
                + (f"; the one of step {last[-1]} is whole" if last else ""),
                where=str(self.folder),
                fix="make room (or lower train.keep), then give the same command again",
                resumable=bool(last),
            ) from error
        self._prune(best_step)
        return final

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

    def _prune(self, best_step: int | None) -> None:
        for step in self.steps()[: -self.keep]:
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
    """Size and sha256, after the file is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return {
            "bytes": os.fstat(file.fileno()).st_size,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    _write(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


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
