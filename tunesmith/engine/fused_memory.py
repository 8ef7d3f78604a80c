"""The fused engine's planner: tokens per micro-batch, what each layer recomputes, how many dense images are kept.

Arithmetic on config.json and row lengths, as `memory.py`; no torch. Numbers kept per token and layer (b bytes each;
rows are rounded up to 64 numbers where adapters have a tail behind them):

    x, x₂          2 H          q, k, v      Q + 2 K       o, log-sum-exp      Q, and 4 bytes a head
    gate, up       2 F          z            the ranks of the seven adapters

Levels give them up in the order none → qkv → gate_up → full → offload, the first layers first: when their turn comes
in the backward, the later ones have let go of theirs. A quantised layer's dense image saves two passes of dequantising.
Where space is short, embedding and head lie in host memory, and the head comes during each forward.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any, NamedTuple

from tunesmith.engine.memory import CPU_TOKENS, GIB, Budget, Shape, gib_of, most_of, no_room, some_steps
from tunesmith.engine.plan import MicroBatchPlan, Most, Step
from tunesmith.recipe import Recipe

LEVELS = ("none", "qkv", "gate_up", "full", "offload")
WORKSPACES = 0.12 * GIB  # cuBLAS and the like, dropout's factors, rows of gradients
CHUNK_ROWS = 1024  # of logits at a time, on a card
_ALIGNED, _ROW = 16, 64  # ranks are rounded up to the first, rows with a tail to the second
_GROUPS = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))
_KERNEL_RANKS = 64  # up to which kernels/lora.py draws masks where numbers are read
_MASK = 7  # bytes a number where they are drawn apart: a product of counters, the mask, what is kept
_FLASH_PADS = 128  # tokens behind each row in the sums of flash attention's backward
_ALL = 0.9  # share of tokens from which the last layer works on all (fused_stream.py)
_ENOUGH = 16_384  # tokens at once, beyond which nothing gets faster
_SLACK = 1.02  # over the fullest micro-batch of the steps that were looked at
_DENSE_SHARE, _DENSE_LENGTH = (
    0.5,
    256,
)  # rows of one length: worth it from this share of all tokens, and this length
# seconds on an H200 (8B shape): a floating point operation, a token's elementwise work in a layer, a layer's launches,
# a byte of dense image; they only choose between plans
_PER_FLOP, _PER_TOKEN, _LAUNCHES, _PER_BYTE = 1 / 640e12, 0.35e-6, 2.0e-3, 1 / 2.4e12
_PER_HOST_BYTE, _SHOWS = (
    1 / 40e9,
    0.2,
)  # a byte to or from the host, and the share of it that no product hides


@dataclass(frozen=True)
class FusedShape:
    """What of a model and a recipe decides how much memory and time a fused step takes."""

    shape: Shape
    adapted: frozenset[str]
    fp8: bool = False
    rows: int = 1  # at most in a micro-batch
    drawn_apart: bool = False  # masks of dropout for ranks that are too wide for the kernels

    @classmethod
    def of(cls, config: Mapping[str, Any], recipe: Recipe, trained: int | None = None) -> FusedShape:
        """From config.json; a linear counts as adapted when any layer's is."""
        shape = Shape.of(config, recipe, trained=trained)
        batch, given = recipe.train.batch, recipe.train.micro_batch
        rows = batch if given == "auto" else min(batch, given)
        apart = recipe.tune.dropout > 0 and shape.rank > _KERNEL_RANKS
        return cls(shape, shape.adapted, recipe.train.fp8, rows, apart)

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

    def always(self, images: int, away: bool = False) -> float:
        """Bytes that are there whatever the batch; `away`: embedding and head lie in host memory."""
        shape, b = self.shape, self.shape.bytes
        outer = shape.outer_weights * b * away
        if not self.quantised:
            weights = shape.layers * self.image + shape.outer_weights * b - outer
            return weights + shape.state + self.fp8_bytes + WORKSPACES
        tails = sum(self._tails[g] * sum(self._sizes(g)) * b for g in range(4))
        made = 0 if images == shape.layers else max(self._image(group) for group in range(4))
        made += 6 * max(a * o for a, o in shape.linears.values()) if shape.quantize == "int8" else 0
        kept = images * self.image + (shape.layers - images) * tails
        return shape.weights - outer + kept + made + shape.state + self.fp8_bytes + WORKSPACES

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

    def kept(self, level: str, part: float = 1.0) -> float:
        """Bytes per token that a layer leaves for its backward; behind attention it works on `part` of the tokens."""
        hidden = self.shape.bytes * self.shape.hidden
        own: float = self.shape.bytes * sum(self._tails)
        if level != "offload":
            own += hidden
        if level in ("none", "qkv", "gate_up"):
            own += hidden * part + self._attended
        if level in ("none", "qkv"):
            own += self._gate_up * part
        return own + (self._qkv if level == "none" else 0)

    @property
    def head(self) -> int:
        """Bytes of the head's weight."""
        return self.shape.vocabulary * self.shape.hidden * self.shape.bytes

    def per_token(self, levels: Sequence[str], share: float = 1.0) -> tuple[float, float, float, float]:
        """Bytes while the loss is computed, in the worst layer's feed-forward and attention backward, and in forwards.

        Behind its attention the last layer works on a `share` of the tokens: those that predict learned ones.
        """
        shape, b = self.shape, self.shape.bytes
        hidden, row = b * shape.hidden, self._row(shape.hidden, 1)
        own = 2 * b * shape.queries // max(shape.heads, 1) + 64  # rotary tables, ids, positions, keys
        held: float = own + hidden * ("offload" in levels)  # one input on its way
        feeding = attending = forward = 0.0
        masks = _MASK * self.drawn_apart
        turned = b * (shape.queries + shape.keys) if shape.normed_heads else 0
        # down_proj's gradients, or gate's and up's; what came from above is held through the whole layer
        wide = b * shape.ffn + masks * shape.ffn * ("down_proj" in self.adapted)
        narrow = row + 2 * hidden + masks * shape.hidden + (2 * shape.ffn if self.fp8 else 0)
        product = self._row(shape.ffn, 3) + 3 * hidden + masks * shape.ffn * ("down_proj" in self.adapted)
        # gradients of o, q, of k and v for all heads and for their own, and flash attention's sums in fp32
        attention = (
            row + turned + b * (4 * shape.queries + 2 * shape.keys) + 4 * (shape.queries + shape.heads)
        )
        for n, level in enumerate(levels):
            last = n == len(levels) - 1
            part = share if last else 1.0
            held += self.kept(level, part)
            whole = held + self.kept("none", part) - self.kept(level, part)
            # what is not kept is gone by the time of the product, but for gate, up and the stream itself
            rung = LEVELS.index(level)
            there = self._gate_up * (rung >= 2) + hidden * (rung >= 3) + hidden * (rung >= 4)
            forward = max(forward, held + part * (there + product))
            feeding = max(feeding, whole + part * (row + max(wide, narrow)))
            # gate, up and x₂ are gone by now; the last layer's gradients are spread over all tokens
            spread = part * (b * shape.queries + row) if last else 0
            attending = max(attending, whole - part * (self._gate_up + hidden - row) + attention + spread)
        ends = 2 * share * hidden  # the last norm's input, and hidden states that became their gradient
        return held + ends, feeding + ends, attending + ends, max(forward, held + 3 * ends)

    def moments(
        self, levels: Sequence[str], images: int, away: bool, share: float = 1.0, rows: int | None = None
    ) -> list[tuple[float, int, float]]:
        """(bytes, bytes per position up to a chunk of logits, bytes per token) of what can be the peak."""
        loss, feeding, attending, forward = self.per_token(levels, share)
        always, brought = self.always(images, away), self.head * away
        logits = self.shape.vocabulary * self.shape.bytes
        pads = (rows or self.rows) * _FLASH_PADS * 4 * (self.shape.queries + self.shape.heads)
        return [
            (always + brought, logits, loss),
            (always, 0, feeding),
            (always + pads, 0, attending),
            (always + brought, 0, forward),
        ]

    def peak(
        self,
        tokens: int,
        levels: Sequence[str],
        images: int,
        away: bool = False,
        learned: int | None = None,
        rows: int | None = None,
    ) -> float:
        """Predicted bytes in torch's allocator while a micro-batch is learned: `learned` of its tokens, or all."""
        learned = tokens if learned is None else learned
        share = min(1.0, learned / (_ALL * tokens))
        return max(
            fixed + min(CHUNK_ROWS, learned) * logits + tokens * each
            for fixed, logits, each in self.moments(levels, images, away, share, rows)
        )

    def looking(self, tokens: int, images: int, away: bool = False) -> float:
        """The same while a micro-batch is only looked at: validation losses and proofs."""
        hidden = self.shape.bytes * self.shape.hidden
        always = self.always(images, away) + self.head * away
        forward = self._gate_up + self._row(self.shape.ffn, 3) + 4 * hidden
        logits = min(tokens, CHUNK_ROWS) * self.shape.vocabulary * self.shape.bytes
        return always + max(tokens * forward, logits + 2 * tokens * hidden)

    def fits(self, budget: float, levels: Sequence[str], away: bool = False) -> int:
        """The most tokens within `budget` bytes, no image kept; 0 when there is no room at all."""
        room = [
            (budget - fixed - CHUNK_ROWS * logits) // each
            for fixed, logits, each in self.moments(levels, 0, away)
        ]
        return max(0, int(min(room)))

    def seconds(self, tokens: int, levels: Sequence[str], images: int = 0, away: bool = False) -> float:
        """Rough time of one micro-batch, to compare plans with."""
        linears = self.shape.linears
        weights = {name: a * o for name, (a, o) in linears.items()}
        flops = 4 * self.shape.layers * self.shape.layer_weights
        qkv, gate_up = (sum(weights[name] for name in _GROUPS[g]) for g in (0, 2))
        passes = 2 * self.shape.layers
        carried = 2 * self.shape.bytes * self.shape.hidden * tokens * list(levels).count("offload")
        carried += self.head * away
        for level in levels:
            flops += 2 * qkv * (level != "none") + 2 * gate_up * (level in ("gate_up", "full", "offload"))
            flops += 2 * weights["o_proj"] * (level in ("full", "offload"))
            passes += {"none": 0.0, "qkv": 0.1, "gate_up": 0.7}.get(level, 0.8)  # type: ignore[assignment]
        computing = tokens * (flops * _PER_FLOP + self.shape.layers * _PER_TOKEN)
        making = 0.0
        if self.quantised and not self.fp8:
            share = passes * (self.shape.layers - images) / self.shape.layers
            making = share * self.shape.layer_weights * self.shape.bytes * _PER_BYTE
        return max(computing, self.shape.layers * _LAUNCHES) + making + carried * _PER_HOST_BYTE * _SHOWS


class Layout(NamedTuple):
    """The level of each layer, and whether embedding and head are away in host memory."""

    levels: tuple[str, ...]
    away: bool


def ladder(layers: int, recompute: str) -> list[tuple[str, ...]]:
    """The level of each layer, from all kept to all computed again."""
    if recompute != "auto":
        return [(recompute,) * layers]
    steps = [(rung, upto) for rung in range(len(LEVELS) - 1) for upto in range(layers)]
    found = [(LEVELS[rung + 1],) * upto + (LEVELS[rung],) * (layers - upto) for rung, upto in steps]
    return [*found, (LEVELS[-1],) * layers]


def make_fused_plan(
    fused: FusedShape, budget: Budget, lengths: Sequence[int], steps: Sequence[Step] | None = None
) -> MicroBatchPlan:
    """The fastest plan within the budget; raises OutOfRoom when the longest row (or `micro_batch` rows) can't fit.

    `steps` are those of the run; without them the heaviest that its rows could make counts.
    """
    longest = sorted(lengths, reverse=True)
    needed = most_of(MicroBatchPlan(tokens=1, rows=budget.rows, recompute=()), steps, longest).tokens
    largest = most_of(MicroBatchPlan(tokens=None, rows=budget.batch, recompute=()), steps, longest).tokens
    choices = [
        Layout(levels, away)
        for away in (False, True)
        for levels in ladder(fused.shape.layers, budget.recompute)
    ]
    if budget.usable is None:
        tokens = max(CPU_TOKENS, needed)
        return _plan(fused, budget, lengths, steps, tokens, choices[0], "a CPU: a fixed number of tokens")
    enough = max(_ENOUGH, needed)
    room = {layout: min(fused.fits(budget.usable, *layout), enough, largest) for layout in choices}
    possible = [layout for layout in choices if room[layout] >= needed]
    if not possible:
        levels, away = choices[-1]
        raise no_room(fused.shape, budget, fused.peak(needed, levels, 0, away), needed)
    if budget.rows is not None:
        return _plan(fused, budget, lengths, steps, needed, possible[0], "train.micro_batch is given")
    looked_at = some_steps(lengths, budget.batch)

    @cache  # many layouts have the same room
    def sums(tokens: int) -> list[int]:
        trial = MicroBatchPlan(tokens=tokens, rows=None, recompute=())
        return [sum(step[i] for i in part) for step in looked_at for part in trial.split(step)]

    def cost(layout: Layout) -> float:
        return sum(fused.seconds(tokens, layout.levels, 0, layout.away) for tokens in sums(room[layout]))

    costs = {layout: cost(layout) for layout in possible}
    best = min(possible, key=lambda layout: (costs[layout], choices.index(layout)))
    tokens = room[best]
    if tokens >= largest:
        return _plan(fused, budget, lengths, steps, tokens, best, "all rows of a step at once")
    why = "more tokens at once gain nothing" if tokens == enough else "as many as there is room for"
    # rows don't fill a micro-batch to the brim: the room that would stay empty is better spent on dense weights
    tokens = max(needed, min(tokens, int(max(sums(tokens)) * _SLACK)))
    return _plan(fused, budget, lengths, steps, tokens, best, why)


def _plan(
    fused: FusedShape,
    budget: Budget,
    lengths: Sequence[int],
    steps: Sequence[Step] | None,
    tokens: int,
    layout: Layout,
    why: str,
) -> MicroBatchPlan:
    levels, away = layout
    plan = MicroBatchPlan(
        tokens=None if budget.rows else tokens,
        rows=budget.rows,
        recompute=levels,
        dense=_dense(lengths),
        outer_on_host=away,
    )
    images, gib, heaviest = 0, None, Most(tokens, tokens, fused.rows)
    if budget.usable is not None:
        heaviest = plan.most(steps) if steps else heaviest
        while (
            fused.quantised
            and not fused.fp8  # steps read the fp8 copies
            and images < fused.shape.layers
            and peak_of_run(fused, replace(plan, images=images + 1), heaviest, tokens) <= budget.usable
        ):
            images += 1
        plan = replace(plan, images=images)
        gib = gib_of(peak_of_run(fused, plan, heaviest, tokens))
    size = f"{budget.rows} rows" if budget.rows else f"up to {tokens:,} tokens"
    size += f" ({heaviest.tokens:,} in the largest)" if heaviest.tokens < tokens else ""
    again = Counter(level for level in levels if level != "none")
    parts = [size + " in a micro-batch"]
    parts += [f"{count} of {len(levels)} layers recompute {_said(level)}" for level, count in again.items()]
    parts += [] if again else ["no layer recomputes"]
    parts += ["embedding and head in host memory"] if away else []
    parts += [f"{images} of {len(levels)} layers keep their dense weights"] if images else []
    parts += [f"{gib:.1f} of {budget.total_gib:.1f} GiB"] if gib is not None else []
    note = f"{', '.join(parts)} ({why})"
    return replace(plan, gib=None if gib is None else round(gib, 2), note=note)


def peak_of_run(fused: FusedShape, plan: MicroBatchPlan, heaviest: Most, tokens: int) -> float:
    """Predicted bytes in torch's allocator: steps whose micro-batches hold at most `heaviest`, losses of `tokens`."""
    tokens_, learned, rows = heaviest
    step = fused.peak(tokens_, plan.recompute, plan.images, plan.outer_on_host, learned, rows)
    return max(step, fused.looking(tokens, plan.images, plan.outer_on_host))


def _said(level: str) -> str:
    return {
        "qkv": "q, k, v",
        "gate_up": "q, k, v, gate, up",
        "full": "everything",
        "offload": "everything from inputs kept in host memory",
    }[level]


def _dense(lengths: Sequence[int]) -> int | None:
    """The length that most tokens stand in rows of, where that is worth kernels of its own."""
    length, count = Counter(int(n) for n in lengths).most_common(1)[0]
    worth = length >= _DENSE_LENGTH and length * count >= _DENSE_SHARE * sum(lengths)
    return length if worth else None
