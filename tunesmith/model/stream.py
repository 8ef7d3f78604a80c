"""Tensors from files onto an accelerator, in order: read by several threads through pinned memory, a little ahead.

A memory map is read by one thread, page by page, and copied to the device through the driver's own small buffer. Here
each thread reads a piece of a file into a pinned buffer of its own, from where the device fetches it by itself, while
the caller still works on the tensor before. The bytes are the same.
"""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from tunesmith.errors import ModelError

PIECE = 1 << 24  # bytes that a thread reads at once, and of its buffer
AHEAD = 1 << 28  # bytes of tensors on the device before they are asked for, unless a single one is larger
_THREADS = 8


class Place(NamedTuple):
    """Where a tensor lies: its bytes in a file from `begin` on, row-major, little-endian."""

    path: Path
    begin: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Its size."""
        return math.prod(self.shape) * self.dtype.itemsize


def stream(
    places: Sequence[Place], device: torch.device, *, piece: int = PIECE, ahead: int = AHEAD
) -> Iterator[Tensor]:
    """The tensors of `places`, one after another, on `device`.

    Memory: on the device at most `ahead` bytes (or one tensor) more than what the caller holds; on the host a piece
    for each of at most 8 threads. Raises ModelError for a file that ends too early, OSError.
    """
    with ExitStack() as stack:
        files: dict[Path, int] = {}
        for place in places:
            if place.path not in files:
                files[place.path] = os.open(place.path, os.O_RDONLY)
                stack.callback(os.close, files[place.path])
        reader = _Reader(device, piece)
        pool = ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1), thread_name_prefix="weights")
        stack.callback(pool.shutdown, cancel_futures=True)
        started: deque[tuple[Tensor, list[Future[None]], int]] = deque()
        waiting, under_way = deque(places), 0
        while waiting or started:
            while waiting and (not started or under_way + waiting[0].bytes <= ahead):
                place = waiting.popleft()
                tensor = torch.empty(place.shape, dtype=place.dtype, device=device)
                pieces = [
                    pool.submit(reader.read, files[place.path], place, tensor, start)
                    for start in range(0, place.bytes, piece)
                ]
                started.append((tensor, pieces, place.bytes))
                under_way += place.bytes
            tensor, pieces, size = started.popleft()
            for one in pieces:
                one.result()
            under_way -= size
            del pieces
            yield tensor
            del tensor  # or it would lie beside the next one


class _Reader:
    """What the threads do. Copies go into the stream that the caller computes in, so they are done in its order."""

    def __init__(self, device: torch.device, piece: int) -> None:
        self._piece, self._own = piece, threading.local()
        self._stream = torch.cuda.current_stream(device) if device.type == "cuda" else None

    def read(self, file: int, place: Place, tensor: Tensor, start: int) -> None:
        """Bytes `start` to `start` + piece of the tensor."""
        size = min(self._piece, place.bytes - start)
        buffer = self._buffer()
        memory, done = buffer.numpy().data[:size], 0
        while done < size:
            count = os.preadv(file, [memory[done:]], place.begin + start + done)
            if count == 0:
                raise ModelError("a weight file is cut short", where=str(place.path), fix="download it again")
            done += count
        with torch.cuda.stream(self._stream) if self._stream else nullcontext():
            flat = tensor.view(-1).view(torch.uint8)
            flat[start : start + size].copy_(buffer[:size], non_blocking=True)
            if self._stream is not None:
                self._own.copied = self._stream.record_event()

    def _buffer(self) -> Tensor:
        """This thread's, once the device has fetched what lay in it."""
        if not hasattr(self._own, "buffer"):
            self._own.buffer = torch.empty(
                self._piece, dtype=torch.uint8, pin_memory=self._stream is not None
            )
        elif self._stream is not None:
            self._own.copied.synchronize()
        buffer: Tensor = self._own.buffer
        return buffer
