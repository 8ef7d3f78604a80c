"""The fused engine: LoRA on Llama-like decoders over frozen weights, forward and backward by hand.

The same recipe, rows, adapters and loss as `reference.py`, which is the truth and shares everything that is not a
layer; only faster and leaner. No autograd: layers say themselves what they keep (`fused_layer.py`). Nothing in a step
waits for the device, and no kernel depends on how long rows are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import NoReturn, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunesmith.engine.fused_host import Away, Courier, Outer
from tunesmith.engine.fused_layer import FusedLayer, Kept
from tunesmith.engine.fused_loss import loss_and_gradient, losses
from tunesmith.engine.fused_memory import LEVELS, FusedShape, make_fused_plan
from tunesmith.engine.fused_stream import Stream, needed
from tunesmith.engine.fused_weights import Shared
from tunesmith.engine.head import summed_loss
from tunesmith.engine.memory import Budget
from tunesmith.engine.protocol import MicroBatchPlan, PackedBatch, Step, StepSums
from tunesmith.engine.reference import ReferenceEngine
from tunesmith.errors import ModelError
from tunesmith.kernels.chosen import kernels_for
from tunesmith.model.attention import Packed, Padded
from tunesmith.model.dropout import token_keys
from tunesmith.model.families import norm_of
from tunesmith.model.lora import adapters, decoder_layers
from tunesmith.recipe import Recipe

_TRIED = 24  # tokens of the comparison with transformers' own layers


class FusedEngine(ReferenceEngine):
    """See the protocol. `why_not` says beforehand what it can't take."""

    def __init__(self, model: PreTrainedModel, recipe: Recipe) -> None:
        embedding = cast(nn.Embedding, model.get_input_embeddings())
        self._outer = Outer(embedding, cast(nn.Linear, model.get_output_embeddings()))  # type: ignore[no-untyped-call]
        super().__init__(model, recipe)
        self.kernels, self._shared = kernels_for(self.device), Shared()
        self._courier = Courier(self.device)
        self._like = torch.empty(0, dtype=embedding.weight.dtype, device=self.device)
        self._norm, self._eps = norm_of(self.body.norm)
        layers = list(decoder_layers(model)[1])
        self.layers = [
            FusedLayer(layer, self.kernels, self._shared, self._like, n == len(layers) - 1)
            for n, layer in enumerate(layers)
        ]
        self._lowest = next(n for n, layer in enumerate(self.layers) if layer.learns)
        self._levels: tuple[str, ...] = ("none",) * len(layers)
        self._dense: int | None = None
        self._dropout = adapters(model)[0].dropout.p
        self.fp8 = recipe.train.fp8  # whether steps use fp8 products; logits and validation losses never do
        if self.fp8:
            for layer in self.layers:
                for projection in layer.projections:
                    projection.keep_fp8()
            self._shared.release()
        self._outer.place(on_host=self._is_tight())
        self._require_equal_layers()

    def _is_tight(self) -> bool:
        """Whether embedding and head should be away even before there is a plan."""
        fused, budget = self._room()
        return budget.usable is not None and budget.usable < fused.always(0) + 2 * fused.head

    def _room(self) -> tuple[FusedShape, Budget]:
        cuda = self.device.type == "cuda"
        total = torch.cuda.get_device_properties(self.device).total_memory if cuda else None
        trained = self.parameters.data.numel()
        shape = FusedShape.of(self.model.config.to_dict(), self.recipe, trained=trained)
        return shape, Budget.of(self.recipe.train, total)

    def plan(
        self, lengths: Sequence[int] | NDArray[np.int64], steps: Sequence[Step] | None = None
    ) -> MicroBatchPlan:
        """See the protocol. A function of recipe, rows and the card's total memory (or train.memory)."""
        return make_fused_plan(*self._room(), [int(n) for n in lengths], steps)

    def use(self, plan: MicroBatchPlan) -> None:
        """Take over which layers recompute what, of which dense images are kept, and where embedding and head lie."""
        if len(plan.recompute) != len(self.layers) or not set(plan.recompute) <= set(LEVELS):
            raise ValueError(
                f"the plan is for {len(plan.recompute)} layers ({', '.join(sorted(set(plan.recompute)))}), "
                f"the model has {len(self.layers)}"
            )
        self._levels, self._dense = plan.recompute, plan.dense
        for n, layer in enumerate(self.layers):
            for projection in layer.projections:
                projection.keep(n < plan.images)
        self._shared.release()
        self._outer.place(on_host=plan.outer_on_host)

    @torch.no_grad()
    def step(self, batch: PackedBatch, scale: float) -> StepSums:
        """See the protocol."""
        if batch.learned_tokens == 0:
            return StepSums(torch.zeros((), dtype=torch.float64, device=self.device), 0)
        self._refresh()
        host_ids, batch = batch.ids, batch.to(self.device)
        x = self._outer.embed(batch.ids, host_ids)
        stream = self._stream(batch, drops=True)
        x, delta, kept, away = self._layers_forward(x, stream, keeps=True)
        hidden, total = self._last_norm(x, delta, batch, stream)
        del x, delta
        with self._outer.head() as head:
            loss, d_hidden = loss_and_gradient(hidden, head, batch.ids[batch.targets], scale, self.kernels)
        self._backward(d_hidden, total, kept, away, batch, stream)
        return StepSums(loss, batch.learned_tokens)

    @contextmanager
    def products(self, *, fp8: bool) -> Iterator[None]:
        """Within, steps are in fp8 or exact."""
        before, self.fp8 = self.fp8, fp8
        try:
            yield
        finally:
            self.fp8 = before

    def _hidden(self, batch: PackedBatch) -> Tensor:
        self._refresh()
        stream = self._stream(batch, drops=False)
        x, delta, *_ = self._layers_forward(self._outer.embed(batch.ids, batch.ids), stream, keeps=False)
        return self._last_norm(x, delta, batch, stream)[0]

    def _position_losses(self, hidden_nH: Tensor, head: nn.Linear, targets_n: Tensor) -> Tensor:
        return losses(hidden_nH, head, targets_n, self.kernels)

    def _here(self) -> AbstractContextManager[nn.Linear]:
        return self._outer.head()

    def _run(self, ids: Tensor, positions: Tensor, attention: Packed | Padded) -> Tensor:
        """The model's own layers; its embedding may be away."""
        if not self._outer.on_host:
            return super()._run(ids, positions, attention)
        x = self._outer.embed(ids.flatten(), ids.flatten()).view(*ids.shape, -1)
        out = self.body(inputs_embeds=x, position_ids=positions, use_cache=False, attention=attention)
        return cast(Tensor, out.last_hidden_state)

    def _layers_forward(
        self, x: Tensor, stream: Stream, *, keeps: bool
    ) -> tuple[Tensor, Tensor | None, list[Kept], dict[int, Away]]:
        """(x, delta, what each layer from the lowest learning one on keeps, inputs that are on the host)."""
        self._outer.call_head()
        delta: Tensor | None = None
        kept: list[Kept] = []
        away: dict[int, Away] = {}
        for n, layer in enumerate(self.layers):
            level = self._levels[n] if keeps and n >= self._lowest else None
            x, delta, own = layer.forward(x, delta, stream, level)
            if own is not None:
                kept.append(own)
            if n - 1 in away:
                away[n - 1].let_go()  # it left while this layer was at work
            if own is not None and own.x is not None and level == "offload":
                away[n] = Away(own.x, self._courier)
                own.x = None
        return x, delta, kept, away

    def _last_norm(
        self, x: Tensor, delta: Tensor | None, batch: PackedBatch, stream: Stream
    ) -> tuple[Tensor, Tensor]:
        """(hidden_nH that predict the learned tokens, the stream that went into the last norm there)."""
        assert delta is not None
        if stream.needed_n is None:
            x, delta = (part.index_select(0, batch.targets - 1) for part in (x, delta))
        hidden, total = torch.empty_like(x), torch.empty_like(x)
        self.kernels.norm(x, delta, self._norm, self._eps, total, hidden)
        return hidden, total

    def _backward(
        self,
        d_hidden: Tensor,
        total: Tensor,
        kept: list[Kept],
        away: dict[int, Away],
        batch: PackedBatch,
        stream: Stream,
    ) -> None:
        width, down, last = total.shape[1], self.layers[-1].down, len(self.layers) - 1
        if last in away:
            away[last].call()
        d = down.output_gradient(len(total))
        self.kernels.norm_backward(d_hidden, total, self._norm, self._eps, None, d[:, :width], None)
        del d_hidden, total
        if stream.needed_n is None:
            few, d = d, down.output_gradient(stream.tokens)
            d.zero_()
            d.index_copy_(0, batch.targets - 1, few)
            del few
        for n in range(last, self._lowest - 1, -1):
            before = self.layers[n - 1].down if n > self._lowest else None
            own = kept.pop()
            if n in away:
                own.x = away.pop(n).take()
            if n - 1 in away:
                away[n - 1].call()  # it comes while this layer is at work
            below = self.layers[n].backward(d, own, stream, before)
            if below is not None:
                d = below

    def _stream(self, batch: PackedBatch, *, drops: bool) -> Stream:
        cos, sin = self.body.rotary_emb(self._like, batch.positions[None])
        keys = None
        if drops and self._dropout > 0:
            keys = token_keys(self.recipe.seed, batch.step, batch.rows[batch.row_of], batch.positions)
        dense = self._dense is not None and all(length == self._dense for length in batch.lengths)
        return Stream(
            batch.cu_seqlens,
            batch.max_length,
            cos[0].contiguous(),
            sin[0].contiguous(),
            keys,
            needed(batch.targets - 1, batch.tokens),
            dense,
            drops and self.fp8,
        )

    def _refresh(self) -> None:
        """The masters' numbers in the compute type, where the products read them."""
        self.parameters.publish()
        for layer in self.layers:
            for projection in layer.projections:
                projection.refresh()

    def _require_equal_layers(self) -> None:
        """On a few tokens, transformers' own layers must give the same hidden states, and autograd equal gradients."""
        ids = torch.arange(1, _TRIED + 1, device=self.device) % self.model.config.vocab_size
        batch = _small_batch(ids)
        with torch.no_grad():
            told = super()._hidden(batch)
        norms = self._by_autograd(batch)
        with torch.no_grad():
            found = self._hidden(batch)
        half = told.dtype in (torch.bfloat16, torch.float16)
        self.hidden_apart = float((found.double() - told.double()).norm() / told.double().norm())
        limit = 0.02 + 6e-3 * len(self.layers) if half else 1e-3
        if not self.hidden_apart <= limit:
            self._refuse("hidden states", self.hidden_apart, limit)
        with self.products(fp8=False):
            self.step(batch, -1.0)  # onto autograd's: no second buffer of gradients
        # B starts at zero, and A then has no gradient
        apart = torch.where(norms > 0, self._norms() / norms, self._norms()).nan_to_num(nan=torch.inf).max(0)
        self.parameters.zero_grad()
        self.gradient_apart, where = float(apart.values), list(self.parameters.grads)[int(apart.indices)]
        # 32 layers of noise in bf16: 0.15 at the worst adapter; a wrong formula: 0.3 and more
        self.gradient_limit = 0.1 + 5e-3 * len(self.layers) if half else 1e-3
        if not self.gradient_apart <= self.gradient_limit:
            self._refuse(f"gradients of {where}", self.gradient_apart, self.gradient_limit)

    def _by_autograd(self, batch: PackedBatch) -> Tensor:
        """Adds the gradients, dropout included; returns the norm of each adapter's."""
        with torch.enable_grad(), self._dropping(batch), self._here() as head:
            hidden_nH = super()._hidden(batch)
            summed_loss(hidden_nH, head, batch.ids[batch.targets], 1.0)[0].backward()  # type: ignore[no-untyped-call]
        return self._norms()

    def _norms(self) -> Tensor:
        return torch.stack([gradient.norm() for gradient in self.parameters.grads.values()])

    def _refuse(self, what: str, error: float, limit: float) -> NoReturn:
        self._outer.place(on_host=False)  # another engine may train this model
        raise ModelError(
            f"the layers of {type(self.model).__name__} compute something else than the fused engine's "
            f"({what} differ by {error:.2g} of their size, at most {limit:.2g} may be rounding)",
            fix="set train.engine: reference",
        )


def _small_batch(ids: Tensor) -> PackedBatch:
    """Two documents of all these tokens, every one but the first of each learned."""
    half = len(ids) // 2
    edges = torch.tensor([0, half, len(ids)], dtype=torch.int32, device=ids.device)
    positions = torch.arange(len(ids), device=ids.device)
    row_of = (positions >= half).long()
    positions = positions - row_of * half
    learned = positions > 0
    return PackedBatch(
        ids=ids, positions=positions, cu_seqlens=edges, max_length=len(ids) - half, learned=learned,
        targets=learned.nonzero()[:, 0], rows=torch.arange(2, device=ids.device), row_of=row_of,
        lengths=(half, len(ids) - half), step=0,
    )  # fmt: skip
