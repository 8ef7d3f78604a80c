"""The reference engine: any decoder of transformers with our attention and adapters, by autograd.

One micro-batch is one forward of the decoder's body over a packed stream (or, without packing, a padded rectangle),
the head on the positions that predict learned tokens, and one backward. Sums, never means; no waiting for the device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from tunesmith.engine.head import logit_chunks, position_losses, summed_loss
from tunesmith.engine.memory import Budget, Shape, make_plan
from tunesmith.engine.protocol import FlatParameters, MicroBatchPlan, PackedBatch, Step, StepSums
from tunesmith.errors import ModelError
from tunesmith.model.attention import Packed, Padded
from tunesmith.model.dropout import token_keys
from tunesmith.model.lora import adapters, decoder_layers
from tunesmith.recipe import Recipe

# what some families do to logits after the head; a value that changes nothing is allowed
_AFTER_HEAD: dict[str, float | None] = {
    "final_logit_softcapping": None,
    "logits_scaling": 1.0,
    "logit_scale": 1.0,
    "lm_head_multiplier": 1.0,
}


class ReferenceEngine:
    """Trains what requires a gradient in `model` (adapters, or everything)."""

    def __init__(self, model: PreTrainedModel, recipe: Recipe) -> None:
        self.model, self.recipe = model, recipe
        self.body = getattr(model, model.base_model_prefix)
        self.head = _head(model)
        self.parameters = FlatParameters([(n, p) for n, p in model.named_parameters() if p.requires_grad])
        self.device = self.parameters.data.device
        self._layers = decoder_layers(model)[1]
        self._dropouts = list({id(a.dropout): a.dropout for a in adapters(model)}.values())
        model.train(
            False
        )  # a model's own dropout would draw from a generator; ours is a counter in the adapters
        self._require_plain_head()

    def plan(
        self, lengths: Sequence[int] | NDArray[np.int64], steps: Sequence[Step] | None = None
    ) -> MicroBatchPlan:
        """See the protocol. A function of recipe, rows and the card's total memory (or train.memory)."""
        total = (
            torch.cuda.get_device_properties(self.device).total_memory if self.device.type == "cuda" else None
        )
        shape = Shape.of(self.model.config.to_dict(), self.recipe, trained=self.parameters.data.numel())
        return make_plan(shape, Budget.of(self.recipe.train, total), [int(n) for n in lengths], steps)

    def use(self, plan: MicroBatchPlan) -> None:
        """Make the plan's layers recompute, and the others not."""
        if len(plan.recompute) != len(self._layers):
            raise ValueError(
                f"the plan is for {len(plan.recompute)} layers, the model has {len(self._layers)}"
            )
        for i, how in enumerate(plan.recompute):
            layer = self._layers[i]
            plain: nn.Module = vars(layer)["plain"] if isinstance(layer, _Recomputed) else layer
            self._layers[i] = _Recomputed(plain) if how == "full" else plain

    def step(self, batch: PackedBatch, scale: float) -> StepSums:
        """See the protocol."""
        if batch.learned_tokens == 0:
            return StepSums(torch.zeros((), dtype=torch.float64, device=self.device), 0)
        self.parameters.publish()
        batch = batch.to(self.device)
        with torch.enable_grad(), self._dropping(batch):
            hidden_nH = self._hidden(batch)
            scaled, loss = summed_loss(hidden_nH, self.head, batch.ids[batch.targets], scale)
            scaled.backward()  # type: ignore[no-untyped-call]  # torch's is untyped
        return StepSums(loss, batch.learned_tokens)

    @torch.no_grad()
    def logits(self, batch: PackedBatch) -> Tensor:
        """See the protocol."""
        self.parameters.publish()
        hidden_nH = self._hidden(batch.to(self.device))
        with self._here() as head:
            return torch.cat([chunk.float() for _, chunk in logit_chunks(hidden_nH, head)])

    @torch.no_grad()
    def row_losses(self, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        """See the protocol."""
        self.parameters.publish()
        rows = batch.row_of[batch.targets].cpu()
        learned_R = torch.bincount(rows, minlength=len(batch.lengths))
        if batch.learned_tokens == 0:
            return torch.zeros(len(batch.lengths), dtype=torch.float64), learned_R
        batch = batch.to(self.device)
        hidden_nH = self._hidden(batch)
        with self._here() as head:
            nll_n = self._position_losses(hidden_nH, head, batch.ids[batch.targets])
        return torch.bincount(rows, weights=nll_n.double().cpu(), minlength=len(batch.lengths)), learned_R

    def _position_losses(self, hidden_nH: Tensor, head: nn.Linear, targets_n: Tensor) -> Tensor:
        """nll_n in nats, fp32 or wider."""
        return position_losses(hidden_nH, head, targets_n)

    def _here(self) -> AbstractContextManager[nn.Linear]:
        """The head, its weight on the device inside the block."""
        return nullcontext(self.head)

    def _hidden(self, batch: PackedBatch) -> Tensor:
        """hidden_nH at the positions that predict learned tokens."""
        predicting_n = batch.targets - 1
        if self.recipe.train.packing:
            attention = Packed(batch.cu_seqlens, batch.max_length)
            out_TH = self._run(batch.ids[None], batch.positions[None], attention)[0]
            return out_TH.index_select(0, predicting_n)
        rows, width = len(batch.lengths), batch.max_length
        cell_T = batch.row_of * width + batch.positions
        ids_RL = batch.ids.new_zeros(rows * width).scatter_(0, cell_T, batch.ids).view(rows, width)
        positions_RL = torch.arange(width, device=self.device).expand(rows, width)
        lengths_R = batch.cu_seqlens.diff().long()
        out_RLH = self._run(ids_RL, positions_RL, Padded(lengths_R))
        return out_RLH.flatten(0, 1).index_select(0, cell_T[predicting_n])

    def _run(self, ids: Tensor, positions: Tensor, attention: Packed | Padded) -> Tensor:
        # a cache would make transformers ignore where documents begin
        out = self.body(input_ids=ids, position_ids=positions, use_cache=False, attention=attention)
        return cast(Tensor, out.last_hidden_state)

    @contextmanager
    def _dropping(self, batch: PackedBatch) -> Iterator[None]:
        """Dropout by this batch's counters, in the layout that `_hidden` makes of it."""
        if self.recipe.train.packing:
            rows_T, positions_T = batch.rows[batch.row_of], batch.positions
        else:
            width = torch.arange(batch.max_length, device=self.device)
            rows_T = batch.rows.repeat_interleave(batch.max_length)
            positions_T = width.repeat(len(batch.lengths))
        keys = token_keys(self.recipe.seed, batch.step, rows_T, positions_T)
        with ExitStack() as stack:
            for dropout in self._dropouts:
                stack.enter_context(dropout.draws(keys))
            yield

    @torch.no_grad()
    def _require_plain_head(self) -> None:
        """The model's own logits must be head(body): no capping, no scaling, nothing that the loss would miss."""
        config, kind = self.model.config, type(self.model).__name__
        for key, neutral in _AFTER_HEAD.items():
            if getattr(config, key, neutral) not in (neutral, None):
                raise ModelError(
                    f"{kind} changes its logits after the head ({key}), which can't be trained here yet"
                )
        ids = (torch.arange(8, device=self.device) % config.vocab_size)[None]
        positions = torch.arange(8, device=self.device)[None]
        attention = Packed(torch.tensor([0, 8], dtype=torch.int32, device=self.device), 8)
        self.parameters.publish()
        ours = self.head(self._run(ids, positions, attention))
        theirs = self.model(
            input_ids=ids, position_ids=positions, use_cache=False, attention=attention
        ).logits
        difference = (ours - theirs).abs().max().item()
        if not difference <= 1e-5 * theirs.abs().max().item():
            raise ModelError(
                f"{kind} does something to its logits after the head (they differ by {difference:.2g}), "
                "which can't be trained here yet"
            )


class _Recomputed(nn.Module):
    """A decoder layer that keeps its input alone and runs again in the backward (Chen et al. 2016).

    It shares the layer's children and attributes, so names in the model stay as they are.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        vars(self).update({key: value for key, value in vars(layer).items() if "hook" not in key})
        vars(self)["plain"] = layer

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        layer = vars(self)["plain"]
        if not torch.is_grad_enabled():
            return layer(*args, **kwargs)
        return checkpoint(layer, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)


def _head(model: PreTrainedModel) -> nn.Linear:
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]  # transformers' is untyped
    if not isinstance(head, nn.Linear):
        raise ModelError(
            f"the head of {type(model).__name__} is no linear layer, which can't be trained here yet"
        )
    return head
