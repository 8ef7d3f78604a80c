"""Rows that are each drawn in their own way get the tokens that `choose` gives each alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tunesmith.generate import sampling
from tunesmith.generate.live.decoder import way_of
from tunesmith.generate.protocol import LiveRequest
from tunesmith.generate.sampling import choose, choose_each, stream_key

ROWS, WORDS = 400, 120
TEMPERATURES = [0.0, 0.3, 0.7, 1.0, 1.9, 50.0]
TOPS = [1.0, 0.9, 0.5, 0.1, 1e-4, 0.0, 0.999999]


def rows(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Logits, temperatures, top_p, keys, positions, and the logits as a grammar leaves them."""
    torch.manual_seed(2)
    logits = (torch.randn(ROWS, WORDS) * 3).to(dtype)
    logits[::7, 3] = logits[::7, 90] = logits[::7].amax(-1) + 1  # ties, of which the first wins
    heat = torch.tensor([TEMPERATURES[n % 6] for n in range(ROWS)], dtype=torch.float64)
    tops = torch.tensor([TOPS[n // 6 % 7] for n in range(ROWS)], dtype=torch.float64)
    keys = torch.tensor([stream_key(n, 0, n % 3) for n in range(ROWS)])
    held = logits.masked_fill(torch.rand(ROWS, WORDS) < 0.6, -torch.inf)
    held[:, 5] = logits[:, 5]
    return logits, heat, tops, keys, torch.arange(ROWS) % 50, held


def one_by_one(dtype: torch.dtype, held: bool, tops: bool = True) -> tuple[Tensor, Tensor]:
    logits, heat, top_p, keys, places, kept = rows(dtype)
    found = [
        choose(
            logits[n : n + 1],
            heat[n].item(),
            top_p[n].item() if tops else 1.0,
            keys[n : n + 1],
            places[n : n + 1],
            kept[n : n + 1] if held else None,
        )
        for n in range(ROWS)
    ]
    return torch.cat([one for one, _ in found]), torch.cat([one for _, one in found])


def together(
    each: Callable[..., Any], dtype: torch.dtype, held: bool, tops: bool = True
) -> tuple[Tensor, Tensor]:
    logits, heat, top_p, keys, places, kept = rows(dtype)
    found: tuple[Tensor, Tensor] = each(
        logits, heat, top_p if tops else None, keys, places, kept if held else None
    )
    return found


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_tokens_are_those_of_each_row_alone(dtype: torch.dtype, held: bool) -> None:
    for tops in (True, False):
        expected, logprobs = one_by_one(dtype, held, tops)
        found, told = together(choose_each, dtype, held, tops)
        assert torch.equal(found, expected)
        assert torch.allclose(told, logprobs, atol=1e-6)
        assert len(set(found.tolist())) > 40
    assert (
        together(choose_each, dtype, held, True)[0].tolist() != found.tolist()
    )  # the nucleus says something


def test_fp32_temperatures_mean_the_same() -> None:
    logits, heat, top_p, keys, places, _ = rows(torch.float32)
    found, _ = choose_each(logits, heat.float(), top_p.float(), keys, places)
    assert torch.equal(found, one_by_one(torch.float32, False)[0])


def test_whatever_top_p_is_the_likeliest_token_is_kept() -> None:
    logits = torch.randn(50, WORDS, generator=torch.Generator().manual_seed(0))
    zeros = torch.zeros(50, dtype=torch.int64)
    for tiny in (0.0, 1e-30, 1e-9):
        assert torch.equal(choose(logits, 1.0, tiny, zeros, zeros)[0], logits.argmax(-1))


def _first_rows(logits: Tensor, heat: Tensor, tops: Tensor | None, *others: Any) -> Any:
    return choose_each(logits, heat[1].expand_as(heat), tops, *others)


def _no_nucleus(logits: Tensor, heat: Tensor, tops: Tensor | None, *others: Any) -> Any:
    return choose_each(logits, heat, None, *others)


def _all_drawn(logits: Tensor, heat: Tensor, tops: Tensor | None, *others: Any) -> Any:
    return choose_each(logits, heat.clamp_min(0.2), tops, *others)


def _one_place(logits: Tensor, heat: Tensor, tops: Any, keys: Tensor, places: Tensor, held: Any) -> Any:
    return choose_each(logits, heat, tops, keys, places * 0, held)


def _unheld(logits: Tensor, heat: Tensor, tops: Any, keys: Tensor, places: Tensor, held: Any) -> Any:
    return choose_each(logits, heat, tops, keys, places)


@pytest.mark.parametrize("mutant", [_first_rows, _no_nucleus, _all_drawn, _one_place, _unheld])
def test_mutants_are_caught(mutant: Callable[..., Any]) -> None:
    expected, _ = one_by_one(torch.float32, True)
    assert not torch.equal(together(mutant, torch.float32, True)[0], expected)


def test_a_nucleus_that_is_cut_off_by_one_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    expected, _ = one_by_one(torch.float32, False)
    right = sampling._draw
    monkeypatch.setattr(sampling, "_draw", lambda p, top_p, draws: right(p, (top_p * 0.9), draws))
    assert not torch.equal(together(choose_each, torch.float32, False)[0], expected)


def test_the_way_of_a_step_is_enough_for_all_in_it() -> None:
    def way(*pairs: tuple[float, float]) -> str:
        return way_of([LiveRequest([1], 1, frozenset(), heat, top_p) for heat, top_p in pairs])

    assert way((0, 1), (0, 0.5)) == "greedy"
    assert way((0, 0.5), (0.1, 1)) == "drawn"
    assert way((0, 1), (1, 1), (0.3, 0.9)) == "nucleus"
