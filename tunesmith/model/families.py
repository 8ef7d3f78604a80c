"""Decoders whose layers we know part by part, so that they can be walked without transformers' own forward.

    x = x + o(attend(rotate(q, k), v))        q, k, v of norm₁(x); Qwen 3 norms each head of q and k first
    x = x + down(silu(gate) · up)             gate, up of norm₂(x)

Llama, Mistral, Qwen 2 and Qwen 3 of transformers are these layers under four names. No torch is loaded here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from torch import Tensor, nn

KINDS = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
LINEARS = {
    "self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
}


def unlike(kind: str, acting: str) -> str | None:
    """What sets a model of this class and activation apart from them; None where it is one of them."""
    if kind not in KINDS:
        return f"{kind} is none of {', '.join(name.removesuffix('ForCausalLM') for name in KINDS)}"
    return None if acting in ("silu", "swish") else f"the feed-forward acts by {acting}"


def norm_of(module: nn.Module) -> tuple[Tensor, float]:
    """Weight and epsilon of an RMSNorm."""
    return cast("Tensor", module.weight).detach(), float(cast(Any, module.variance_epsilon))


def head_norms(attention: nn.Module) -> tuple[Tensor, Tensor, float] | None:
    """Weights [D] of the norms on the heads of q and of k, and their epsilon; None where there are none."""
    if not hasattr(attention, "q_norm"):
        return None
    (queries, eps), (keys, _) = (norm_of(attention.get_submodule(name)) for name in ("q_norm", "k_norm"))
    return queries, keys, eps


def window_of(attention: nn.Module) -> int | None:
    """How many tokens an attention module sees, its own included; None: all. As the module itself asks for it."""
    if type(attention).__name__ == "MistralAttention":
        window = getattr(attention.config, "sliding_window", None)
    else:
        window = getattr(attention, "sliding_window", None)  # Qwen's layers have their own; Llama's have none
    return None if window is None else int(cast(int, window))
