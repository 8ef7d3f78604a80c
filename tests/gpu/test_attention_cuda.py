"""The flash varlen path on a card against the fp32 per-document reference, forward and backward."""

from __future__ import annotations

import itertools

import pytest
import torch

from tunesmith.generate.cache import Decode, SlotCache
from tunesmith.model.attention import Packed

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")]
LENGTHS = [300, 1, 17, 128, 513]


def run(packed: Packed, tensors: list[torch.Tensor], window: int | None) -> list[torch.Tensor]:
    """Output [T, H, D] and the gradients of q, k and v, in fp32."""
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    q, k, v = (x.transpose(0, 1)[None] for x in leaves)
    output = packed.attend(0, q, k, v, q.shape[-1] ** -0.5, window)[0]
    torch.manual_seed(1)
    output.backward(torch.randn(output.shape, device=output.device).half().to(output.dtype))
    return [output.detach().float(), *(x.grad.float() for x in leaves if x.grad is not None)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("heads", [(8, 8), (8, 2)])
@pytest.mark.parametrize("window", [None, 100])
def test_flash_equals_reference(
    dtype: torch.dtype, head_dim: int, heads: tuple[int, int], window: int | None
) -> None:
    torch.manual_seed(0)
    edges = [0, *itertools.accumulate(LENGTHS)]
    packed = Packed(torch.tensor(edges, dtype=torch.int32, device="cuda"), max(LENGTHS))
    count, shared = heads
    tensors = [torch.randn(edges[-1], n, head_dim, device="cuda").to(dtype) for n in (count, shared, shared)]
    reference = run(packed, [x.float() for x in tensors], window)
    flash = run(packed, tensors, window)
    rounded = [x.to(dtype).float() for x in reference]
    for name, fast, exact, floor in zip(("output", "dq", "dk", "dv"), flash, reference, rounded, strict=True):
        error, unit = (fast - exact).norm() / exact.norm(), (floor - exact).norm() / exact.norm()
        assert error < 5 * unit, f"{name}: {error:.2e}, rounding alone {unit:.2e}"


def test_mutants_are_caught() -> None:
    """Documents run together, or a window one too wide, are far beyond the limit above."""
    torch.manual_seed(0)
    edges = [0, *itertools.accumulate(LENGTHS)]
    tensors = [torch.randn(edges[-1], n, 64, device="cuda").bfloat16() for n in (8, 2, 2)]
    packed = Packed(torch.tensor(edges, dtype=torch.int32, device="cuda"), max(LENGTHS))
    merged = Packed(torch.tensor([0, edges[-1]], dtype=torch.int32, device="cuda"), edges[-1])
    for right, wrong in (
        (run(packed, tensors, None), run(merged, tensors, None)),
        (run(packed, tensors, 10), run(packed, tensors, 11)),
    ):
        assert all((a - b).norm() / a.norm() > 0.05 for a, b in zip(right, wrong, strict=True))


def test_slot_decode_equals_packed() -> None:
    """Decode over the cache on a card, fp32: the same attention as the last row of each document."""
    torch.manual_seed(0)
    edges = [0, *itertools.accumulate(LENGTHS)]
    packed = Packed(torch.tensor(edges, dtype=torch.int32, device="cuda"), max(LENGTHS))
    q, k, v = (torch.randn(1, n, edges[-1], 64, device="cuda") for n in (8, 2, 2))
    for window in (None, 100):
        expected = packed.attend(0, q, k, v, 0.125, window)[:, [edge - 1 for edge in edges[1:]]]
        cache = SlotCache(1, len(LENGTHS), 2, 600, 64, torch.float32, torch.device("cuda"))
        for slot, (start, end) in enumerate(itertools.pairwise(edges)):
            cache.keys[0][slot, :, : end - start] = k[0, :, start:end]
            cache.values[0][slot, :, : end - start] = v[0, :, start:end]
        last = [edge - 1 for edge in edges[1:]]
        decode = Decode(cache, torch.tensor(LENGTHS, device="cuda") - 1)
        result = decode.attend(0, q[:, :, last], k[:, :, last], v[:, :, last], 0.125, window)
        assert (result - expected).abs().max() < 1e-4
