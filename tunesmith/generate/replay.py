"""A step's many small kernels launched as one CUDA graph, captured once for each number of slots that is often needed.

A hundred small kernels a layer would take longer to launch than to run. What a captured function reads and writes
therefore lies at fixed addresses, and lengths are read on the device.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch

_SIZES = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256, 320, 384, 448, 512)
_OFTEN = 3  # runs with a number of slots before its graph is captured

Result = TypeVar("Result")
_capturing = threading.Lock()  # torch captures on one stream


class Graphs(Generic[Result]):
    """The graphs of one function of a number of slots; what it gives lies at the same place in every replay."""

    def __init__(self, slots: int, pool: Any = None) -> None:
        self.slots, self.pool = slots, pool
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Result]] = {}
        self._often: Counter[int] = Counter()

    def run(self, count: int, function: Callable[[int], Result]) -> Result:
        """`function` of `count` slots or a few more."""
        size = min(min((one for one in _SIZES if one >= count), default=self.slots), self.slots)
        ready = [one for one in self._graphs if size <= one < 2 * size]
        if ready:
            graph, result = self._graphs[min(ready)]
            graph.replay()
            return result
        self._often[size] += 1
        if self._often[size] <= _OFTEN:
            return function(size)
        graph = torch.cuda.CUDAGraph()
        # other threads may load a model meanwhile
        with _capturing, torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            result = function(size)
        self.pool = self.pool or graph.pool()
        self._graphs[size] = graph, result
        graph.replay()
        return result
