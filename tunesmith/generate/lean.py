"""The forward pass of a generator: transformers' own, or the lean one that walks the layers itself.

Between two products transformers launches a kernel for every operation: in a decoding step these take half of the time.
The lean pass takes training's kernels: one for a norm with the residual sum before it, one for a rotation, one for
SwiGLU. Linears, embedding, head and rotary tables stay modules and are called as such: adapters, quantised weights and
biases are theirs, and attention goes through the seam (`model.attention.attend`).

    normed = norm₁(x += delta)        q, k = rotate(Wq normed), rotate(Wk normed)
    normed = norm₂(x += Wo attend(q, k, Wv normed))
    delta  = Wd (silu(Wg normed) · Wu normed)

Which of the two it is says `why_not_lean`, and nothing else.

Rounding in a half type: norms and residual sums round where transformers' do. SwiGLU and rotations are computed in fp32
and rounded once, where transformers rounds after each operation (silu, its product; two products, their sum).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunesmith.kernels.chosen import kernels_for
from tunesmith.kernels.kernel_set import Kernels
from tunesmith.kernels.plain import PLAIN
from tunesmith.model.attention import Attention, attend, head_shape
from tunesmith.model.families import LINEARS, head_norms, norm_of, unlike, window_of
from tunesmith.model.lora import decoder_layers

Forward = Callable[[Tensor, Tensor, Attention, Tensor | None], Tensor]
"""ids_T, positions_T, what sees what, the places whose logits are wanted (None: all) → logits [N, V]."""

_NORMS = ("input_layernorm", "post_attention_layernorm")
_TYPES = (torch.bfloat16, torch.float16, torch.float32)  # the kernels compute in fp32


def forward_of(model: PreTrainedModel) -> Forward:
    """The lean pass where nothing stands against it, else transformers' own."""
    return their_forward(model) if why_not_lean(model) else LeanForward(model, kernels_for(model.device))


def why_not_lean(model: PreTrainedModel) -> str | None:
    """What stands against the lean pass; None where nothing does."""
    if kernels_for(model.device) is PLAIN:
        return "its kernels are made for CUDA and need triton"
    return why_unknown(model)


def why_unknown(model: PreTrainedModel) -> str | None:
    """What the lean pass would compute otherwise than this model does; None where nothing."""
    kind = type(model)
    if found := unlike(kind.__name__, str(getattr(model.config, "hidden_act", ""))):
        return found
    if not kind.__module__.startswith("transformers.models."):
        return f"{kind.__name__} is not transformers' own"
    tensors = [*model.parameters(), *model.buffers()]
    if len({one.device for one in tensors}) > 1:
        return "it lies on several devices"
    if model.dtype not in _TYPES:
        return f"its numbers are {str(model.dtype).removeprefix('torch.')}"
    for name, module in _passed_over(model):
        if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
            return f"{name} has a hook, which would not be called"
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.dtype != model.dtype:
            return f"{name} is {str(weight.dtype).removeprefix('torch.')}, the model another type"
    return None


def _passed_over(model: PreTrainedModel) -> Iterator[tuple[str, nn.Module]]:
    """Modules that the lean pass doesn't call."""
    called = {id(part) for module in _called(model) for part in module.modules()}
    yield from ((name, module) for name, module in model.named_modules() if id(module) not in called)


def _called(model: PreTrainedModel) -> Iterator[nn.Module]:
    yield from map(model.get_submodule, ("model.embed_tokens", "model.rotary_emb", "lm_head"))
    for layer in decoder_layers(model)[1]:
        for holder, names in LINEARS.items():
            yield from (layer.get_submodule(f"{holder}.{name}") for name in names)


def their_forward(model: PreTrainedModel) -> Forward:
    """Through transformers' own modules."""

    def forward(ids_T: Tensor, positions_T: Tensor, attention: Attention, wanted: Tensor | None) -> Tensor:
        logits: Tensor = model(
            input_ids=ids_T[None],
            position_ids=positions_T[None],
            use_cache=False,
            attention=attention,
            logits_to_keep=0 if wanted is None else wanted,
        ).logits
        return logits[0]

    return forward


class LeanForward:
    """A Llama-like model's layers, walked one after another; see `Forward`. Nothing of the weights is copied.

    Not differentiable. Modules are looked up here once: adapters that are put beside linears later are not seen.
    """

    def __init__(self, model: PreTrainedModel, kernels: Kernels) -> None:
        self.kernels = kernels
        body = model.get_submodule("model")
        self.embed, self.angles = body.get_submodule("embed_tokens"), body.get_submodule("rotary_emb")
        heads, key_heads = int(model.config.num_attention_heads), head_shape(model.config)[0]
        self.layers = [_Layer(layer, heads, key_heads, kernels) for layer in decoder_layers(model)[1]]
        self.norm, self.eps = norm_of(body.get_submodule("norm"))
        self.head = model.get_submodule("lm_head")

    def __call__(
        self, ids_T: Tensor, positions_T: Tensor, attention: Attention, wanted: Tensor | None
    ) -> Tensor:
        x_TH = self.embed(ids_T)
        cos, sin = self.angles(x_TH, positions_T[None])
        delta_TH: Tensor | None = None
        for layer in self.layers:
            delta_TH = layer(x_TH, delta_TH, cos[0], sin[0], attention)
        if wanted is not None:
            x_TH, delta_TH = x_TH[wanted], cast(Tensor, delta_TH)[wanted]
        normed_NH = torch.empty_like(x_TH)
        self.kernels.norm(x_TH, delta_TH, self.norm, self.eps, x_TH, normed_NH)
        return cast(Tensor, self.head(normed_NH))


class _Layer:
    """One decoder layer: its modules, and what its norms and its attention are called with."""

    def __init__(self, layer: nn.Module, heads: int, key_heads: int, kernels: Kernels) -> None:
        self.kernels = kernels
        self.attention = layer.get_submodule("self_attn")
        self.q, self.k, self.v, self.o, self.gate, self.up, self.down = (
            layer.get_submodule(f"{holder}.{name}") for holder, names in LINEARS.items() for name in names
        )
        (self.first, self.first_eps), (self.second, self.second_eps) = (
            norm_of(layer.get_submodule(name)) for name in _NORMS
        )
        self.width, self.scale = cast(int, self.attention.head_dim), cast(float, self.attention.scaling)
        self.window = window_of(self.attention)
        self.q_norms, self.k_norms, self.head_eps = self._head_norms(heads, key_heads)

    def __call__(
        self, x_TH: Tensor, delta_TH: Tensor | None, cos_TD: Tensor, sin_TD: Tensor, attention: Attention
    ) -> Tensor:
        """What is still to be added to x, to which `delta` and attention's part have been."""
        normed_TH = torch.empty_like(x_TH)
        self.kernels.norm(x_TH, delta_TH, self.first, self.first_eps, x_TH, normed_TH)
        q_TN, k_TN, v_TN = self.q(normed_TH), self.k(normed_TH), self.v(normed_TH)
        self._rotate(q_TN, self.q_norms, cos_TD, sin_TD)
        self._rotate(k_TN, self.k_norms, cos_TD, sin_TD)
        q, k, v = (x.view(len(x), -1, self.width).transpose(0, 1)[None] for x in (q_TN, k_TN, v_TN))
        attended, _ = attend(
            self.attention, q, k, v, None, scaling=self.scale, sliding_window=self.window, attention=attention
        )
        more_TH = self.o(attended[0].flatten(1))
        self.kernels.norm(x_TH, more_TH, self.second, self.second_eps, x_TH, normed_TH)
        gate_TF, up_TF = self.gate(normed_TH), self.up(normed_TH)
        self.kernels.swiglu(gate_TF, up_TF, gate_TF)
        return cast(Tensor, self.down(gate_TF))

    def _rotate(self, x_TN: Tensor, norms_ND: Tensor | None, cos_TD: Tensor, sin_TD: Tensor) -> None:
        """In place."""
        heads = x_TN.shape[1] // self.width
        self.kernels.rotate(x_TN, cos_TD, sin_TD, norms_ND, self.head_eps, heads, x_TN)

    def _head_norms(self, heads: int, key_heads: int) -> tuple[Tensor | None, Tensor | None, float]:
        if (norms := head_norms(self.attention)) is None:
            return None, None, 0.0
        queries, keys, eps = norms
        return queries.repeat(heads, 1), keys.repeat(key_heads, 1), eps
