"""The fused engine's planner: tokens per micro-batch, what each layer recomputes, how many dense images are kept.

Arithmetic on config.json and row lengths, as `memory.py`; no torch. Numbers kept per token and layer (b bytes each;
rows are rounded up to 64 numbers where adapters have a tail behind them):

    x, x₂          2 H          q, k, v      Q + 2 K       o, log-sum-exp      Q, and 4 bytes a head
    gate, up       2 F          z            the ranks of the seven adapters

Levels give them up in the order none → qkv → gate_up → full, the first layers first: when their turn comes in the
backward, the later ones have let go of theirs. A quantised layer's dense image saves two passes of dequantising.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tunesmith.engine.memory import CPU_TOKENS, GIB, Budget, Shape, gib_of, no_room, some_steps
from tunesmith.engine.plan import MicroBatchPlan
from tunesmith.recipe import Recipe

LEVELS = ("none", "qkv", "gate_up", "full")
WORKSPACES = 0.12 * GIB  # cuBLAS and the like, dropout's factors, rows of gradients
CHUNK_ROWS = 1024  # of logits at a time, on a card
_ALIGNED, _ROW = 16, 64  # ranks are rounded up to the first, rows with a tail to the second
_GROUPS = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))
_ENOUGH = 16_384  # tokens at once, beyond which nothing gets faster
_SLACK = 1.02  # over the fullest micro-batch of the steps that were looked at
_DENSE_SHARE, _DENSE_LENGTH = (
    0.5,
    256,
)  # rows of one length: worth it from this share of all tokens, and this length
# seconds on an H200 (8B shape): a floating point operation, a token's elementwise work in a layer, a layer's launches,
# a byte of dense image; they only choose between plans
_PER_FLOP, _PER_TOKEN, _LAUNCHES, _PER_BYTE = 1 / 640e12, 0.35e-6, 2.0e-3, 1 / 2.4e12


@dataclass(frozen=True)
class FusedShape:
    """What of a model and a recipe decides how much memory and time a fused step takes."""

    shape: Shape
    adapted: frozenset[str]
    fp8: bool = False

    @classmethod
    def of(cls, config: Mapping[str, Any], recipe: Recipe, trained: int | None = None) -> FusedShape:
        """From config.json; a linear counts as adapted when any layer's is."""
        shape = Shape.of(config, recipe, trained=trained)
        return cls(shape, shape.adapted, recipe.train.fp8)

    @cached_property
    def _tails(self) -> tuple[int, ...]:
        """Ranks behind the rows of q,k,v · o · gate,up · down."""
        own = (sum(name in self.adapted for name in group) * self.shape.rank for group in _GROUPS)
        return tuple(-(-ranks // _ALIGNED) * _ALIGNED for ranks in own)

    def _row(self, width: int, group: int) -> int:
        """Bytes of a row of `width` numbers with the group's tail behind it."""
        tail = self._tails[group]
        return self.shape.bytes * (-(-(width + tail) // _ROW) * _ROW if tail else width)

    def _sizes(self, group: int) -> tuple[int, int]:
        linears = self.shape.linears
        return linears[_GROUPS[group][0]][0], sum(linears[name][1] for name in _GROUPS[group])

    def _image(self, group: int) -> int:
        into, out = self._sizes(group)
        return (out + self._tails[group]) * self._row(into, group)

    @cached_property
    def image(self) -> int:
        """Bytes of one layer's dense images."""
        return sum(self._image(group) for group in range(4))

    @cached_property
    def fp8_bytes(self) -> int:
        """Bytes of all layers' fp8 copies: each weight as it is and transposed, an fp32 scale a row of either."""
        if not self.fp8:
            return 0
        scales = 4 * sum(sum(self._sizes(group)) for group in range(4))
        return self.shape.layers * (2 * self.shape.layer_weights + scales)

    @property
    def quantised(self) -> bool:
        """Whether there are images to keep or to make."""
        return self.shape.quantize != "none"

    def always(self, images: int) -> float:
        """Bytes that are there whatever the batch."""
        shape, b = self.shape, self.shape.bytes
        if not self.quantised:
            weights = shape.layers * self.image + shape.outer_weights * b
            return weights + shape.state + self.fp8_bytes + WORKSPACES
        tails = sum(self._tails[g] * sum(self._sizes(g)) * b for g in range(4))
        made = 0 if images == shape.layers else max(self._image(group) for group in range(4))
        made += 6 * max(a * o for a, o in shape.linears.values()) if shape.quantize == "int8" else 0
        kept = images * self.image + (shape.layers - images) * tails
        return shape.weights + kept + made + shape.state + self.fp8_bytes + WORKSPACES

    @cached_property
    def _gate_up(self) -> int:
        return self._row(2 * self.shape.ffn, 2)

    @cached_property
    def _qkv(self) -> int:
        return self._row(self.shape.queries + 2 * self.shape.keys, 0)

    @cached_property
    def _attended(self) -> int:
        """o and its log-sum-exp."""
        return self.shape.bytes * self.shape.queries + 4 * self.shape.heads

    def kept(self, level: str) -> int:
        """Bytes per token that a layer leaves for its backward."""
        hidden = self.shape.bytes * self.shape.hidden
        own = hidden + self.shape.bytes * sum(self._tails)
        if level != "full":
            own += hidden + self._attended
        if level in ("none", "qkv"):
            own += self._gate_up
        return own + (self._qkv if level == "none" else 0)

    def per_token(self, levels: Sequence[str]) -> tuple[int, int]:
        """(bytes while the loss is computed, bytes at the worst layer of the backward)."""
        shape, b = self.shape, self.shape.bytes
        hidden = b * shape.hidden
        own = 2 * b * shape.queries // max(shape.heads, 1) + 64  # rotary tables, ids, positions, keys
        held = own
        worst = 0
        turned = b * (shape.queries + shape.keys) if shape.normed_heads else 0
        feed_forward = b * shape.ffn + 4 * self._row(shape.hidden, 1) + (2 * shape.ffn if self.fp8 else 0)
        attention = (
            self._row(shape.hidden, 1) + turned + b * (4 * shape.queries + 2 * shape.keys) + 4 * shape.queries
        )
        for level in levels:
            held += self.kept(level)
            again = self.kept("none") - self.kept(level)
            # gate, up and x₂ are gone when attention's turn comes
            later = held + again - self._gate_up - hidden + attention
            worst = max(worst, held + again + feed_forward + (hidden if level != "none" else 0), later)
        return held + 5 * hidden, worst

    def peak(self, tokens: int, levels: Sequence[str], images: int) -> float:
        """Predicted bytes in torch's allocator."""
        loss, backward = self.per_token(levels)
        chunk = min(CHUNK_ROWS, tokens) * self.shape.vocabulary * self.shape.bytes
        return self.always(images) + max(chunk + tokens * loss, tokens * backward)

    def fits(self, budget: float, levels: Sequence[str]) -> int:
        """The most tokens within `budget` bytes, no image kept; 0 when there is no room at all."""
        loss, backward = self.per_token(levels)
        left = budget - self.always(0)
        chunk = CHUNK_ROWS * self.shape.vocabulary * self.shape.bytes
        return max(0, min(int((left - chunk) // loss), int(left // backward)))

    def seconds(self, tokens: int, levels: Sequence[str], images: int = 0) -> float:
        """Rough time of one micro-batch, to compare plans with."""
        linears = self.shape.linears
        weights = {name: a * o for name, (a, o) in linears.items()}
        flops = 4 * self.shape.layers * self.shape.layer_weights
        qkv, gate_up = (sum(weights[name] for name in _GROUPS[g]) for g in (0, 2))
        passes = 2 * self.shape.layers
        for level in levels:
            flops += 2 * qkv * (level != "none") + 2 * gate_up * (level in ("gate_up", "full"))
            flops += 2 * weights["o_proj"] * (level == "full")
            passes += {"none": 0.0, "qkv": 0.1, "gate_up": 0.7, "full": 0.8}[level]  # type: ignore[assignment]
        computing = tokens * (flops * _PER_FLOP + self.shape.layers * _PER_TOKEN)
        making = 0.0
        if self.quantised and not self.fp8:
            share = passes * (self.shape.layers - images) / self.shape.layers
            making = share * self.shape.layer_weights * self.shape.bytes * _PER_BYTE
        return max(computing, self.shape.layers * _LAUNCHES) + making


def ladder(layers: int, recompute: str) -> list[tuple[str, ...]]:
    """The level of each layer, from all kept to all computed again."""
    if recompute != "auto":
        return [(recompute,) * layers]
    steps = [(rung, upto) for rung in range(len(LEVELS) - 1) for upto in range(layers)]
    found = [(LEVELS[rung + 1],) * upto + (LEVELS[rung],) * (layers - upto) for rung, upto in steps]
    return [*found, (LEVELS[-1],) * layers]


def make_fused_plan(fused: FusedShape, budget: Budget, lengths: Sequence[int]) -> MicroBatchPlan:
    """The fastest plan within the budget; raises OutOfRoom when the longest row (or `micro_batch` rows) can't fit."""
    longest = sorted(lengths, reverse=True)[: budget.rows or 1]
    needed = sum(longest)
    largest = sum(sorted(lengths, reverse=True)[: budget.batch])  # no step can hold more
    choices = ladder(fused.shape.layers, budget.recompute)
    if budget.usable is None:
        tokens = max(CPU_TOKENS, needed)
        return _plan(fused, budget, lengths, tokens, choices[0], "a CPU: a fixed number of tokens")
    enough = max(_ENOUGH, needed)
    room = {levels: min(fused.fits(budget.usable, levels), enough, largest) for levels in choices}
    possible = [levels for levels in choices if room[levels] >= needed]
    if not possible:
        raise no_room(fused.shape, budget, fused.peak(needed, choices[-1], 0), needed)
    if budget.rows is not None:
        return _plan(fused, budget, lengths, needed, possible[0], "train.micro_batch is given")
    steps = some_steps(lengths, budget.batch)

    def sums(levels: tuple[str, ...]) -> list[int]:
        trial = MicroBatchPlan(tokens=room[levels], rows=None, recompute=())
        return [sum(step[i] for i in part) for step in steps for part in trial.split(step)]

    def cost(levels: tuple[str, ...]) -> float:
        return sum(fused.seconds(tokens, levels) for tokens in sums(levels))

    costs = {levels: cost(levels) for levels in possible}
    best = min(possible, key=lambda levels: (costs[levels], choices.index(levels)))
    tokens = room[best]
    if tokens >= largest:
        return _plan(fused, budget, lengths, tokens, best, "all rows of a step at once")
    why = "more tokens at once gain nothing" if tokens == enough else "as many as there is room for"
    # rows don't fill a micro-batch to the brim: the room that would stay empty is better spent on dense weights
    tokens = max(needed, min(tokens, int(max(sums(best)) * _SLACK)))
    return _plan(fused, budget, lengths, tokens, best, why)


def _plan(
    fused: FusedShape, budget: Budget, lengths: Sequence[int], tokens: int, levels: Sequence[str], why: str
) -> MicroBatchPlan:
    images, gib = 0, None
    if budget.usable is not None:
        while (
            fused.quantised
            and not fused.fp8  # steps read the fp8 copies
            and images < fused.shape.layers
            and fused.peak(tokens, levels, images + 1) <= budget.usable
        ):
            images += 1
        gib = gib_of(fused.peak(tokens, levels, images))
    size = f"{budget.rows} rows" if budget.rows else f"up to {tokens:,} tokens"
    again = Counter(level for level in levels if level != "none")
    parts = [size + " in a micro-batch"]
    parts += [f"{count} of {len(levels)} layers recompute {_said(level)}" for level, count in again.items()]
    parts += [] if again else ["no layer recomputes"]
    parts += [f"{images} of {len(levels)} layers keep their dense weights"] if images else []
    parts += [f"{gib:.1f} of {budget.total_gib:.1f} GiB"] if gib is not None else []
    return MicroBatchPlan(
        tokens=None if budget.rows else tokens,
        rows=budget.rows,
        recompute=tuple(levels),
        gib=None if gib is None else round(gib, 2),
        note=f"{', '.join(parts)} ({why})",
        images=images,
        dense=_dense(lengths),
    )


def _said(level: str) -> str:
    return {"qkv": "q, k, v", "gate_up": "q, k, v, gate, up", "full": "everything"}[level]


def _dense(lengths: Sequence[int]) -> int | None:
    """The length that most tokens stand in rows of, where that is worth kernels of its own."""
    length, count = Counter(int(n) for n in lengths).most_common(1)[0]
    worth = length >= _DENSE_LENGTH and length * count >= _DENSE_SHARE * sum(lengths)
    return length if worth else None
