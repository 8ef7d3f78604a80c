"""Rows of a memory-mapped array read through its file.

Pages of a mapping that were touched count as the process's memory, and one row may bring two megabytes of neighbours.
What is read from the file is only as large as the rows asked for.
"""

from __future__ import annotations

import mmap
from contextlib import AbstractContextManager
from io import FileIO
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray


class StoredRows(AbstractContextManager["StoredRows"]):
    """Reads rows of `array` [rows, width]; a plain array is read as it is."""

    def __init__(self, array: NDArray[Any]) -> None:
        self.array = array
        self._file: FileIO | None = None
        mapped = _mapped(array)
        if mapped is not None and array.flags.c_contiguous:
            name, self._offset = mapped
            self._file = FileIO(name)

    def __len__(self) -> int:
        return len(self.array)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def block(self, start: int, stop: int) -> NDArray[Any]:
        """Rows start … stop - 1."""
        if self._file is None:
            return self.array[start:stop]
        rows = np.empty((min(stop, len(self.array)) - start, self.array.shape[1]), self.array.dtype)
        self._file.seek(self._offset + start * self.array.strides[0])
        self._file.readinto(rows.data)
        return rows

    def take(self, rows: NDArray[np.integer[Any]]) -> NDArray[Any]:
        """The rows of these numbers."""
        if self._file is None:
            chosen: NDArray[Any] = np.take(self.array, rows, axis=0)
            return chosen
        taken = np.empty((len(rows), self.array.shape[1]), self.array.dtype)
        step = self.array.strides[0]
        for into, row in zip(taken, rows.tolist(), strict=True):
            self._file.seek(self._offset + row * step)
            self._file.readinto(into)
        return taken


def _mapped(array: NDArray[Any]) -> tuple[str, int] | None:
    """The file that the array is a view of, and where in it the array begins."""
    root: Any = array
    while isinstance(root, np.ndarray) and isinstance(root.base, np.ndarray):
        root = root.base
    owner: object = getattr(root, "base", None)
    if not isinstance(owner, mmap.mmap) or not root.filename:
        return None
    within = array.__array_interface__["data"][0] - root.__array_interface__["data"][0]
    return str(root.filename), int(root.offset) + int(within)
