"""Judged answers, kept as rows that training takes: one file of JSON lines in the run.

    feedback.jsonl            good and corrected answers: prompt (turns) and completion, as `data.train` reads them
    feedback-bad.jsonl        bad answers that nobody has corrected yet: there is nothing in them to train on
    feedback-held-out.jsonl   prompts of the run's validation and test rows: training on them would spoil the next score

An answer is in one of them as soon as its request is answered: written in one piece, synced, under a lock. Judged
again, it is replaced.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from tunesmith.errors import TunesmithError
from tunesmith.recipe_file import load_recipe
from tunesmith.rows import Rows
from tunesmith.run import Run, disk_error, write_atomic

FILES = {"train": "feedback.jsonl", "bad": "feedback-bad.jsonl", "held_out": "feedback-held-out.jsonl"}
Turns = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Judgement:
    """What somebody thinks of an answer."""

    id: str
    """Of the answer; a later judgement of the same answer takes the place of the first."""
    model: str
    prompt: Turns
    """(role, content) pairs, the last one the user's."""
    answer: str
    verdict: Literal["good", "bad"]
    corrected: str | None = None
    """What the answer should have been."""


def keep(folder: Path, run: Run | None, judgement: Judgement) -> str:
    """Writes a judgement into `folder`; returns which of FILES has it. TunesmithError where that can't be done."""
    place = _place(run, judgement)
    line = _line(judgement)
    with _locked(folder):
        for name in FILES.values():
            _mend(folder / name)
        _append(folder / FILES[place], line)  # first the new one: on a full disk the old one stays
        for name in FILES.values():
            _take_out(folder / name, judgement.id, spare=line)
    return place


def take_back(folder: Path, answer: str) -> bool:
    """Forgets the judgement of an answer; whether there was one."""
    with _locked(folder):
        for name in FILES.values():
            _mend(folder / name)
        return sum(_take_out(folder / name, answer) for name in FILES.values()) > 0


def counts(folder: Path) -> dict[str, int]:
    """Rows of each file."""
    return {place: len(_lines(folder / name)) for place, name in FILES.items()}


def next_lines(folder: Path, run: Run | None) -> dict[str, str]:
    """What to put into a recipe, and the command that does the same: training goes on from the run's adapter."""
    file = folder / FILES["train"]
    sets: dict[str, Any] = {"data.train": str(file)}
    if run is not None:
        sets = {"name": _new_name(run)} | sets | _held_out_rows(run)
        if (run.adapter / "adapter_config.json").is_file():
            sets["tune.from_adapter"] = str(run.adapter)
    command = ""
    if run is not None:
        words = ["tunesmith", "run", str(run.recipe_file)]
        for key, value in sets.items():
            words += ["--set", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
        if run.path.parent != Path("runs"):
            words += ["--runs-dir", str(run.path.parent)]
        command = shlex.join(words)
    return {"recipe": _yaml(sets), "command": command}


def _new_name(run: Run) -> str:
    """A name that no run beside it has."""
    name, number = f"{run.name}-feedback", 1
    while (run.path.parent / name).exists():
        number += 1
        name = f"{run.name}-feedback-{number}"
    return name


def _held_out_rows(run: Run) -> dict[str, Any]:
    """Keys that leave validation and test as they were. Where the recipe says how its own files are read, or sets rows
    of train aside, the rows that it prepared stand for them."""
    data = load_recipe(run.recipe_file).data
    split = data.split.validation or data.split.test
    if data.format == "auto" and not (data.columns or data.processor or split or data.split.group):
        return {}
    made: dict[str, Any] = {
        "data.format": "auto",
        "data.columns": None,
        "data.processor": None,
        "data.split": {},
    }
    for name in ("validation", "test"):
        path = run.data / f"{name}.jsonl"
        made[f"data.{name}"] = str(path) if path.is_file() else None
    return made


def _yaml(sets: dict[str, Any]) -> str:
    """`section.key: value` pairs as lines of a recipe."""
    lines, section = [], ""
    for key, value in sets.items():
        head, _, tail = key.partition(".")
        if tail and head != section:
            lines.append(f"{head}:")
        section = head
        text = json.dumps(value, ensure_ascii=False) if not isinstance(value, str) or "/" in value else value
        lines.append(f"  {tail}: {text}" if tail else f"{key}: {text}")
    return "\n".join(lines) + "\n"


def _place(run: Run | None, judgement: Judgement) -> str:
    if run is not None and _fingerprint(judgement.prompt) in _held_out(run):
        return "held_out"
    return "train" if judgement.verdict == "good" or judgement.corrected is not None else "bad"


def _held_out(run: Run) -> frozenset[str]:
    """Fingerprints of the prompts of validation and test."""
    made: frozenset[str] = frozenset()
    for split in ("validation", "test"):
        if Rows.exists(run.data, split):
            made |= _prompts(run.data, split, (run.data / f"{split}.lines.npy").stat().st_mtime_ns)
    return made


@lru_cache(maxsize=16)
def _prompts(folder: Path, split: str, _written: int) -> frozenset[str]:
    rows = Rows.open(folder, split).examples()
    return frozenset(_fingerprint([(turn.role, turn.content) for turn in row.prompt]) for row in rows)


def _fingerprint(prompt: Turns) -> str:
    """The same for prompts that differ by case and spaces alone, as the data check of leaks reads them; the system
    prompt counts for nothing: the row behind it is the same."""
    said = [(role, " ".join(content.lower().split())) for role, content in prompt if role != "system"]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def _line(judgement: Judgement) -> bytes:
    """The row. Its document is its prompt: judged answers of one prompt never stand on two sides of a split."""
    right = judgement.answer if judgement.corrected is None else judgement.corrected
    row: dict[str, Any] = {
        "id": judgement.id,
        "document": f"feedback-{_fingerprint(judgement.prompt)[:16]}",
        "prompt": [{"role": role, "content": content} for role, content in judgement.prompt],
        "completion": right,
        "slices": {"judged": judgement.verdict if judgement.corrected is None else "corrected"},
        "model": judgement.model,
        "said": judgement.answer,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    try:
        return json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    except UnicodeEncodeError:
        raise TunesmithError(
            "a text holds half of a character, which no file takes", fix="write the answer anew"
        ) from None


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One at a time, among threads and processes; the kernel frees it even on SIGKILL."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / ".feedback.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise disk_error(error, folder / FILES["train"]) or error from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _append(path: Path, line: bytes) -> None:
    """The whole line, on the disk; or the file as it was."""
    try:
        new = not path.exists()
        with path.open("ab", buffering=0) as file:
            before = file.tell()
            try:
                if file.write(line) != len(line):
                    raise OSError(28, "the disk took a part of the line")
                os.fsync(file.fileno())
            except OSError:
                file.truncate(before)
                raise
        if new:  # its name has to last too
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as error:
        raise disk_error(error, path) or error from None


def _mend(path: Path) -> None:
    """Cuts off half a line: what a crash left of a judgement that nobody was told is kept. A whole row without a line's
    end was typed by somebody: it gets one."""
    if not path.is_file():
        return
    with path.open("rb+") as file:
        content = file.read()
        end = content.rfind(b"\n") + 1
        if end == len(content):
            return
        if _row(content[end:]) is None:
            file.truncate(end)
        else:
            file.write(b"\n")
        os.fsync(file.fileno())


def _take_out(path: Path, answer: str, spare: bytes = b"") -> bool:
    lines = _lines(path)
    kept = [line for line in lines if _id(line) != answer or line == spare]
    if len(kept) < len(lines):
        write_atomic(path, b"".join(kept))
    return len(kept) < len(lines)


def _id(line: bytes) -> object:
    return (_row(line) or {}).get("id")  # None: a line that somebody wrote by hand stays as it is


def _row(line: bytes) -> dict[str, Any] | None:
    """None for what is no whole row."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _lines(path: Path) -> list[bytes]:
    if not path.is_file():
        return []
    return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
