"""Order and learning rate: pure functions of seed, epoch and step."""

from __future__ import annotations

import numpy as np
import pytest

from tunesmith.train.order import Order, permutation
from tunesmith.train.schedule import Schedule


def test_the_order_is_frozen_for_good() -> None:
    """Literal values: another numpy, or another way of drawing, must not change a run that is resumed."""
    assert permutation(0, 0, 8).tolist() == [0, 2, 1, 5, 4, 3, 6, 7]
    assert permutation(7, 1, 8).tolist() == [3, 1, 6, 2, 5, 4, 0, 7]


def test_every_epoch_has_every_row_once_and_its_own_order() -> None:
    order = Order(103, batch=10, seed=3, epochs=2, max_steps=None)
    assert (order.steps, order.steps_per_epoch) == (22, 11)
    first = np.concatenate([order.numbers(step) for step in range(1, 12)])
    second = np.concatenate([order.numbers(step) for step in range(12, 23)])
    assert sorted(first) == sorted(second) == list(range(103))
    assert first.tolist() != second.tolist()
    assert len(order.numbers(11)) == 3  # the last, smaller batch is a step of its own
    assert [step for step in range(1, 23) if order.ends_epoch(step)] == [11, 22]


def test_steps_may_be_asked_in_any_order() -> None:
    forward = Order(50, batch=8, seed=1, epochs=3, max_steps=None)
    backward = Order(50, batch=8, seed=1, epochs=3, max_steps=None)
    rows = {step: backward.numbers(step).tolist() for step in range(backward.steps, 0, -1)}
    assert all(forward.numbers(step).tolist() == rows[step] for step in rows)
    assert forward.sha256(1) == backward.sha256(1) != forward.sha256(8)


@pytest.mark.parametrize(
    ("epochs", "max_steps", "steps"), [(1, None, 7), (0.5, None, 4), (3, 5, 5), (1, 99, 7), (0.001, None, 1)]
)
def test_the_end_is_epochs_or_max_steps_whichever_comes_first(
    epochs: float, max_steps: int | None, steps: int
) -> None:
    assert Order(50, batch=8, seed=0, epochs=epochs, max_steps=max_steps).steps == steps


def test_warm_up_in_steps_or_as_a_share() -> None:
    assert Schedule.of("cosine", 1.0, 100, 300).warmup == 100
    assert Schedule.of("cosine", 1.0, 0.03, 300).warmup == 9
    assert Schedule.of("cosine", 1.0, 0.031, 300).warmup == 10
    assert Schedule.of("cosine", 1.0, 0, 300).warmup == 0


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant"])
def test_the_rate_rises_to_its_peak_and_never_leaves_its_bounds(kind: str) -> None:
    schedule = Schedule.of(kind, 2e-4, 10, 50)  # type: ignore[arg-type]  # the literal's own test
    rates = [schedule.rate(step) for step in range(1, 51)]
    assert max(rates) == rates[9] == 2e-4
    assert rates[:10] == sorted(rates[:10]) and rates[0] == pytest.approx(2e-5)
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[-1] > 0 and (rates[-1] == 2e-4) == (kind == "constant")


def test_cosine_is_half_way_down_in_the_middle() -> None:
    schedule = Schedule("cosine", 1.0, 0, 99)
    assert schedule.rate(50) == pytest.approx(0.5)
    assert Schedule("linear", 1.0, 0, 99).rate(25) == pytest.approx(0.75)
