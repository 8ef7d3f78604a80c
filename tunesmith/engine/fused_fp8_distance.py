"""How far the products of fp8 steps are from the exact ones, layer by layer: what tells rounding from a fault.

Whole gradients would not: a deep model may magnify rounding to any size, and leaves other layers' faults nearly unseen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from tunesmith.engine.fused import FusedEngine
from tunesmith.engine.fused_stream import Stream, with_tail
from tunesmith.engine.fused_weights import Projection

_ROWS = 16
_DECADES = 4  # either way, over which the rows' sizes are spread


@torch.no_grad()
def product_errors(engine: FusedEngine) -> Iterator[tuple[str, float]]:
    """(name, relative distance, root mean square over rows) of each product, adapters included, both ways."""
    for number, layer in enumerate(engine.layers):
        for group, projection in enumerate(layer.projections):
            for way, error in zip(("forward", "backward"), _of_projection(projection), strict=True):
                yield f"layer {number}, {('qkv', 'o', 'gate_up', 'down')[group]}, {way}", error


def _of_projection(projection: Projection) -> tuple[float, float]:
    like = projection.b_NR
    nothing = like.new_empty(0)
    exact = Stream(nothing, 0, nothing, nothing, None, None)
    streams = (replace(exact, fp8=True), exact)
    generator = torch.Generator(like.device).manual_seed(0)
    x_TK, d_TN = (_rows(width, projection.tail, like, generator) for width in (projection.K, projection.N))
    ahead = [projection.forward(x_TK[:, : projection.K], stream)[0] for stream in streams]
    back = [projection.input_gradient(d_TN, stream) for stream in streams]
    return _apart(*ahead), _apart(*back)


def _rows(width: int, tail: int, like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Rows of very different sizes: each keeps a scale of its own."""
    rows = with_tail(_ROWS, width, tail, like)
    sizes = 10 ** torch.linspace(-_DECADES, _DECADES, _ROWS, device=like.device)
    rows[:, :width] = torch.randn(_ROWS, width, generator=generator, device=like.device) * sizes[:, None]
    return rows


def _apart(found: torch.Tensor, told: torch.Tensor) -> float:
    found, told = found.double(), told.double()
    each = (found - told).norm(dim=1) / told.norm(dim=1).clamp(min=1e-300)
    return float(each.square().mean().sqrt())
