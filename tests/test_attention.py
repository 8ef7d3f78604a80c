"""The attention seam against transformers' own sdpa, one document at a time, in fp64."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

from tunesmith.errors import ModelError
from tunesmith.model.attention import ATTENTION, Attention, Packed, Padded, head_shape, register

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    "llama, every head its own keys": LlamaConfig(**{**SIZES, "num_key_value_heads": 4}),
    "mistral, window 5": MistralConfig(**SIZES, sliding_window=5),
    "qwen2, window 5 in the second layer": Qwen2Config(
        **SIZES, use_sliding_window=True, sliding_window=5, max_window_layers=1
    ),
    "qwen3, head dimension 32": Qwen3Config(**SIZES, head_dim=32),
}
LENGTHS = [7, 12, 1, 9]
LIMIT = 1e-10


def make_model(config: Any, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=register()).to(dtype)
    for parameter in model.parameters():  # large enough that attention matters
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def documents() -> list[torch.Tensor]:
    torch.manual_seed(1)
    return [torch.randint(0, 97, (1, length)) for length in LENGTHS]


def packed(lengths: list[int]) -> Packed:
    edges = [0, *itertools.accumulate(lengths)]
    return Packed(torch.tensor(edges, dtype=torch.int32), max(lengths))


def positions(lengths: list[int]) -> torch.Tensor:
    return torch.cat([torch.arange(length) for length in lengths])[None]


def forward(
    model: PreTrainedModel, ids: torch.Tensor, position: torch.Tensor, attention: Attention
) -> torch.Tensor:
    logits: torch.Tensor = model(
        input_ids=ids, position_ids=position, use_cache=False, attention=attention
    ).logits
    return logits


def one_by_one(model: PreTrainedModel) -> torch.Tensor:
    """Referee: transformers' sdpa, a document a call, [T, V]."""
    model.set_attn_implementation("sdpa")
    logits = torch.cat([model(input_ids=ids, use_cache=False).logits[0] for ids in documents()])
    model.set_attn_implementation(ATTENTION)
    return logits


def gradients(model: PreTrainedModel, logits_TV: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    (logits_TV.log_softmax(-1)[:, 3].sum() / 10).backward()  # type: ignore[no-untyped-call]
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).detach().abs().max())


@pytest.mark.parametrize("name", CONFIGS)
def test_packed_documents_do_not_see_each_other(name: str) -> None:
    model = make_model(CONFIGS[name])
    stream = torch.cat(documents(), dim=1)
    result = forward(model, stream, positions(LENGTHS), packed(LENGTHS))[0]
    expected = one_by_one(model)
    assert distance(result, expected) < LIMIT
    assert distance(gradients(model, result), gradients(model, expected)) < LIMIT


@pytest.mark.parametrize("name", CONFIGS)
def test_padding_on_the_right_changes_nothing(name: str) -> None:
    model = make_model(CONFIGS[name])
    rectangle = torch.zeros(len(LENGTHS), max(LENGTHS), dtype=torch.int64)
    for row, ids in zip(rectangle, documents(), strict=True):
        row[: ids.shape[1]] = ids
    position = torch.arange(max(LENGTHS)).expand_as(rectangle)
    logits = forward(model, rectangle, position, Padded(torch.tensor(LENGTHS)))
    result = torch.cat([row[:length] for row, length in zip(logits, LENGTHS, strict=True)])
    expected = one_by_one(model)
    assert distance(result, expected) < LIMIT
    assert distance(gradients(model, result), gradients(model, expected)) < LIMIT


def test_mutants_are_caught() -> None:
    """The limit above tells a bare concatenation and positions that run on from the real thing."""
    model = make_model(CONFIGS["llama"])
    stream = torch.cat(documents(), dim=1)
    expected = one_by_one(model)
    total = sum(LENGTHS)
    concatenated = forward(model, stream, positions(LENGTHS), packed([total]))[0]
    assert distance(concatenated, expected) > 0.1
    running_on = forward(model, stream, torch.arange(total)[None], packed(LENGTHS))[0]
    assert distance(running_on, expected) > 10 * LIMIT  # rotation is relative: only its rounding shows
    shifted = forward(
        model, stream, positions(LENGTHS), packed([LENGTHS[0] + 1, LENGTHS[1] - 1, *LENGTHS[2:]])
    )[0]
    assert distance(shifted, expected) > 0.1


def test_the_window_is_used() -> None:
    narrow, wide = (make_model(MistralConfig(**SIZES, sliding_window=window)) for window in (5, 6))
    stream = torch.cat(documents(), dim=1)
    assert distance(one_by_one(narrow), one_by_one(wide)) > 0.01
    result = forward(wide, stream, positions(LENGTHS), packed(LENGTHS))[0]
    assert distance(result, one_by_one(wide)) < LIMIT


def test_recomputed_layers_get_the_context_again() -> None:
    model = make_model(CONFIGS["llama"])
    model.train()
    stream = torch.cat(documents(), dim=1)
    plain = gradients(model, forward(model, stream, positions(LENGTHS), packed(LENGTHS))[0])
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    again = gradients(model, forward(model, stream, positions(LENGTHS), packed(LENGTHS))[0])
    assert distance(plain, again) < LIMIT


def test_transformers_builds_no_mask_for_us() -> None:
    config = MistralConfig(**SIZES, sliding_window=5)
    for implementation, is_none in ((register(), True), ("sdpa", False)):
        config._attn_implementation = implementation
        arguments: dict[str, Any] = {
            "config": config,
            "inputs_embeds": torch.zeros(1, sum(LENGTHS), 64),
            "attention_mask": None,
            "past_key_values": None,
            "position_ids": positions(LENGTHS),
        }
        assert (create_causal_mask(**arguments) is None) == is_none
        assert (create_sliding_window_causal_mask(**arguments) is None) == is_none


def test_a_call_that_would_attend_wrongly_is_refused() -> None:
    model = make_model(CONFIGS["llama"])
    stream = torch.cat(documents(), dim=1)
    position, context = positions(LENGTHS), packed(LENGTHS)
    with pytest.raises(TypeError, match="without `attention=`"):
        model(input_ids=stream, position_ids=position, use_cache=False)
    mask = torch.ones(1, 1, stream.shape[1], stream.shape[1], dtype=torch.bool)
    with pytest.raises(TypeError, match="attention_mask"):
        model(input_ids=stream, attention_mask=mask, use_cache=False, attention=context)
    cache = model(input_ids=stream, position_ids=position, use_cache=True, attention=context).past_key_values
    with pytest.raises(TypeError, match="use_cache=False"):
        model(input_ids=stream, position_ids=position, past_key_values=cache, attention=context)
    with pytest.raises(ValueError, match="the documents have 28 tokens"):
        forward(model, stream, position, packed([7, 12, 9]))
    with pytest.raises(ValueError, match="one row"):
        forward(model, stream.expand(2, -1), position, context)
    with pytest.raises(ValueError, match="3 lengths for 1 rows"):
        forward(model, stream, position, Padded(torch.tensor([1, 2, 3])))


def test_attention_dropout_is_refused() -> None:
    model = make_model(LlamaConfig(**SIZES, attention_dropout=0.1))
    model.train()
    with pytest.raises(ModelError, match=r"dropout 0\.1"):
        forward(model, torch.cat(documents(), dim=1), positions(LENGTHS), packed(LENGTHS))


def test_head_shape() -> None:
    assert head_shape(CONFIGS["llama"]) == (2, 16)
    assert head_shape(CONFIGS["qwen3, head dimension 32"]) == (2, 32)
