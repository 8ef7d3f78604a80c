"""The planner: how many tokens go through the model together, and which layers recompute, so that the card is full
and never over. Arithmetic on config.json and row lengths; no torch, and nothing that happens to be free is asked.

Bytes per token and layer are those that autograd keeps in the reference engine (b bytes a number, H hidden, F ffn):
    two norms           2 · 4 H in fp32, and b H each where an adapter reads what comes out
    attention           b (2 Q + 2 K): q, k after rotation, v, output;  4 a head for the softmax
    gated feed-forward  3 b F: gate, silu(gate), up; b F for their product where down_proj has an adapter
    adapters            b r for each; dropout masks are drawn again, dense weights made again: nothing
For Llama-3.1-8B in bf16: 185 kB. A layer that recomputes keeps its input, b H. The first layers recompute: when their
turn comes in the backward, the later ones have let go of theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from tunesmith.engine.plan import MicroBatchPlan, Most, Step
from tunesmith.errors import ModelError, OutOfRoom
from tunesmith.recipe import Recipe, Train

GIB = 1 << 30
CPU_TOKENS = 4096  # on a CPU more tokens at once gain nothing
_STEPS_LOOKED_AT = 64
_CONTEXT = 0.6 * GIB  # CUDA's own, which a card's total includes
_USABLE = 0.92  # the rest goes to gaps between the allocator's blocks
_WORKSPACES = 0.1 * GIB  # cuBLAS and the like
_SPARE = 1.02  # what autograd holds a moment longer than counted here
_HEAD_CHUNK = 256 << 20  # fp32 logits of a chunk, as in head.py
_BYTES_PER_WEIGHT = {"nf4": 0.5 + 1 / 64 + 4 / (64 * 256), "int8": 1.0}
_NORMED_HEADS = ("qwen3", "olmo2", "olmo3", "exaone4", "apertus")
_OPTIMIZER_BYTES = {"adamw": 8, "adamw_8bit": 2.1, "paged_adamw_8bit": 2.1}
# seconds a floating point operation, a byte of dense image and the launches of a layer's forward and backward took on
# an H200 (8B shape); they only choose between more micro-batches and more recomputation
_PER_FLOP, _PER_BYTE, _LAUNCHES = 1 / 290e12, 1 / 1.8e12, 4.2e-3


LINEARS = frozenset({"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"})


@dataclass(frozen=True)
class Shape:
    """What of a model and a recipe decides how much memory a step takes."""

    layers: int
    hidden: int
    ffn: int
    heads: int
    queries: int  # heads × head dimension
    keys: int  # key heads × head dimension
    vocabulary: int
    tied: bool
    bytes: int  # of a number in activations and dense weights
    quantize: str
    rank: int
    trained: int  # numbers
    full: bool
    optimizer: str
    normed_heads: bool = False  # queries and keys go through norms of their own
    adapted: frozenset[str] = LINEARS  # linears whose inputs a backward wants

    @classmethod
    def of(cls, config: Mapping[str, Any], recipe: Recipe, trained: int | None = None) -> Shape:
        """From config.json; `trained` where the caller has counted."""
        try:
            hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
            head_dim = int(config.get("head_dim") or hidden // heads)
            shape = cls(
                layers=int(config["num_hidden_layers"]),
                hidden=hidden,
                ffn=int(config["intermediate_size"]),
                heads=heads,
                queries=heads * head_dim,
                keys=int(config.get("num_key_value_heads") or heads) * head_dim,
                vocabulary=int(config["vocab_size"]),
                tied=bool(config.get("tie_word_embeddings", False)),
                bytes=4 if recipe.model.dtype == "float32" else 2,
                quantize=recipe.model.quantize,
                rank=recipe.tune.rank if recipe.tune.method == "lora" else 0,
                trained=0,
                full=recipe.tune.method == "full",
                optimizer=recipe.train.optimizer,
                normed_heads=str(config.get("model_type")) in _NORMED_HEADS,
                adapted=_adapted(recipe),
            )
        except KeyError as missing:
            raise ModelError(
                f"config.json has no {missing}, so the memory of a step can't be planned",
                fix="use a decoder of the Llama kind (Llama, Mistral, Qwen2, Qwen3, ...)",
            ) from None
        return replace(shape, trained=shape._trained() if trained is None else trained)

    def _trained(self) -> int:
        if self.full:
            return self.layers * self.layer_weights + self.outer_weights
        named = [n for n in self.linears if n in self.adapted]
        return self.layers * self.rank * sum(sum(self.linears[name]) for name in named)

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """(in, out) of a layer's linears."""
        h, f, q, k = self.hidden, self.ffn, self.queries, self.keys
        return {
            "q_proj": (h, q), "k_proj": (h, k), "v_proj": (h, k), "o_proj": (q, h),
            "gate_proj": (h, f), "up_proj": (h, f), "down_proj": (f, h),
        }  # fmt: skip

    @cached_property
    def layer_weights(self) -> int:
        """Numbers in the linears of one layer."""
        return sum(a * b for a, b in self.linears.values())

    @property
    def outer_weights(self) -> int:
        """Numbers in embedding and head."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def weights(self) -> float:
        """Bytes of the base."""
        per_weight = _BYTES_PER_WEIGHT.get(self.quantize, self.bytes)
        return self.layers * self.layer_weights * per_weight + self.outer_weights * self.bytes

    @property
    def state(self) -> float:
        """Bytes of trained numbers, gradients and optimiser."""
        masters = 0 if self.full and self.bytes == 4 else 4  # a full fp32 model is its own master
        return self.trained * (masters + 4 + _OPTIMIZER_BYTES[self.optimizer])

    @property
    def image(self) -> float:
        """Bytes of the largest linear's dense image while it is used; a full gradient of embedding and head, too."""
        largest = max(a * b for a, b in self.linears.values())
        dense = {"nf4": self.bytes + 4 / 64, "int8": 4 + self.bytes}.get(self.quantize, 0) * largest
        return dense + (4 * self.outer_weights if self.full else 0)

    @property
    def kept(self) -> int:
        """Bytes that a layer keeps per token for its backward."""
        b = self.bytes
        norms = 8 * self.hidden + (4 * (self.queries + self.keys) if self.normed_heads else 0)
        inputs = b * self.hidden * bool(self.adapted & {"q_proj", "k_proj", "v_proj"})
        inputs += b * self.hidden * bool(self.adapted & {"gate_proj", "up_proj"})
        inputs += b * self.ffn * ("down_proj" in self.adapted)
        return (
            norms
            + inputs
            + b * (2 * self.queries + 2 * self.keys)
            + 4 * self.heads
            + 3 * b * self.ffn
            + len(self.adapted) * b * self.rank
        )

    def moments(self, recomputed: int, chunk: int = _HEAD_CHUNK) -> list[tuple[float, float]]:
        """(bytes, bytes per token) of the moments that can be the peak, the first `recomputed` layers recomputing.

        `chunk`: bytes of fp32 logits at a time.
        """
        b, always = self.bytes, self.weights + self.state + self.image + _WORKSPACES
        held = (self.layers - recomputed) * self.kept + recomputed * b * self.hidden
        ends = 6 * b * self.hidden  # embedding, last norm, hidden states and their gradient
        backward = (
            2 * b + 1
        ) * self.ffn + 4 * b * self.hidden  # down_proj: mask, its hash, gradients in and out
        again = self.kept if recomputed == self.layers else 0  # else layers that are done have made room
        logits = chunk * (2 + (b / 4 if b < 4 else 0))  # in b bytes, made wide, and their logarithms
        return [(always + logits, _SPARE * (held + ends)), (always, _SPARE * (held + again + backward))]

    def peak(self, tokens: int, recomputed: int, learned: int | None = None) -> float:
        """Predicted bytes in torch's allocator, where `learned` of the tokens, or all, are learned."""
        chunk = min(_HEAD_CHUNK, 4 * self.vocabulary * (tokens if learned is None else learned))
        return max(constant + tokens * each for constant, each in self.moments(recomputed, chunk))

    def fits(self, budget: float, recomputed: int) -> int:
        """The most tokens whose peak is within `budget` bytes; 0 when there is no room at all."""
        return max(0, min(int((budget - constant) // each) for constant, each in self.moments(recomputed)))

    def seconds(self, tokens: int, recomputed: int) -> float:
        """Rough time of one micro-batch, to compare plans with."""
        passes = 2 + 0.8 * recomputed / self.layers
        computing = tokens * passes * 2 * (self.layers * self.layer_weights) * _PER_FLOP
        launching = self.layers * _LAUNCHES * passes / 2
        images = (
            0.0 if self.quantize == "none" else passes * self.layers * self.layer_weights * 2.5 * _PER_BYTE
        )
        return max(computing, launching) + images


@dataclass(frozen=True)
class Budget:
    """What the recipe asks for: usable bytes (None: a CPU, where speed decides), and how rows travel."""

    usable: float | None
    total_gib: float | None
    rows: int | None
    recompute: str
    padded: bool
    batch: int

    @classmethod
    def of(cls, train: Train, card: int | None) -> Budget:
        """`card` is the accelerator's total memory in bytes (None on a CPU)."""
        total = float(train.memory) * GIB if train.memory != "auto" else card
        rows = None if train.micro_batch == "auto" else train.micro_batch
        return cls(
            usable=None if total is None else total * _USABLE - _CONTEXT,
            total_gib=None if total is None else total / GIB,
            rows=rows,
            recompute=train.recompute,
            padded=not train.packing,
            batch=train.batch,
        )


def make_plan(
    shape: Shape, budget: Budget, lengths: Sequence[int], steps: Sequence[Step] | None = None
) -> MicroBatchPlan:
    """The fastest plan within the budget; raises OutOfRoom when the longest row (or `micro_batch` rows) can't fit.

    `steps` are those of the run; without them the heaviest that its rows could make counts.
    """
    longest = sorted(lengths, reverse=True)
    by_rows = MicroBatchPlan(tokens=1, rows=budget.rows, recompute=(), padded=budget.padded)
    needed = most_of(by_rows, steps, longest).tokens
    choices = {"none": [0], "full": [shape.layers], "auto": list(range(shape.layers + 1))}[budget.recompute]
    if budget.usable is None:
        recomputed = choices[0]
        tokens = max(CPU_TOKENS, needed)
        return _plan(shape, budget, tokens, recomputed, "a CPU: a fixed number of tokens")
    possible = [k for k in choices if shape.fits(budget.usable, k) >= needed]
    if not possible:
        raise no_room(shape, budget, shape.peak(needed, choices[-1]), needed)
    if budget.rows is not None:
        most = by_rows.most(steps) if steps else None
        return _plan(shape, budget, needed, possible[0], "train.micro_batch is given", most)
    looked_at = some_steps(lengths, budget.batch)
    largest = most_of(replace(by_rows, rows=budget.batch), steps, longest).tokens

    def cost(k: int) -> float:
        trial = MicroBatchPlan(
            tokens=shape.fits(budget.usable or 0, k), rows=None, recompute=(), padded=budget.padded
        )
        parts = [[step[i] for i in part] for step in looked_at for part in trial.split(step)]
        return sum(shape.seconds(max(p) * len(p) if budget.padded else sum(p), k) for p in parts)

    best = min(possible, key=lambda k: (cost(k), k))
    tokens = shape.fits(budget.usable, best)
    why = (
        "all rows of a step at once"
        if largest <= tokens
        else "fewer layers recompute than with more tokens at once"
    )
    why = why if best or largest <= tokens else "nothing needs recomputing"
    tokens = min(tokens, largest)  # a validation holds as many
    plan = _plan(shape, budget, tokens, best, why)
    return _plan(shape, budget, tokens, best, why, plan.most(steps)) if steps else plan


def _plan(
    shape: Shape, budget: Budget, tokens: int, recomputed: int, why: str, most: Most | None = None
) -> MicroBatchPlan:
    """`tokens` is the budget of a micro-batch, `most` what one can really hold (None: as much)."""
    most = most or Most(tokens, tokens, 1)
    gib = None if budget.usable is None else gib_of(shape.peak(most.tokens, recomputed, most.learned))
    size = f"{budget.rows} rows" if budget.rows else f"up to {tokens:,} tokens"
    layers = "no layer recomputes" if recomputed == 0 else f"{recomputed} of {shape.layers} layers recompute"
    room = "" if gib is None else f", {gib:.1f} of {budget.total_gib:.1f} GiB"
    return MicroBatchPlan(
        tokens=None if budget.rows else tokens,
        rows=budget.rows,
        recompute=("full",) * recomputed + ("none",) * (shape.layers - recomputed),
        padded=budget.padded,
        gib=None if gib is None else round(gib, 2),
        note=f"{size} in a micro-batch, {layers}{room} ({why})",
    )


def gib_of(peak: float) -> float:
    """What a peak in torch's allocator takes of a card, CUDA's own included, in GiB."""
    return (peak + _CONTEXT) / GIB


def allocated(gib: float) -> float:
    """The other way round: bytes in torch's allocator, of what they and CUDA's own take in GiB."""
    return gib * GIB - _CONTEXT


def _adapted(recipe: Recipe) -> frozenset[str]:
    """Leaf names of the linears that a backward wants the inputs of."""
    targets = recipe.tune.target_modules
    if recipe.tune.method == "full" or targets == "all":
        return LINEARS
    return frozenset(name for name in LINEARS if any(t == name or t.endswith(f".{name}") for t in targets))


def most_of(plan: MicroBatchPlan, steps: Sequence[Step] | None, longest: Sequence[int]) -> Most:
    """The most that a micro-batch holds: in these steps, or, where they aren't known, of the longest rows there are."""
    if steps:
        return plan.most(steps)
    return plan.most([Step(longest[: plan.rows or 1], longest[: plan.rows or 1])])


def some_steps(lengths: Sequence[int], batch: int) -> list[list[int]]:
    """Row lengths of some steps, spread over the data set whatever its order."""
    n = len(lengths)
    stride = next(p for p in (7919, 7907, 7901, 1) if p == 1 or n % p)
    count = min(_STEPS_LOOKED_AT, max(1, n // batch))
    return [[int(lengths[(s * batch + i) * stride % n]) for i in range(min(batch, n))] for s in range(count)]


def no_room(shape: Shape, budget: Budget, peak: float, needed: int) -> OutOfRoom:
    """The error for `needed` tokens that would take `peak` bytes even by the leanest plan; says what would help."""
    many = min(budget.rows or 1, budget.batch)
    what = f"the longest row ({needed:,} tokens)"
    if many > 1:
        what = f"the largest micro-batch of {many} rows ({needed:,} tokens)"
    gib = gib_of(peak) / _USABLE
    fixes = ["train.micro_batch: auto"] if many > 1 else []
    fixes += ["train.recompute: auto"] if budget.recompute == "none" else []
    fixes += ["model.quantize: nf4"] if shape.quantize == "none" and not shape.full else []
    fixes += ["tune.method: lora"] if shape.full else []
    fixes += ["a smaller data.max_length with data.overlong: drop", "a card with more memory"]
    return OutOfRoom(
        f"{what} would take about {gib:.1f} GiB, and there are {budget.total_gib:.1f}",
        where="train.memory",
        fix=", or ".join(fixes),
    )
