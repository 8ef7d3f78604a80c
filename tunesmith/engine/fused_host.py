"""What lies in host memory while the card computes: inputs of layers, and on small cards the embedding and the head.

Copies run on streams of their own, from and to pinned memory, and the compute stream waits for events, never the
host. Device memory is always the compute stream's own, so what the allocator holds at its peak is the same each step.
On a CPU the same copies are made within its memory. T tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tunesmith.errors import OutOfRoom


class Courier:
    """Copies between a card and its host, in order, beside the compute stream."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch's is untyped

    def send(self, tensor: Tensor, to: Tensor) -> torch.cuda.Event | None:
        """Starts `to.copy_(tensor)` once what is queued now is done; the event marks its end."""
        if self._stream is None:
            to.copy_(tensor)
            return None
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            to.copy_(tensor, non_blocking=True)
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record(self._stream)
        return done

    def wait(self, done: torch.cuda.Event | None) -> None:
        """What is queued from now on runs after the copy."""
        if done is not None:
            torch.cuda.current_stream(self._device).wait_event(done)

    def host(self, like: Tensor) -> Tensor:
        """Uninitialised host memory of this shape; pinned where a card copies. OutOfRoom where the host has none."""
        try:
            return torch.empty(like.shape, dtype=like.dtype, pin_memory=self._stream is not None)
        except RuntimeError as error:  # CUDA and torch have no kind of error for it
            if not any(
                words in str(error) for words in ("out of memory", "can't allocate", "not enough memory")
            ):
                raise
            raise OutOfRoom(
                f"the host has no {like.nbytes / 2**30:.2f} GiB of memory left for what the card sends there",
                where="host memory (a container's limit counts, and that of locked pages: ulimit -l)",
                fix="a machine with more, or less to send: train.micro_batch lower, or train.memory higher",
            ) from error


class Away:
    """A tensor that was sent to the host: `call` it back early, `take` it when it is used."""

    def __init__(self, tensor: Tensor, courier: Courier) -> None:
        self._courier, self._device = courier, tensor.device
        self._there = courier.host(tensor)
        self._leaving: Tensor | None = tensor
        self._done = courier.send(tensor, self._there)
        self._back: Tensor | None = None

    def let_go(self) -> None:
        """The device memory is free for what is queued from now on."""
        if self._leaving is not None:
            self._courier.wait(self._done)
            self._leaving = None

    def call(self) -> None:
        """Starts the way back, once."""
        if self._back is None:
            self.let_go()
            self._back = torch.empty_like(self._there, device=self._device)
            self._done = self._courier.send(self._there, self._back)

    def take(self) -> Tensor:
        """The tensor, on its device again."""
        self.call()
        assert self._back is not None
        self._courier.wait(self._done)
        return self._back


class Outer:
    """The embedding and the head of a model: where they are (`on_host`), and how they are used from there."""

    def __init__(self, embedding: nn.Embedding, head: nn.Linear) -> None:
        self._embedding, self._head = embedding, head
        self.device = embedding.weight.device
        self._courier = Courier(self.device)
        self.on_host = False
        self._brought: tuple[Tensor, torch.cuda.Event | None] | None = None

    def place(self, *, on_host: bool) -> None:
        """Moves both weights (one, where they are tied) to the host, or back."""
        if on_host == self.on_host:
            return
        weights = (self._embedding.weight, self._head.weight)
        for weight in {id(one): one for one in weights}.values():
            there = self._courier.host(weight) if on_host else torch.empty_like(weight, device=self.device)
            weight.data = there.copy_(weight)
        self.on_host, self._brought = on_host, None

    def embed(self, ids_T: Tensor, host_ids_T: Tensor) -> Tensor:
        """[T, H] on the device, of ids on the device and, where the caller has them, on the host: then no waiting."""
        weight_VH = self._embedding.weight.detach()
        if not self.on_host:
            return weight_VH.index_select(0, ids_T)
        shape = (len(ids_T), weight_VH.shape[1])
        x_TH = torch.empty(shape, dtype=weight_VH.dtype, pin_memory=self.device.type == "cuda")
        torch.index_select(weight_VH, 0, host_ids_T.cpu(), out=x_TH)
        return x_TH.to(self.device, non_blocking=True)

    def call_head(self) -> None:
        """Starts bringing the head, where it is away."""
        if self.on_host and self._brought is None:
            there = self._head.weight.data
            here = torch.empty_like(there, device=self.device)
            self._brought = here, self._courier.send(there, here)

    @contextmanager
    def head(self) -> Iterator[nn.Linear]:
        """The head with its weight on the device, for the block; a tied embedding stays where it is."""
        if not self.on_host:
            yield self._head
            return
        self.call_head()
        assert self._brought is not None
        (here, done), self._brought = self._brought, None
        self._courier.wait(done)
        brought = nn.Linear(1, 1, bias=False)
        brought.out_features, brought.in_features = here.shape
        brought.weight, brought.bias = nn.Parameter(here, requires_grad=False), self._head.bias
        try:
            yield brought
        finally:
            brought.weight.data = here.new_empty(0)  # whoever still names it holds no memory
