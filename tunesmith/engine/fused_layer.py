"""A decoder layer of the Llama kind, forward and backward by hand.

    x          = x + delta                                   the residual stream, its last part added here
    q, k, v    = rotate(norm₁(x) · Wqkv)                      one product; Qwen 3 norms heads before they turn
    x₂         = x + attend(q, k, v) · Wo
    gate, up   = norm₂(x₂) · Wgu                              one product
    delta      = (silu(gate) · up) · Wd                       added by the next layer, where its norm reads it anyway

Kept for the backward: x, q, k, v, o, log-sum-exp, x₂, gate, up. Norms, SwiGLU and the adapters' inner products are
computed again. `level` says what else is:

    none      nothing                                   qkv       q, k, v
    gate_up   q, k, v, gate and up                      full      everything but x
    offload   everything; the engine sends x to the host and brings it back
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tunesmith.engine.fused_attention import Attended, Heads, attend, attend_backward
from tunesmith.engine.fused_stream import Stream
from tunesmith.engine.fused_weights import Projection, Shared
from tunesmith.kernels.kernel_set import Kernels
from tunesmith.kernels.plain import by_heads
from tunesmith.model.families import head_norms, norm_of, window_of


@dataclass
class Kept:
    """What a layer's forward leaves for its backward; None is computed again."""

    x: Tensor | None
    qkv: Tensor | None
    attended: Attended | None
    x2: Tensor | None
    gate_up: Tensor | None
    inner: tuple[
        Tensor | None, ...
    ]  # the adapters' inner products at qkv, o, gate_up and down: small, always kept


class FusedLayer:
    """Over the modules of a transformers layer, whose weights it shares. `last`: later layers need no more tokens."""

    def __init__(self, layer: nn.Module, kernels: Kernels, shared: Shared, like: Tensor, last: bool) -> None:
        attention, mlp = layer.get_submodule("self_attn"), layer.get_submodule("mlp")
        self.kernels, self.window, self.last = kernels, window_of(attention), last

        def projection(holder: nn.Module, *names: str) -> Projection:
            return Projection(holder, names, kernels, shared, like)

        self.qkv = projection(attention, "q_proj", "k_proj", "v_proj")
        self.o = projection(attention, "o_proj")
        self.gate_up = projection(mlp, "gate_proj", "up_proj")
        self.down = projection(mlp, "down_proj")
        self.width = int(attention.head_dim)  # type: ignore[arg-type]
        self.scale = float(attention.scaling)  # type: ignore[arg-type]
        self.heads, self.key_heads = (out // self.width for out in self.qkv.outs[:2])
        self.first_norm, self.first_eps = norm_of(layer.get_submodule("input_layernorm"))
        self.second_norm, self.second_eps = norm_of(layer.get_submodule("post_attention_layernorm"))
        self.head_norms, self.head_eps = self._head_norms(attention)

    @property
    def projections(self) -> tuple[Projection, ...]:
        """All four."""
        return self.qkv, self.o, self.gate_up, self.down

    @property
    def learns(self) -> bool:
        """Whether an adapter stands in this layer."""
        return any(projection.adapters for projection in self.projections)

    def forward(
        self, x: Tensor, delta: Tensor | None, stream: Stream, level: str | None
    ) -> tuple[Tensor, Tensor, Kept | None]:
        """(x₂, delta, what is kept at `level`; None keeps nothing) of the residual stream x + delta."""
        total = None if delta is None else torch.empty_like(x)
        normed = self.qkv.input(len(x))
        self.kernels.norm(x, delta, self.first_norm, self.first_eps, total, normed[:, : self.qkv.K])
        x = x if total is None else total
        del delta, total
        keeps = level is not None
        qkv, z_qkv = self._rotated(normed, stream, keeps)
        del normed
        attended = attend(self._turned(qkv, stream), stream, self.scale, self.window)
        kept = Kept(x if keeps else None, qkv if level == "none" else None, None, None, None, ())
        del qkv  # what is not kept makes room at once
        x2, normed2, z_o = self._middle(x, attended, stream)
        if level in ("none", "qkv", "gate_up"):
            kept.attended, kept.x2 = attended, x2
        del attended, x
        after = self._after(stream)
        gate_up, z_gate_up = self.gate_up.forward(normed2, after, tail=True)
        z_gate_up = _apart(z_gate_up, keeps)
        del normed2
        product = self.down.input(len(x2))
        self.kernels.swiglu(*gate_up.chunk(2, dim=1), product[:, : self.down.K])
        if level in ("none", "qkv"):
            kept.gate_up = gate_up
        del gate_up
        delta, z_down = self.down.forward(product, after)
        kept.inner = (z_qkv, z_o, z_gate_up, _apart(z_down, keeps))
        return x2, delta, kept if keeps else None

    def backward(self, d: Tensor, kept: Kept, stream: Stream, before: Projection | None) -> Tensor | None:
        """The gradient of the layer's input from that of its output; adapters' gradients go to their masters.

        `d` lies in `down.output_gradient`'s layout, the result in that of `before` (None: nobody below asks for it).
        """
        after, kernels = self._after(stream), self.kernels
        self._again(kept, stream)
        assert kept.qkv is not None and kept.attended is not None and kept.x2 is not None
        x2, gate_up = kept.x2, kept.gate_up
        if gate_up is None:
            normed2 = self.gate_up.input(len(x2))
            kernels.norm(x2, None, self.second_norm, self.second_eps, None, normed2[:, : self.gate_up.K])
            gate_up, _ = self.gate_up.forward(normed2, after, tail=True)
            del normed2
        kept.gate_up = kept.x2 = None
        _, z_o, z_gate_up, z_down = kept.inner
        # feed-forward
        product = self.down.input_gradient(d, after)
        kernels.swiglu_backward(gate_up, product)  # gate_up is its own gradient now, and product the product
        self.down.learn(d, product, z_down, after)
        del product
        d_gate_up = _whole_row(gate_up, self.gate_up)
        d_normed = self.gate_up.input_gradient(d_gate_up, after)
        d2 = self.o.output_gradient(len(x2))
        again = torch.empty_like(x2) if self.gate_up.active else None
        kernels.norm_backward(
            d_normed, x2, self.second_norm, self.second_eps, d[:, : x2.shape[1]], d2[:, : self.o.N], again
        )
        del d_normed, d
        if again is not None:
            self.gate_up.learn(d_gate_up, again, z_gate_up, after)
        del gate_up, d_gate_up, again, x2
        # attention
        o = self._chosen(kept.attended.o, stream)
        d_o = self.o.input_gradient(d2, after)
        self.o.learn(d2, o, z_o, after)
        del o
        if before is None and not self.qkv.active:
            return None
        return self._attention_backward(d_o, d2[:, : self.o.N], kept, stream, before)

    def _attention_backward(
        self, d_o: Tensor, d2: Tensor, kept: Kept, stream: Stream, before: Projection | None
    ) -> Tensor | None:
        kernels, x, qkv, attended = self.kernels, kept.x, kept.qkv, kept.attended
        assert x is not None and qkv is not None and attended is not None
        if self._leaves_out(stream):
            d_o, d2 = (_spread(part, stream) for part in (d_o, d2))
        d_heads = attend_backward(d_o, self._turned(qkv, stream), attended, stream, self.scale, self.window)
        kept.attended = None
        del attended, d_o
        kernels.rotate_backward(*d_heads, stream.cos_TD, stream.sin_TD, self.head_norms, self.head_eps, qkv)
        del d_heads
        d_qkv = _whole_row(qkv, self.qkv)
        kept.qkv = None
        d_normed = out = None
        if before is not None:
            d_normed = self.qkv.input_gradient(d_qkv, stream)
            out = before.output_gradient(len(x))
        normed = torch.empty_like(x) if self.qkv.active else None
        kernels.norm_backward(
            d_normed,
            x,
            self.first_norm,
            self.first_eps,
            d2,
            None if out is None else out[:, : x.shape[1]],
            normed,
        )
        if normed is not None:
            self.qkv.learn(d_qkv, normed, kept.inner[0], stream, tail_filled=before is not None)
        return out

    def _again(self, kept: Kept, stream: Stream) -> None:
        """What attention left and was not kept."""
        if kept.qkv is not None:
            return
        assert kept.x is not None
        normed = self.qkv.input(len(kept.x))
        self.kernels.norm(kept.x, None, self.first_norm, self.first_eps, None, normed[:, : self.qkv.K])
        kept.qkv, _ = self._rotated(normed, stream, keeps=False)
        del normed
        if kept.attended is not None:
            return
        kept.attended = attend(self._turned(kept.qkv, stream), stream, self.scale, self.window)
        kept.x2, normed2, _ = self._middle(kept.x, kept.attended, stream)
        kept.gate_up, _ = self.gate_up.forward(normed2, self._after(stream), tail=True)

    def _rotated(self, normed: Tensor, stream: Stream, keeps: bool) -> tuple[Tensor, Tensor | None]:
        """q, k, v in one row, turned (where heads have norms, as they were before these), and the inner product."""
        qkv, z = self.qkv.forward(normed, stream, tail=True)
        if self.head_norms is None:
            heads = self.heads + self.key_heads
            self.kernels.rotate(qkv, stream.cos_TD, stream.sin_TD, None, 0.0, heads, qkv)
        return qkv, _apart(z, keeps)

    def _turned(self, qkv: Tensor, stream: Stream) -> Heads:
        heads, keys = self.heads, self.key_heads
        x = by_heads(qkv, qkv.shape[1] // self.width)
        if self.head_norms is None:
            return Heads(x[:, :heads], x[:, heads : heads + keys], x[:, heads + keys :])
        turned = torch.empty(len(qkv), (heads + keys) * self.width, dtype=qkv.dtype, device=qkv.device)
        self.kernels.rotate(
            qkv, stream.cos_TD, stream.sin_TD, self.head_norms, self.head_eps, heads + keys, turned
        )
        y = by_heads(turned, heads + keys)
        return Heads(y[:, :heads], y[:, heads:], x[:, heads + keys :])

    def _middle(self, x: Tensor, attended: Attended, stream: Stream) -> tuple[Tensor, Tensor, Tensor | None]:
        """(x₂, norm₂(x₂) in `gate_up.input`'s layout, o's inner product), of the needed tokens in the last layer."""
        more, z = self.o.forward(self._chosen(attended.o, stream), self._after(stream))
        x = self._chosen(x, stream)
        x2, normed2 = torch.empty_like(x), self.gate_up.input(len(x))
        self.kernels.norm(x, more, self.second_norm, self.second_eps, x2, normed2[:, : self.gate_up.K])
        return x2, normed2, z

    def _leaves_out(self, stream: Stream) -> bool:
        return self.last and stream.needed_n is not None

    def _after(self, stream: Stream) -> Stream:
        return stream.after_attention() if self._leaves_out(stream) else stream

    def _chosen(self, x: Tensor, stream: Stream) -> Tensor:
        return x.index_select(0, stream.needed_n) if self.last and stream.needed_n is not None else x

    def _head_norms(self, attention: nn.Module) -> tuple[Tensor | None, float]:
        if (norms := head_norms(attention)) is None:
            return None, 0.0
        queries, keys, eps = norms
        return torch.cat([queries.expand(self.heads, -1), keys.expand(self.key_heads, -1)]).contiguous(), eps


def _apart(z: Tensor | None, keeps: bool) -> Tensor | None:
    """z out of the tail of a large buffer, which would otherwise stay."""
    return z.contiguous() if z is not None and keeps else None


def _whole_row(x_TN: Tensor, projection: Projection) -> Tensor:
    """x with the tail that `output_gradient` left behind its rows."""
    return x_TN.as_strided((len(x_TN), projection.N + projection.tail), x_TN.stride(), x_TN.storage_offset())


def _spread(part: Tensor, stream: Stream) -> Tensor:
    """Gradients of the needed tokens among zeros for the others."""
    assert stream.needed_n is not None
    whole = part.new_zeros(stream.tokens, part.shape[1])
    return whole.index_copy_(0, stream.needed_n, part)
