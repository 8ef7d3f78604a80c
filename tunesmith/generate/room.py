"""How many answers are written side by side where nobody says: a function of model, card and lengths alone."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from tunesmith.model.attention import head_shape

MOST = 512  # on a card: beyond it a step takes longer in the proportion
MOST_ON_CPU = 128
_CPU_CACHE = 4 * 2**30  # bytes of keys and values without a card
_SHARE = 0.9  # of a card's memory that is planned with
_PREFILL_TOKEN = 24  # bytes of a prompt's token in flight, for each number of the widest layer


def slots_that_fit(
    model: PreTrainedModel, wanted: int, length: int, prefill: int, memory: float | None, logit: int = 16
) -> int:
    """At most `wanted` answers of `length` tokens (prompt included); one at least.

    prefill: prompt tokens that go through the model together. memory: GiB to plan for instead of the card's own.
    logit: bytes for each of an answer's logits while a token is chosen (`sampling.bytes_a_logit`).
    """
    key_heads, head_dim = head_shape(model.config)
    of_slot = 2 * int(model.config.num_hidden_layers) * key_heads * length * head_dim * model.dtype.itemsize
    if model.device.type != "cuda":
        return max(1, min(wanted, MOST_ON_CPU, _CPU_CACHE // of_slot))
    total = torch.cuda.get_device_properties(model.device).total_memory
    planned = _SHARE * total if memory is None else min(memory * 2**30, _SHARE * total)
    widest = max(int(model.config.intermediate_size), int(model.config.hidden_size))
    left = planned - _bytes(model) - _PREFILL_TOKEN * prefill * widest
    return int(max(1, min(wanted, MOST, left // (of_slot + logit * int(model.config.vocab_size)))))


def _bytes(model: nn.Module) -> int:
    held = {x.data_ptr(): x.numel() * x.element_size() for x in (*model.parameters(), *model.buffers())}
    return sum(held.values())
