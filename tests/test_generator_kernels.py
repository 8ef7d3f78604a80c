"""A generator's kernels against their plain references, alone and together; where: as in `test_fused_kernels`."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from test_fused_kernels import DEVICE, TYPES, both, close, distance, draw, pytestmark  # noqa: F401
from test_lean import apart_on, model_of
from test_slots import draws, in_order, prompts
from torch import Tensor

from tunesmith.generate import cache, decoder
from tunesmith.generate.lean import LeanForward, their_forward
from tunesmith.generate.protocol import Decoding
from tunesmith.generate.slots import SlotGenerator
from tunesmith.kernels.kernel_set import Kernels


@pytest.fixture(scope="module")
def triton_set() -> Kernels:
    from tunesmith.kernels.on_gpu import TRITON

    return TRITON


@pytest.mark.parametrize("kind", TYPES, ids=str)
@pytest.mark.parametrize("heads", [32, 5, 1])
@pytest.mark.parametrize("width", [16, 24])
@pytest.mark.parametrize("normed", [True, False])
def test_in_place_as_a_generator_calls_them(
    triton_set: Kernels, kind: torch.dtype, heads: int, width: int, normed: bool
) -> None:
    angles = torch.rand(5, width // 2).to(DEVICE).repeat(1, 2)
    norms = draw(heads, width, kind=kind, seed=9) if normed else None

    def rotate() -> list[Any]:
        x = draw(5, heads * width, kind=kind, tail=3)
        return [x, angles.cos().to(kind), angles.sin().to(kind), norms, 1e-5, heads, x]

    def norm() -> list[Any]:
        x = draw(5, heads * width, kind=kind)
        delta, out = (draw(5, heads * width, kind=kind, seed=n) for n in (1, 2))
        return [x, delta, draw(heads * width, kind=kind, seed=3), 1e-5, x, out]

    def swiglu() -> list[Any]:
        gate, up = (draw(5, heads * width, kind=kind, tail=n, seed=n) for n in (0, 3))
        return [gate, up, gate]

    pairs = both(triton_set, "rotate", rotate, [0]) + both(triton_set, "norm", norm, [0, 5])
    pairs += both(triton_set, "swiglu", swiglu, [0])
    assert all(distance(*pair) < close(kind) for pair in pairs)


@pytest.mark.parametrize("kind", TYPES, ids=str)
@pytest.mark.parametrize("heads", [1, 3, 8])
@pytest.mark.parametrize("width", [16, 24])
@pytest.mark.parametrize("flat", [True, False])
def test_slot_write(triton_set: Kernels, kind: torch.dtype, heads: int, width: int, flat: bool) -> None:
    """Tokens of a stream in any order of slots; k and v as products leave them, or strided otherwise."""
    slots, places = (torch.tensor(x, device=DEVICE) for x in ([2, 0, 0, 3, 2], [6, 0, 1, 3, 5]))

    def write() -> list[Any]:
        shape = (5, heads, width) if flat else (heads, 5, width)
        k, v = (draw(*shape, kind=kind, seed=n, tail=n) for n in (0, 4))
        k, v = (k, v) if flat else (k.transpose(0, 1), v.transpose(0, 1))
        cached = [draw(4, heads, 7, width, kind=kind, seed=n).contiguous() for n in (5, 6)]
        return [k, v, slots, places, *cached]

    for found, told in both(triton_set, "slot_write", write, [4, 5]):
        assert torch.equal(found, told)
    # a place behind the cache: the next slot's memory stays as it is
    outside = write()
    outside[3] = places + 3
    before = outside[4].clone()
    triton_set.slot_write(*outside)
    assert torch.equal(outside[4][1], before[1]) and torch.equal(outside[4][3, :, :6], before[3, :, :6])
    assert not torch.equal(outside[4][0], before[0])


@pytest.mark.parametrize("kind", TYPES, ids=str)
@pytest.mark.parametrize("heads, width", [((4, 2), 16), ((5, 5), 24), ((8, 1), 64)])
@pytest.mark.parametrize("splits", [None, 1, 4])
@pytest.mark.parametrize("window", [None, 70])
def test_decode_attention(
    kind: torch.dtype, heads: tuple[int, int], width: int, splits: int | None, window: int | None
) -> None:
    """Each slot against torch's attention over its own cached tokens; what lies behind them is no number."""
    from tunesmith.kernels.decode_attention import decode_attention

    positions = torch.tensor([0, 1, 63, 64, 150, 199], device=DEVICE)
    q = draw(6, heads[0], width, kind=kind)
    keys, values = draw(6, heads[1], 200, width, kind=kind), draw(6, heads[1], 200, width, kind=kind, seed=1)
    for slot, place in enumerate(positions.tolist()):
        keys[slot, :, place + 1 :] = values[slot, :, place + 1 :] = float("nan")

    def told(shift: int) -> Tensor:
        made = []
        for slot, place in enumerate(positions.tolist()):
            begin = max(0, place + 1 - (window or 1000))
            k, v = (x[slot, :, begin : place + 1 + min(shift, 0)] for x in (keys, values))
            k, v = (x.double().repeat_interleave(heads[0] // heads[1], 0) for x in (k, v))
            weights = (q[slot, :, None].double() @ k.transpose(1, 2) * 0.3).softmax(-1)
            made.append((weights @ v)[:, 0])
        return torch.stack(made)

    found = decode_attention(q, keys, values, positions, 0.3, window, splits)
    assert distance(found, told(0)) < close(kind)
    assert distance(found[2:], told(-1)[2:]) > 10 * close(kind)  # a token short


@pytest.mark.parametrize(
    "case", ["llama, biases everywhere", "llama, yarn", "mistral, window", "qwen2, windows", "qwen3"]
)
def test_the_lean_pass_on_triton(triton_set: Kernels, case: str) -> None:
    """Whole models, fp32, with these kernels against transformers' own layers."""
    model = model_of(case).to(DEVICE)
    found = LeanForward(model, triton_set)
    assert apart_on(model, found) < 5e-5
    found.layers[1].kernels = dataclasses.replace(triton_set, norm=_forgets_the_sum(triton_set))
    assert apart_on(model, found) > 1e-3


def _forgets_the_sum(kernels: Kernels) -> Any:
    """A mutant: the residual stream stays as it was."""
    return lambda x, delta, weight, eps, total, out: kernels.norm(
        x, delta, weight, eps, torch.empty_like(x), out
    )


def test_answers_by_all_of_them(triton_set: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lean pass, keys and values into their slots, and attention over these: a few answers in fp32."""
    model = model_of("qwen2").to(DEVICE)

    def answers() -> Any:
        generator = SlotGenerator(model, slots=2)
        return draws(in_order(generator.generate(prompts()[3:6], Decoding(max_tokens=4), frozenset())))

    with monkeypatch.context() as changed:
        changed.setattr(decoder, "forward_of", their_forward)
        told = answers()
    monkeypatch.setattr(cache, "kernels_for", lambda device: triton_set)
    monkeypatch.setattr(decoder, "forward_of", lambda model: LeanForward(model, triton_set))
    assert answers() == told
    lost = dataclasses.replace(triton_set, slot_write=lambda *arguments: None)
    monkeypatch.setattr(cache, "kernels_for", lambda device: lost)
    assert answers() != told
