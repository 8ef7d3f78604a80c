"""Data parallel training on one machine: each rank trains on its share of a step's rows, and sums make one gradient.

Weights and optimiser are replicated. Each rank scales by the learned tokens of the whole step, which every host knows
without asking, so the sum over ranks is the very gradient that one device would have made; clipping and update then
run on every rank on the same bits, and weights never travel. Tensors on a GPU go through NCCL, those of the host
(stop requests, plans, validation losses) through gloo, so that agreeing on something never waits for a device.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from tunesmith.errors import Stopped
from tunesmith.proof import Proof

_PATIENCE = timedelta(minutes=30)  # a large checkpoint on a slow disk keeps rank 0 from a sum for long
_CHUNK = 1 << 26  # bytes that are compared at a time
_Any = TypeVar("_Any")


class PeerLost(Stopped):
    """Another rank has gone, or has said nothing for too long: seldom the first cause of what went wrong."""


@contextmanager
def _others() -> Iterator[None]:
    """gloo and NCCL have RuntimeErrors of their own for a rank that has gone."""
    try:
        yield
    except torch.OutOfMemoryError:  # our own card's
        raise
    except RuntimeError as error:
        raise PeerLost(
            f"the other ranks have gone, or nothing was heard of them for {_PATIENCE}: {str(error).splitlines()[0]}",
            fix="the same command goes on from the last checkpoint",
        ) from error


@dataclass(frozen=True)
class Ranks:
    """This process among the `size` that train together; by default it is alone, and nothing here waits for anybody."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes files and speaks."""
        return self.rank == 0

    def add(self, *tensors: Tensor) -> None:
        """Replaces each tensor by its sum over ranks: the same bits everywhere. The host doesn't wait for a GPU."""
        if self.size > 1:
            with _others():
                for tensor in tensors:
                    dist.all_reduce(tensor)

    def highest(self, number: int) -> int:
        """The highest of all ranks' numbers."""
        if self.size == 1:
            return number
        found = torch.tensor(number)
        with _others():
            dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return int(found)

    def told(self, value: _Any) -> _Any:
        """Rank 0's value, on every rank."""
        if self.size == 1:
            return value
        box = [value]
        with _others():
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def agree(self, tensors: Iterable[Tensor]) -> Proof:
        """Whether all ranks hold the same tensors, bit by bit: rank 0's go round and are compared."""
        differing = total = 0
        for tensor in tensors:
            whole = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
            total += whole.numel()
            for own in torch.split(whole, _CHUNK):
                theirs = own if self.first else torch.empty_like(own)
                with _others():
                    dist.broadcast(theirs, src=0)
                differing += int((theirs != own).sum())
        count = torch.tensor(differing)
        self.add(count)
        detail = f"of {total:,} bytes of weights and optimiser state on {self.size} ranks, those that are not rank 0's"
        return Proof("ranks_agree", not bool(count), int(count), 0, detail)


ALONE = Ranks()


def join(rank: int, size: int, port: int, device: torch.device) -> Ranks:
    """Meets the other ranks at the store that listens on `port` of this machine. `leave` ends it, on all at once."""
    # gloo would look up the machine's name, which many a container can't; all ranks are here
    own = {name for _, name in socket.if_nameindex()} & {"lo", "lo0"}
    if own:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", own.pop())
    store = dist.TCPStore(  # type: ignore[attr-defined]  # torch names it without exporting it
        "127.0.0.1", port, is_master=False, timeout=_PATIENCE
    )
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    with _others():
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_PATIENCE)
    return Ranks(rank, size)


def leave(ranks: Ranks) -> None:
    """After the last thing that is done together."""
    if ranks.size > 1:
        dist.destroy_process_group()
