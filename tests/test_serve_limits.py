"""Admission: who is let in, who is told to come back, and when."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import pytest

from tunesmith.serve.limits import CLIENT, Admission, Limits
from tunesmith.serve.protocol import Busy, Unservable


@dataclass
class Engine:
    """As much of an engine as admission asks."""

    slots: int = 2
    room: int = 100


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def fill(
    admission: Admission, stack: contextlib.ExitStack, *entries: tuple[int, int], live: Any = None
) -> None:
    for requests, tokens in entries:
        stack.enter_context(admission.entered(requests, tokens, live))


def refused(admission: Admission, requests: int, tokens: int, live: Any = None) -> int:
    with pytest.raises(Busy) as caught, admission.entered(requests, tokens, live):
        raise AssertionError("was let in")
    return caught.value.seconds


def test_no_more_than_the_limits_are_in() -> None:
    admission = Admission(Limits(requests=4, tokens=100))
    with contextlib.ExitStack() as inside:
        fill(admission, inside, (1, 10), (2, 50))
        assert (admission.requests, admission.tokens) == (3, 60)
        refused(admission, 2, 10)
        refused(admission, 1, 41)
        fill(admission, inside, (1, 40))
        refused(admission, 1, 0)
    assert (admission.requests, admission.tokens) == (0, 0)


def test_an_error_inside_frees_the_place() -> None:
    admission = Admission(Limits(requests=1))
    with pytest.raises(ValueError), admission.entered(1, 1):  # noqa: PT011
        raise ValueError
    with admission.entered(1, 1):
        pass


def test_what_never_fits_is_not_told_to_wait() -> None:
    admission = Admission(Limits(requests=4, tokens=100, cache_fulls=1))
    for requests, tokens, live in ((5, 1, None), (1, 101, None), (1, 60, Engine(slots=1, room=50))):
        with pytest.raises(Unservable), admission.entered(requests, tokens, live):  # type: ignore[arg-type]
            pass
    assert admission.requests == 0


def test_tokens_are_counted_against_what_each_engine_holds() -> None:
    """Two slots of 100 tokens, three caches full: 600 tokens of one engine, whatever another holds."""
    admission, small, large = Admission(Limits(cache_fulls=3)), Engine(), Engine(slots=8)
    with contextlib.ExitStack() as inside:
        fill(admission, inside, *[(1, 100)] * 6, live=small)
        refused(admission, 1, 1, small)
        fill(admission, inside, *[(1, 100)] * 24, live=large)
        refused(admission, 1, 1, large)
    with admission.entered(1, 100, small):  # type: ignore[arg-type]
        pass


def test_one_client_does_not_take_all_places() -> None:
    admission = Admission(Limits(requests=4, client_requests=3))
    with contextlib.ExitStack() as inside:
        CLIENT.set("a")
        fill(admission, inside, (3, 1))
        refused(admission, 1, 1)
        CLIENT.set("b")
        fill(admission, inside, (1, 1))
        refused(admission, 1, 1)  # now all are taken
    assert admission._clients == {} and admission._engines == {}


def test_the_wait_is_what_the_pace_of_the_last_minute_makes_it() -> None:
    clock = Clock()
    admission = Admission(Limits(requests=10, tokens=1000), clock)
    with contextlib.ExitStack() as inside:
        fill(admission, inside, *[(1, 100)] * 10)
        clock.now += 7
        assert refused(admission, 1, 1) == 7  # nothing is finished yet: as long as it has lasted
        inside.pop_all().close()
    with contextlib.ExitStack() as inside:  # two requests of 100 tokens a second for 30 seconds
        fill(admission, inside, *[(1, 100)] * 8)
        for _ in range(60):
            with admission.entered(1, 100):
                clock.now += 0.5
        fill(admission, inside, (1, 100), (1, 100))
        assert refused(admission, 6, 1) == 3  # six places at two a second
        assert refused(admission, 1, 1000) == 5  # 1,000 tokens at 200 a second
        clock.now += 600
        assert 1 <= refused(admission, 1, 1) <= 120  # the pace is forgotten
    fresh = Admission(Limits(requests=1), clock)
    with fresh.entered(1, 1):
        assert refused(fresh, 1, 1) == 1
