"""A token more for answers that are each drawn in their own way: temperature, top_p and adapter are a slot's own.

On a card a step is one CUDA graph, of four kinds: all answers greedy; some drawn; some drawn from a nucleus, which
has to be sorted for; and open, where the graph ends with the logits, because a grammar or a question for the likeliest
tokens stands between them and the choice. What differs from slot to slot lies in tensors that the graphs read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.generate.cache import Chunk, Prefill
from tunesmith.generate.decoder import SlotState
from tunesmith.generate.protocol import LiveRequest
from tunesmith.generate.replay import Graphs
from tunesmith.generate.sampling import choose, choose_each
from tunesmith.model.attention import Attention
from tunesmith.model.lora_bank import LoraBank

Way = Literal["greedy", "drawn", "nucleus"]
_KINDS = ("greedy", "drawn", "nucleus", "open")
_ROWS = 256  # of a prompt's logits at once, in fp32


class LiveDecoder(SlotState):
    """`slots` answers of at most `length` tokens, prompts included."""

    def __init__(self, model: PreTrainedModel, slots: int, length: int, bank: LoraBank | None) -> None:
        super().__init__(model, slots, length)
        self.bank = bank
        self.temperature = torch.zeros(slots, dtype=torch.float64, device=self.device)
        self.top_p = torch.ones_like(self.temperature)
        self.adapter = torch.zeros_like(self.last)  # of the bank; 0: the model alone
        self.told = torch.zeros(
            slots, 2, dtype=torch.float64, device=self.device
        )  # the last token and its ln p
        self._replays = self._can_replay()
        pool = torch.cuda.graph_pool_handle() if self._replays else None
        self._graphs: dict[str, Graphs[Tensor | None]] = {kind: Graphs(slots, pool) for kind in _KINDS}

    def rows(self) -> tuple[Tensor, ...]:
        return *super().rows(), self.temperature, self.top_p, self.adapter

    def assign(self, first: int, requests: Sequence[LiveRequest]) -> None:
        """Slots from `first` on belong to these requests, whose prompts come next."""
        rows = slice(first, first + len(requests))
        drawn = [(one.temperature, one.top_p) for one in requests]
        self.temperature[rows], self.top_p[rows] = self.there(drawn, torch.float64).unbind(1)
        if self.bank is not None:
            self.adapter[rows] = self.there([self.bank.index(one.adapter) for one in requests])

    def logits(
        self, ids_T: Tensor, positions_T: Tensor, attention: Attention, wanted: Tensor | None
    ) -> Tensor:
        if self.bank is None:
            return super().logits(ids_T, positions_T, attention, wanted)
        of = attention.slots_T if isinstance(attention, Prefill | Chunk) else slice(len(ids_T))
        with self.bank.use(self.adapter[of]):
            return super().logits(ids_T, positions_T, attention, wanted)

    @torch.no_grad()
    def step(self, count: int, lengths: Sequence[int], way: Way | None) -> Tensor | None:
        """One token more for slots 0 to count - 1, all drawn in one way; None: only their logits, [count, V]."""

        def run(size: int) -> Tensor | None:
            logits_NV = self.next_logits(size, lengths)
            if way is None:
                return logits_NV
            self.choose(logits_NV, slice(0, size), way)
            return None

        made = self._graphs[way or "open"].run(count, run) if self._replays else run(count)
        return None if made is None else made[:count]

    @torch.no_grad()
    def choose(self, logits_NV: Tensor, rows: slice, way: Way, held_NV: Tensor | None = None) -> None:
        """Writes the next token of the slots `rows`, chosen from `held_NV` where it is given."""
        keys, places = self.key[rows], self.count[rows]
        if way == "greedy":
            chosen, logprob = choose(logits_NV, 0.0, 1.0, keys, places, held_NV)
        else:
            nucleus = self.top_p[rows] if way == "nucleus" else None
            chosen, logprob = choose_each(logits_NV, self.temperature[rows], nucleus, keys, places, held_NV)
        self.last[rows] = chosen
        self.count[rows] += 1
        self.position[rows] += 1
        self.told[rows, 0] = chosen.double()
        self.told[rows, 1] = logprob.double()


def way_of(requests: Sequence[LiveRequest]) -> Way:
    """How tokens have to be drawn so that each of these requests gets its own."""
    drawn = [one for one in requests if one.temperature > 0]
    return "greedy" if not drawn else "nucleus" if any(one.top_p < 1 for one in drawn) else "drawn"


def likeliest(logits_NV: Tensor, count: int) -> Tensor:
    """fp64 [N, 2, count]: the ids of the likeliest tokens, likeliest first, and their ln p."""
    logits_NV = logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()
    values_NK, ids_NK = logits_NV.topk(count, dim=-1)
    return torch.stack([ids_NK.double(), (values_NK - logits_NV.logsumexp(-1, keepdim=True)).double()], 1)


@torch.no_grad()
def foretold(logits_TV: Tensor, next_T: Tensor, top: int) -> tuple[list[float], list[list[list[float]]]]:
    """ln p of the token that follows each place, and the `top` likeliest there: [T] and [T, 2, top]."""
    logprobs: list[float] = []
    tops: list[list[list[float]]] = []
    for piece_NV, ids_N in zip(torch.split(logits_TV, _ROWS), torch.split(next_T, _ROWS), strict=True):
        kept_NV = piece_NV if piece_NV.dtype == torch.float64 else piece_NV.float()
        picked_N = kept_NV.gather(1, ids_N[:, None])[:, 0] - kept_NV.logsumexp(-1)
        logprobs += picked_N.tolist()
        tops += likeliest(kept_NV, top).tolist() if top else [[[], []] for _ in ids_N]
    return logprobs, tops
