"""How long a micro-batch takes on a card: operations and bytes of the plan, over what the datasheet promises.

The shares of a datasheet's speed that are reached were fitted on one card, an H200, on the figures of
docs/benchmarks.md ("8B, NF4: the fused engine": full rows of 16,384 and 4,096 tokens, ragged rows of 4,615, dropout,
fp8, all recomputed; the reference engine on ragged rows of 2,978). Other cards get the same shares: that is a guess,
and cards whose power limit holds them back (an L4 has 72 W) will be slower than it says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.engine.cards import Card
from tunesmith.engine.memory import Shape
from tunesmith.engine.plan import MicroBatchPlan, Step

_PRODUCTS = 0.715  # of dense operations a second, with many tokens …
_HALF_SPEED = 350  # … and half of that with so few tokens
_FP8 = 0.63  # of fp8's
_DENSE_ATTENTION, _VARLEN_ATTENTION = 0.415, 0.2  # cuDNN's on rows of one length; flash's on any
_BANDWIDTH = 0.80  # of bytes a second, in elementwise kernels and narrow products
_IMAGES = {"fused": 0.5, "reference": 0.36}  # likewise, while quantised weights become dense ones
_GAPS = 1.02  # between kernels
_HOST = {"fused": 2.0e-3, "reference": 7.0e-3}  # seconds that the host takes to launch a layer both ways
_REFERENCE_PASSES = 105  # over a layer's hidden and feed-forward numbers, both ways, in the reference engine
_DROPOUT = 0.45  # more bytes than the narrow products move without it
_UPDATE = 60  # bytes a trained number: gradients zeroed, measured, clipped; AdamW; copies for the products
_STEP = 3e-3  # seconds: packing rows, a copy to the card
_HIDDEN_COPIES = 0.8  # share of copies to and from the host that products hide


@dataclass(frozen=True)
class Pace:
    """Seconds on one card, for one engine, model and plan."""

    card: Card
    engine: str
    shape: Shape
    plan: MicroBatchPlan
    dropout: bool
    fp8: bool

    def step(self, step: Step) -> float:
        """Of an optimiser step over rows of these tokens."""
        parts = self.plan.split(step.lengths)
        own = [([step.lengths[i] for i in part], sum(step.learned[i] for i in part)) for part in parts]
        update = _UPDATE * self.shape.trained / (_BANDWIDTH * self.card.bandwidth)
        return _STEP + update + sum(self.micro_batch(lengths, learned) for lengths, learned in own)

    def micro_batch(self, lengths: Sequence[int], learned: int, *, learns: bool = True) -> float:
        """Of a forward over rows of these tokens, and the backward where it `learns`."""
        if self.plan.padded:
            lengths = [max(lengths)] * len(lengths)
        tokens, again = sum(lengths), self._again if learns else 0.0
        ways = 2.0 + again if learns else 1.0  # a backward has one product with frozen weights
        seconds = self._products(tokens, learned, ways, learns)
        seconds += self._attention(lengths, 3.5 + again if learns else 1.0)
        seconds += self._elementwise(tokens, learned, ways / 2) / (_BANDWIDTH * self.card.bandwidth)
        seconds += self._making(ways, learns)
        launched = self.shape.layers * _HOST[self.engine] * ways / 2
        return max(seconds * _GAPS, launched) + self._carried(tokens, learns)

    @property
    def _again(self) -> float:
        """Share of a forward that is computed a second time."""
        weights = {name: a * o for name, (a, o) in self.shape.linears.items()}
        qkv = weights["q_proj"] + weights["k_proj"] + weights["v_proj"]
        gate_up = qkv + weights["gate_proj"] + weights["up_proj"]
        whole = self.shape.layer_weights if self.engine == "reference" else gate_up + weights["o_proj"]
        share = {"none": 0, "qkv": qkv, "gate_up": gate_up}
        return sum(share.get(level, whole) for level in self.plan.recompute) / (
            self.shape.layer_weights * max(len(self.plan.recompute), 1)
        )

    def _products(self, tokens: int, learned: int, ways: float, learns: bool) -> float:
        shape = self.shape
        reached = self.card.half * _PRODUCTS * tokens / (tokens + _HALF_SPEED)
        if shape.bytes == 4:
            reached /= 8  # without tensor cores
        frozen = 2 * tokens * shape.layers * shape.layer_weights * (ways + (learns and shape.full))
        head = 2 * learned * shape.vocabulary * shape.hidden * (1 + learns + (learns and shape.full))
        if self.fp8 and learns and self.card.fp8:
            return frozen / (self.card.fp8 * _FP8 * tokens / (tokens + _HALF_SPEED)) + head / reached
        return (frozen + head) / reached

    def _attention(self, lengths: Sequence[int], times: float) -> float:
        dense = self.plan.dense is not None and all(n == self.plan.dense for n in lengths)
        flops = 2 * sum(n * n for n in lengths) * self.shape.queries * self.shape.layers
        return flops * times / (self.card.half * (_DENSE_ATTENTION if dense else _VARLEN_ATTENTION))

    def _elementwise(self, tokens: int, learned: int, ways: float) -> float:
        """Bytes to and from the card's memory; `ways`: 1 is a forward and a backward."""
        shape, b = self.shape, self.shape.bytes
        logits = 4 * learned * shape.vocabulary * b
        if self.engine == "reference":
            each: float = _REFERENCE_PASSES * b * (shape.hidden + shape.ffn)
            return ways * tokens * shape.layers * each + 3 * logits
        inputs = outputs = 0
        for group in (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",)):
            own = [shape.linears[name] for name in group if name in shape.adapted]
            inputs += own[0][0] if own else 0
            outputs += sum(out for _, out in own)
        narrow = 4 * b * (inputs + outputs) * (1 + _DROPOUT * self.dropout)
        each = narrow + b * (9 * shape.ffn + 18 * shape.hidden + 4 * (shape.queries + shape.keys))
        return ways * tokens * shape.layers * each + logits

    def _making(self, ways: float, learns: bool) -> float:
        """Dense images of quantised weights, where they aren't kept."""
        shape = self.shape
        if shape.quantize == "none" or (self.fp8 and learns):
            return 0.0
        made = shape.layers - self.plan.images
        return ways * made * shape.layer_weights * shape.bytes / (_IMAGES[self.engine] * self.card.bandwidth)

    def _carried(self, tokens: int, learns: bool) -> float:
        """What copies to and from the host show: inputs of layers that lie there, and the head."""
        shape = self.shape
        inputs = 2 * tokens * shape.hidden * self.plan.recompute.count("offload") * learns
        head = shape.vocabulary * shape.hidden * self.plan.outer_on_host
        return (1 - _HIDDEN_COPIES) * shape.bytes * (inputs + head) / self.card.host
