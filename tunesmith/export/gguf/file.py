"""A GGUF file written in pieces: each is read, converted and written by one of a few threads, at its own place.

The `gguf` package writes the header (magic, keys, tensor infos); it would also write tensors, but one after another and
whole. Here no more than a piece for each thread is in memory. The file appears under its name when it is whole.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tunesmith.errors import ModelError
from tunesmith.export.gguf.library import require_gguf
from tunesmith.export.gguf.tensors import Planned, permuted
from tunesmith.export.gguf.values import encoded
from tunesmith.model.stream import Place
from tunesmith.run import beside, disk_error, require_disk

if TYPE_CHECKING:
    from gguf import GGUFWriter

PIECE = 1 << 23  # bytes of stored values that a thread works on
_THREADS = 8
_ALIGNMENT = 32
Describe = Callable[["GGUFWriter"], None]


def write_file(
    out: Path,
    architecture: str,
    describe: Describe,
    tensors: Sequence[Planned],
    on_bytes: Callable[[int], None] | None = None,
) -> None:
    """The file `out`, whole or not at all, in the place of an older one.

    describe: adds the keys. on_bytes: told how many more bytes of tensors are written. ModelError for values that the
    kind can't hold, OutOfRoom where the disk is too small, AccessError where it may not be written.
    """
    total = sum(_padded(tensor.bytes) for tensor in tensors)
    require_disk(out, total, out.name)
    temporary = beside(out)
    try:
        with _header(temporary, architecture, describe, tensors) as (file, begin):
            _write_tensors(file, begin, tensors, on_bytes or (lambda _: None))
            os.ftruncate(file, begin + total)
            os.fsync(file)
        temporary.replace(out)
    except OSError as error:
        raise disk_error(error, out) or error from None
    finally:
        temporary.unlink(missing_ok=True)


def _padded(count: int) -> int:
    return -(-count // _ALIGNMENT) * _ALIGNMENT


@contextmanager
def _header(
    path: Path, architecture: str, describe: Describe, tensors: Sequence[Planned]
) -> Iterator[tuple[int, int]]:
    """The file with all before the tensors written: its descriptor, and where they begin."""
    gguf = require_gguf()
    writer = gguf.GGUFWriter(path, architecture)
    try:
        describe(writer)
        for tensor in tensors:
            kind = gguf.GGMLQuantizationType[tensor.kind]
            # any type but uint8, for which the shape would have to be one of bytes
            writer.add_tensor_info(tensor.name, tensor.shape, "float32", tensor.bytes, raw_dtype=kind)
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        file = writer.fout[0]
        file.flush()
        yield file.fileno(), _padded(file.tell())
    finally:
        writer.close()


class _Piece:
    """Some rows of a tensor, and where their bytes go."""

    def __init__(self, tensor: Planned, first: int, rows: int, target: int) -> None:
        self.tensor, self.first, self.rows, self.target = tensor, first, rows, target


def _pieces(tensors: Sequence[Planned], begin: int) -> Iterator[_Piece]:
    for tensor in tensors:
        rows, columns = _matrix(tensor.shape)
        step = max(1, PIECE // max(1, columns * _item(tensor)))
        if tensor.heads:
            head = rows // tensor.heads
            step = max(head, step // head * head)
        row_bytes = tensor.bytes // rows
        for first in range(0, rows, step):
            yield _Piece(tensor, first, min(step, rows - first), begin + first * row_bytes)
        begin += _padded(tensor.bytes)


def _matrix(shape: Sequence[int]) -> tuple[int, int]:
    """Rows and columns; a vector is a column."""
    return (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (shape[0], 1)


def _item(tensor: Planned) -> int:
    source = tensor.source
    return int(source.dtype.itemsize)


def _write_tensors(
    file: int, begin: int, tensors: Sequence[Planned], on_bytes: Callable[[int], None]
) -> None:
    with ExitStack() as stack:
        opened: dict[Path, int] = {}
        for tensor in tensors:
            if isinstance(tensor.source, Place) and tensor.source.path not in opened:
                opened[tensor.source.path] = os.open(tensor.source.path, os.O_RDONLY)
                stack.callback(os.close, opened[tensor.source.path])
        stack.enter_context(_one_thread_each())
        count = min(_THREADS, 2 * (os.cpu_count() or 1))  # while one waits for the disk another one converts
        pool = ThreadPoolExecutor(count, thread_name_prefix="gguf")
        stack.callback(pool.shutdown, cancel_futures=True)
        worker = _Worker(file, opened)
        under_way: set[Future[int]] = set()
        for piece in _pieces(tensors, begin):
            under_way.add(pool.submit(worker.write, piece))
            if len(under_way) > 2 * count:
                done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                for one in done:
                    on_bytes(one.result())
        for one in under_way:
            on_bytes(one.result())


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """torch splits no operation further: the pool's threads are as many as the machine has use for."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Worker:
    """What the threads do; each has a buffer of its own."""

    def __init__(self, file: int, opened: Mapping[Path, int]) -> None:
        self._file, self._opened, self._own = file, opened, threading.local()

    def write(self, piece: _Piece) -> int:
        """Reads, converts, writes; the number of bytes written."""
        tensor = piece.tensor
        rows = self._read(piece)
        if tensor.heads:
            rows = permuted(rows, _matrix(tensor.shape)[0] // tensor.heads)
        content = encoded(rows, tensor.kind, tensor.name).numpy().data
        done = 0
        while done < len(content):
            done += os.pwrite(self._file, content[done:], piece.target + done)
        return done

    def _read(self, piece: _Piece) -> Tensor:
        source, (_, columns) = piece.tensor.source, _matrix(piece.tensor.shape)
        if isinstance(source, Tensor):
            return source.reshape(-1, columns)[piece.first : piece.first + piece.rows].contiguous()
        row_bytes = columns * source.dtype.itemsize
        size, begin = piece.rows * row_bytes, source.begin + piece.first * row_bytes
        buffer = self._buffer(size)
        memory, done = buffer.numpy().data, 0
        while done < size:
            count = os.preadv(self._opened[source.path], [memory[done:]], begin + done)
            if count == 0:
                raise ModelError(
                    "a weight file is cut short", where=str(source.path), fix="download it again"
                )
            done += count
        return buffer.view(source.dtype).view(piece.rows, columns)

    def _buffer(self, size: int) -> Tensor:
        if not hasattr(self._own, "buffer") or self._own.buffer.numel() < size:
            self._own.buffer = torch.empty(size, dtype=torch.uint8)
        found: Tensor = self._own.buffer[:size]
        return found
