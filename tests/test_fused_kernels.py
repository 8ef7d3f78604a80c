"""Each Triton kernel against its plain reference, on a card or through Triton's interpreter (TRITON_INTERPRET=1)."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_engine_exact import distance as gap
from test_engine_exact import engine, total
from torch import Tensor

from tunesmith.engine.fused import FusedEngine
from tunesmith.kernels.chosen import has_triton
from tunesmith.kernels.kernel_set import Drops, Kernels
from tunesmith.kernels.plain import PLAIN

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.skipif(
    not has_triton() or not (INTERPRETED or DEVICE == "cuda"),
    reason="needs triton and a card, or TRITON_INTERPRET=1",
)
TYPES = [torch.float32, torch.bfloat16] if DEVICE == "cuda" else [torch.float32]


@pytest.fixture(scope="module")
def triton_set() -> Kernels:
    from tunesmith.kernels.on_gpu import TRITON

    return TRITON


def draw(*shape: int, kind: torch.dtype = torch.float32, tail: int = 0, seed: int = 0) -> Tensor:
    """Random numbers in rows that may be followed by a tail."""
    generator = torch.Generator().manual_seed(seed + sum(shape))
    whole = torch.randn(*shape[:-1], shape[-1] + tail, generator=generator).to(DEVICE, kind)
    return whole[..., : shape[-1]]


def distance(found: Tensor, told: Tensor) -> float:
    assert found.shape == told.shape and bool(torch.isfinite(found).all())
    return float((found.double() - told.double()).norm() / told.double().norm())


def close(kind: torch.dtype) -> float:
    return 1e-5 if kind == torch.float32 else 6e-3


def both(
    kernels: Kernels, name: str, make: Callable[[], list[Any]], results: list[int]
) -> list[tuple[Tensor, Tensor]]:
    """The arguments `results` after a call of both sets on equal arguments, plus what both returned."""
    theirs, ours = make(), make()
    told, found = getattr(PLAIN, name)(*theirs), getattr(kernels, name)(*ours)
    pairs = [(ours[i], theirs[i]) for i in results]
    return [*pairs, (found, told)] if isinstance(told, Tensor) else pairs


@pytest.mark.parametrize("kind", TYPES, ids=str)
@pytest.mark.parametrize("width", [64, 96])
@pytest.mark.parametrize("adds", [True, False])
def test_norm(triton_set: Kernels, kind: torch.dtype, width: int, adds: bool) -> None:
    def forward() -> list[Any]:
        delta, total = (draw(5, width, kind=kind, tail=8, seed=1), draw(5, width, seed=2, kind=kind))
        x = draw(5, width, kind=kind)
        return [
            x,
            delta if adds else None,
            draw(width, kind=kind),
            1e-5,
            total if adds else None,
            draw(5, width, kind=kind, tail=4),
        ]

    def backward() -> list[Any]:
        out, again = draw(5, width, kind=kind, tail=2), draw(5, width, kind=kind, seed=7, tail=4)
        add = draw(5, width, kind=kind, seed=5) if adds else None
        return [
            draw(5, width, kind=kind, seed=3),
            draw(5, width, kind=kind, seed=4),
            draw(width, kind=kind),
            1e-5,
            add,
            out,
            again,
        ]

    pairs = both(triton_set, "norm", forward, [4, 5] if adds else [5])
    pairs += both(triton_set, "norm_backward", backward, [5, 6])
    assert all(distance(*pair) < close(kind) for pair in pairs)


def test_norm_is_the_gradient(triton_set: Kernels) -> None:
    """The backward against autograd of the forward's formula, so that no common mistake passes."""
    x, d, weight = draw(6, 64).requires_grad_(), draw(6, 64, seed=1), draw(64)
    (weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)).backward(d)
    out = torch.empty_like(d)
    triton_set.norm_backward(d, x.detach(), weight, 1e-5, None, out, None)
    assert x.grad is not None and distance(out, x.grad) < 1e-5


def test_norm_again_alone(triton_set: Kernels) -> None:
    """The lowest layer wants its norm a second time and no gradient."""
    x, weight = draw(5, 64), draw(64)
    pairs = both(triton_set, "norm_backward", lambda: [None, x, weight, 1e-5, None, None, draw(5, 64)], [6])
    assert distance(*pairs[0]) < 1e-5


@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_swiglu(triton_set: Kernels, kind: torch.dtype) -> None:
    pairs = both(
        triton_set,
        "swiglu",
        lambda: [*draw(5, 192, kind=kind, tail=8).chunk(2, dim=1), draw(5, 96, kind=kind, tail=4)],
        [2],
    )
    pairs += both(
        triton_set,
        "swiglu_backward",
        lambda: [draw(5, 192, kind=kind, tail=8), draw(5, 96, kind=kind)],
        [0, 1],
    )
    assert all(distance(*pair) < close(kind) for pair in pairs)


@pytest.mark.parametrize("kind", TYPES, ids=str)
@pytest.mark.parametrize("heads", [(4, 2), (3, 1)])
@pytest.mark.parametrize("width", [16, 24])
@pytest.mark.parametrize("normed", [True, False])
def test_rotate(
    triton_set: Kernels, kind: torch.dtype, heads: tuple[int, int], width: int, normed: bool
) -> None:
    many, few = heads
    angles = torch.rand(5, width // 2).to(DEVICE).repeat(1, 2)
    norms = draw(many + few, width, kind=kind, seed=9) if normed else None

    def forward() -> list[Any]:
        qkv = draw(5, (many + 2 * few) * width, kind=kind, tail=8)
        out = torch.zeros(5, (many + few) * width, device=DEVICE, dtype=kind)
        return [qkv, angles.cos().to(kind), angles.sin().to(kind), norms, 1e-5, many + few, out]

    def backward() -> list[Any]:
        d = [draw(5, n, width, kind=kind, seed=n) for n in (many, few, few)]
        qkv = draw(5, (many + 2 * few) * width, kind=kind, tail=8)
        return [*d, angles.cos().to(kind), angles.sin().to(kind), norms, 1e-5, qkv]

    pairs = both(triton_set, "rotate", forward, [6]) + both(triton_set, "rotate_backward", backward, [7])
    assert all(distance(*pair) < close(kind) for pair in pairs)


@pytest.mark.parametrize("kind", TYPES, ids=str)
@pytest.mark.parametrize("vocabulary", [96, 8200])
def test_cross_entropy(triton_set: Kernels, kind: torch.dtype, vocabulary: int) -> None:
    targets = torch.tensor([0, vocabulary - 1, 7], device=DEVICE)
    pairs = both(
        triton_set, "cross_entropy", lambda: [draw(3, vocabulary, kind=kind) * 3, targets, 0.125], [0]
    )
    assert all(distance(*pair) < close(kind) for pair in pairs)


SHARED = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from tunesmith.kernels import lora

def shared(kernel, kinds, rank, stages):
    sizes = {"RANK": rank, "WIDE": lora._wide(rank), "COUNT": 3, "TOKENS": 64, "BLOCK": lora._BLOCK}
    names = [name for name in kernel.arg_names if name not in sizes]
    types = {name: kinds.get(name, "fp32" if name == "scale" else "i32") for name in names}
    odd = ("scale", "tokens", "threshold")
    even = [n for n, name in enumerate(kernel.arg_names) if name in types and name not in odd]
    source = ASTSource(
        fn=kernel, signature=types | dict.fromkeys(sizes, "constexpr"), constexprs=sizes,
        attrs={(n,): [["tt.divisibility", 16]] for n in even},
    )
    options = {"num_warps": 4, "num_stages": stages}
    return triton.compile(source, target=GPUTarget("cuda", 89, 32), options=options).metadata.shared

half, whole = "*bf16", "*i32"
down = {"x": half, "a": half, "keys": whole, "factors": whole, "out": half}
outer = {"d": half, "x": half, "keys": whole, "factors": whole, "parts": "*fp32"}
for rank in (16, 64):
    stages = lora._stages(64, rank, 3, 2)
    print(shared(lora._down, down, rank, stages), shared(lora._outer, outer, rank, stages))
print(shared(lora._down, down, 64, 3))
"""


def test_programs_fit_into_smaller_cards(tmp_path: Path) -> None:
    """An L4, an RTX 4090 or an A10 has 99 KiB of shared memory for a program: compiled for one, no card needed."""
    script = tmp_path / "shared.py"
    script.write_text(SHARED)
    plain = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    plain |= {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_DEFAULT_FP_FUSION": "1"}
    found = subprocess.run([sys.executable, script], env=plain, check=True, capture_output=True, text=True)
    bytes_ = [int(word) for word in found.stdout.split()]
    assert max(bytes_[:4]) <= 99 * 1024 < bytes_[4]  # the last one: three stages whatever the rank


@pytest.mark.parametrize("kind", TYPES, ids=str)
@pytest.mark.parametrize("count, rank", [(1, 16), (2, 8), (3, 4), (2, 80)])
def test_lora(triton_set: Kernels, kind: torch.dtype, count: int, rank: int) -> None:
    tokens, width = 70, 136
    generator = torch.Generator().manual_seed(1)
    keys = torch.randint(-(2**31), 2**31, (tokens,), generator=generator, dtype=torch.int64).int() | 1
    factors = torch.randint(-(2**31), 2**31, (count, width), generator=generator, dtype=torch.int64).int() | 1
    ranks = tuple(g * rank for g in range(count + 1))
    drops = Drops(keys.to(DEVICE), factors.to(DEVICE), round(0.3 * 2**32) - 2**31, ranks)
    a, x, d = (
        draw(ranks[-1], width, kind=kind, tail=3),
        draw(tokens, width, kind=kind, tail=6),
        draw(tokens, ranks[-1], kind=kind),
    )
    pairs = both(
        triton_set, "lora_down", lambda: [x, a, drops, 0.5, draw(tokens, ranks[-1] + 8, kind=kind)], [4]
    )
    pairs += both(triton_set, "lora_up", lambda: [d, a, drops, draw(tokens, width, kind=kind)], [3])
    pairs += both(triton_set, "lora_outer", lambda: [d, x, drops], [])
    assert all(distance(*pair) < close(kind) for pair in pairs)
    other = Drops(drops.keys_T, drops.factors_GK.roll(1, 1).contiguous(), drops.threshold, ranks)
    mutant = draw(tokens, ranks[-1] + 8, kind=kind)
    triton_set.lora_down(x, a, other, 0.5, mutant)
    assert distance(mutant, pairs[0][1]) > 0.1


def test_nf4_image(triton_set: Kernels) -> None:
    """Bit for bit the numbers of bitsandbytes, in a strided image."""
    from tunesmith.model.weights import Nf4

    weight = Nf4.quantize(draw(96, 320))
    for kind in TYPES:  # the interpreter cuts to bf16 where it should round
        image = draw(96, 320, kind=kind, tail=48)
        assert triton_set.nf4_image is not None
        triton_set.nf4_image(
            weight.packed, weight.absmax, weight.nested_absmax, weight.nested_code, weight.offset, image
        )
        assert torch.equal(image, weight.dequantize(kind))


@pytest.mark.parametrize("kind", TYPES, ids=str)
@pytest.mark.parametrize("width, at_once", [(64, 64), (130, 256), (130, 64)])
def test_rows_in_8_bits(
    triton_set: Kernels, kind: torch.dtype, width: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit up to the cast, which torch does here: Triton's interpreter gets it wrong now and then."""
    from tunesmith.kernels import fp8

    monkeypatch.setattr(fp8, "_WHOLE", at_once)
    x = draw(7, width, kind=kind, tail=8)
    x[2], x[3], x[4] = 0, x[3] * 1e-20, x[4] * 1e20
    stretched = torch.empty(7, width, device=DEVICE)
    scales = fp8.stretch_rows(x, stretched)
    told, expected = PLAIN.quantise_rows(x)
    assert torch.equal(scales, expected)
    assert torch.equal(stretched.to(told.dtype).view(torch.uint8), told.view(torch.uint8))


@pytest.mark.parametrize("kind, dropout", [("llama", 0.1), ("qwen2", 0.0), ("qwen3", 0.1)])
def test_the_engine_on_triton(
    triton_set: Kernels, kind: str, dropout: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole steps of the engine, fp32, with these kernels against the reference engine."""
    if DEVICE == "cuda":
        pytest.skip("tests/gpu compares engines on a card")
    some = [[0, 4, 7]]  # the interpreter takes its time for each token
    told = total(engine(kind, dtype=torch.float32, dropout=dropout), some)
    plain = engine(kind, dtype=torch.float32, dropout=dropout)
    monkeypatch.setattr("tunesmith.engine.fused.kernels_for", lambda device: triton_set)
    fused = FusedEngine(plain.model, plain.recipe)
    assert gap(total(fused, some), told) < 1e-5
    broken = dataclasses.replace(triton_set, swiglu_backward=_swiglu_of_ones)
    fused.kernels = broken
    for layer in fused.layers:
        layer.kernels = broken
    assert gap(total(fused, some), told) > 1e-3


def _swiglu_of_ones(gate_up_TF: Tensor, d_TF: Tensor) -> None:
    """A mutant: as if the gate were linear."""
    gate, up = (part.clone() for part in gate_up_TF.chunk(2, dim=-1))
    back = d_TF.clone()
    PLAIN.swiglu_backward(gate_up_TF, d_TF)
    gate_up_TF[:, : gate.shape[1]] = back * up
