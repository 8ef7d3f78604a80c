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
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.contract import Encoded
from tunesmith.example import Example

ROW_FILES = ("lines.npy", "jsonl", "ids.npy", "learned.npy", "offsets.npy")
_BLOCK = 4096  # rows


class Blocks:
    """Consecutive rows, read from the files themselves."""

    def __init__(
        self,
        lines: NDArray[np.int64],
        offsets: NDArray[np.int64],
        text: IO[bytes],
        ids: IO[bytes],
        learned: IO[bytes],
    ) -> None:
        self._lines, self._offsets, self._text = lines, offsets, text
        self._arrays = [
            (ids, np.dtype(np.int32), _begin(ids)),
            (learned, np.dtype(np.bool_), _begin(learned)),
        ]

    def read(self, start: int, stop: int) -> tuple[bytes, Any, Any, Any, Any]:
        """JSON lines, bytes of each, ids, mask, tokens of each."""
        lines, offsets = self._lines[start : stop + 1], self._offsets[start : stop + 1]
        self._text.seek(int(lines[0]))
        text = self._text.read(int(lines[-1] - lines[0]))
        count = int(offsets[-1] - offsets[0])
        ids, learned = (self._values(part, int(offsets[0]), count) for part in self._arrays)
        return text, np.diff(lines), ids, learned, np.diff(offsets)

    @staticmethod
    def _values(part: tuple[IO[bytes], np.dtype[Any], int], first: int, count: int) -> NDArray[Any]:
        file, kind, begin = part
        file.seek(begin + first * kind.itemsize)
        return np.frombuffer(file.read(count * kind.itemsize), dtype=kind)


def _begin(file: IO[bytes]) -> int:
    """Where a .npy file's values begin."""
    np.lib.format.read_magic(file)
    np.lib.format.read_array_header_1_0(file)
    return file.tell()


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
        counts = np.zeros(len(self), dtype=np.int64)
        for start in range(
            0, len(self), _BLOCK
        ):  # the sums of all tokens at once would take 8 bytes for each
            stop = min(start + _BLOCK, len(self))
            edges = self._offsets[start : stop + 1]
            sums = np.concatenate(
                [[0], np.cumsum(self._learned[int(edges[0]) : int(edges[-1])], dtype=np.int64)]
            )
            counts[start:stop] = sums[edges[1:] - edges[0]] - sums[edges[:-1] - edges[0]]
        return counts

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

    def examples(self, start: int = 0, stop: int | None = None) -> Iterator[Example]:
        """Conversations of rows start … stop - 1, in order."""
        with self._text.open("rb") as file:
            file.seek(int(self._lines[start]))
            for _ in range(start, len(self) if stop is None else stop):
                yield Example.from_json(json.loads(file.readline()))

    def sample(self, most: int) -> Iterator[Example]:
        """At most `most` conversations, evenly spread over the split."""
        if len(self) <= most:
            yield from self.examples()
        else:
            yield from (self.example(i * len(self) // most) for i in range(most))

    @contextmanager
    def open_files(self) -> Iterator[Blocks]:
        """Reads blocks of rows as `RowWriter.append` takes them, past the memory map: nothing stays in memory."""
        with ExitStack() as stack:
            paths = (self._text, *(self._folder / f"{self.split}.{name}.npy" for name in ("ids", "learned")))
            text, ids, learned = (stack.enter_context(path.open("rb")) for path in paths)
            yield Blocks(self._lines, self._offsets, text, ids, learned)

    def rewrite(self, change: Callable[[int, Example], Example], numbers: Collection[int]) -> None:
        """Replaces the texts of some rows; their ids and masks stay."""
        place, lengths = self._text.with_suffix(".new"), np.diff(self._lines)
        with self._text.open("rb") as old, place.open("wb") as new:
            for row, line in enumerate(old):
                if row in numbers:
                    line = row_line(change(row, Example.from_json(json.loads(line))))
                    lengths[row] = len(line)
                new.write(line)
        place.replace(self._text)
        self._lines = _edges([lengths])
        np.save(self._folder / f"{self.split}.lines.npy", self._lines)

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
    for name in ROW_FILES:
        (folder / f"{split}.{name}").unlink(missing_ok=True)


class Growing:
    """A .npy file of one dimension that is written piece by piece; its length stands in the header at the end."""

    def __init__(self, path: Path, kind: Any) -> None:
        path.unlink(missing_ok=True)  # never into a file that another run shares
        self._file, self._kind, self._length = path.open("wb"), np.dtype(kind), 0
        self._header()

    def append(self, values: Any) -> None:
        """Adds an array."""
        array = np.ascontiguousarray(values, dtype=self._kind)
        self._file.write(array.data if len(array) else b"")
        self._length += len(array)

    def close(self) -> None:
        """Writes the length. Without it the file counts as empty."""
        self._file.seek(0)
        self._header()  # as long as the first one: numpy leaves room for a length that grows
        self._file.close()

    def _header(self) -> None:
        described = {
            "descr": np.lib.format.dtype_to_descr(self._kind),
            "fortran_order": False,
            "shape": (self._length,),
        }
        np.lib.format.write_array_header_1_0(self._file, described)


class RowWriter:
    """Writes a split block by block. `close` makes it exist: its last file appears last."""

    def __init__(self, folder: Path, split: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        remove_rows(folder, split)
        self._folder, self._split = folder, split
        self._text = (folder / f"{split}.jsonl").open("wb")
        self._ids = Growing(folder / f"{split}.ids.npy", np.int32)
        self._learned = Growing(folder / f"{split}.learned.npy", np.bool_)
        self._lengths: list[NDArray[np.int64]] = []
        self._lines: list[NDArray[np.int64]] = []

    def append(self, text: bytes, lines: Any, ids: Any, learned: Any, lengths: Any) -> None:
        """Rows as JSON lines with the bytes of each; all their ids and masks behind one another, tokens of each."""
        self._text.write(text)
        self._ids.append(ids)
        self._learned.append(learned)
        self._lines.append(np.asarray(lines, dtype=np.int64))
        self._lengths.append(np.asarray(lengths, dtype=np.int64))

    def close(self) -> int:
        """Number of rows."""
        for file in (self._text, self._ids, self._learned):
            file.close()
        np.save(self._folder / f"{self._split}.offsets.npy", _edges(self._lengths))
        np.save(self._folder / f"{self._split}.lines.npy", _edges(self._lines))
        return sum(map(len, self._lengths))


def write_rows(folder: Path, split: str, rows: Iterable[tuple[Example, Encoded]]) -> int:
    """Writes a split row by row; returns their number."""
    writer = RowWriter(folder, split)
    for example, encoded in rows:
        line = row_line(example)
        writer.append(line, [len(line)], encoded.ids, encoded.learned, [len(encoded.ids)])
    return writer.close()


def row_line(example: Example) -> bytes:
    """The row as it stands in the .jsonl."""
    return json.dumps(example.to_json(), ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def copy_rows(source: Rows, numbers: NDArray[np.int64], folder: Path, split: str) -> int:
    """Writes some rows of `source`, in the order of `numbers`, as a split of `folder`."""
    writer = RowWriter(folder, split)
    with source.open_files() as files:
        for block in np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1):
            for start in range(0, len(block), _BLOCK):
                part = block[start : start + _BLOCK]
                if len(part):
                    writer.append(*files.read(int(part[0]), int(part[-1]) + 1))
    return writer.close()


def _edges(parts: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(np.concatenate([*parts, np.zeros(0, np.int64)]))]).astype(np.int64)
