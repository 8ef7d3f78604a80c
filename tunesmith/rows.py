"""Rows that a Run holds: examples and their token ids on disk, memory-mapped.

data/train.jsonl            one Example a line
data/train.ids.npy          int32, all rows behind one another
data/train.learned.npy      bool, same length: is this token a target?
data/train.offsets.npy      int64 [rows + 1]: where each row begins in the two above
data/train.lines.npy        int64 [rows + 1]: where each line begins in the .jsonl
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.contract import Encoded
from tunesmith.example import Example


class Rows:
    """One split of a Run. `rows.ids(i)`, `rows.learned(i)`, `rows.example(i)`; lengths in tokens."""

    def __init__(self, folder: Path, split: str) -> None:
        self.split, self._text = split, folder / f"{split}.jsonl"
        self._ids = _map(folder / f"{split}.ids.npy")
        self._learned = _map(folder / f"{split}.learned.npy")
        self._offsets: NDArray[np.int64] = np.load(folder / f"{split}.offsets.npy")
        self._lines: NDArray[np.int64] = np.load(folder / f"{split}.lines.npy")
        self._folder = folder

    @classmethod
    def open(cls, folder: Path, split: str) -> Rows:
        """The split that `write_rows` put into `folder`."""
        return cls(folder, split)

    @staticmethod
    def exists(folder: Path, split: str) -> bool:
        """Whether the run has this split."""
        return (folder / f"{split}.lines.npy").exists()

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row."""
        return np.diff(self._offsets)

    @property
    def learned_counts(self) -> NDArray[np.int64]:
        """Learned tokens of each row."""
        sums = np.concatenate([[0], np.cumsum(self._learned, dtype=np.int64)])
        return np.asarray(sums[self._offsets[1:]] - sums[self._offsets[:-1]], dtype=np.int64)

    def ids(self, row: int) -> NDArray[np.int32]:
        """Token ids of a row."""
        return np.asarray(self._ids[self._offsets[row] : self._offsets[row + 1]])

    def learned(self, row: int) -> NDArray[np.bool_]:
        """Which of them are targets."""
        return np.asarray(self._learned[self._offsets[row] : self._offsets[row + 1]])

    def example(self, row: int) -> Example:
        """The conversation of a row."""
        with self._text.open("rb") as file:
            file.seek(int(self._lines[row]))
            return Example.from_json(json.loads(file.read(int(self._lines[row + 1] - self._lines[row]))))

    def examples(self) -> Iterator[Example]:
        """All conversations in order."""
        with self._text.open("rb") as file:
            for line in file:
                yield Example.from_json(json.loads(line))

    @property
    def sha256(self) -> str:
        """Hash of ids and mask: what training sees."""
        digest = hashlib.sha256()
        for name in ("ids", "learned", "offsets"):
            with (self._folder / f"{self.split}.{name}.npy").open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        return digest.hexdigest()


def _map(path: Path) -> NDArray[Any]:
    array: NDArray[Any] = np.load(path, mmap_mode="r")
    return array


def remove_rows(folder: Path, split: str) -> None:
    """Takes a split away, the file that says it exists first."""
    for name in ("lines.npy", "jsonl", "ids.npy", "learned.npy", "offsets.npy"):
        (folder / f"{split}.{name}").unlink(missing_ok=True)


def write_rows(folder: Path, split: str, rows: Iterable[tuple[Example, Encoded]]) -> int:
    """Writes a split; returns the number of rows. The last file appears last: without it the split does not exist."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{split}.lines.npy").unlink(missing_ok=True)
    ids: list[NDArray[np.int32]] = []
    learned: list[NDArray[np.bool_]] = []
    lines = [0]
    with (folder / f"{split}.jsonl").open("wb") as text:
        for example, encoded in rows:
            line = json.dumps(example.to_json(), ensure_ascii=False).encode() + b"\n"
            text.write(line)
            lines.append(lines[-1] + len(line))
            ids.append(np.asarray(encoded.ids, dtype=np.int32))
            learned.append(np.asarray(encoded.learned, dtype=np.bool_))
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in ids])]).astype(np.int64)
    np.save(folder / f"{split}.ids.npy", np.concatenate(ids) if ids else np.zeros(0, np.int32))
    np.save(folder / f"{split}.learned.npy", np.concatenate(learned) if learned else np.zeros(0, np.bool_))
    np.save(folder / f"{split}.offsets.npy", offsets)
    np.save(folder / f"{split}.lines.npy", np.asarray(lines, dtype=np.int64))
    return len(ids)
