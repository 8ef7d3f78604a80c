"""What llama.cpp must know of a model beside its weights: from config.json to GGUF's keys, or a refusal.

Only architectures whose every setting has a place in GGUF are written. Facts of each: llama.cpp, conversion/llama.py
and conversion/qwen.py; what llama.cpp computes from them: src/models/.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig

from tunesmith.errors import ModelError

if TYPE_CHECKING:
    from gguf import GGUFWriter

# Hugging Face's class → llama.cpp's name. llama.cpp's `llama` turns neighbouring values of a head, transformers the
# halves of a head: rows of q and k are permuted for it
ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


@dataclass(frozen=True)
class Architecture:
    """A model's shape and settings, as GGUF names them."""

    name: str
    """llama, qwen2 or qwen3."""
    config: PretrainedConfig
    """With every default filled in."""
    rope: Mapping[str, Any]
    """rope_type, rope_theta, and what the type needs."""
    context: int
    """Most tokens for which llama.cpp computes the same as transformers."""

    @property
    def heads(self) -> int:
        """Query heads."""
        return int(self.config.num_attention_heads)

    @property
    def kv_heads(self) -> int:
        """Key and value heads."""
        return int(self.config.num_key_value_heads or self.heads)

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return int(getattr(self.config, "head_dim", None) or self.config.hidden_size // self.heads)

    @property
    def tied(self) -> bool:
        """Whether the output uses the input's embeddings."""
        return bool(self.config.tie_word_embeddings)

    def rope_factors(self) -> Tensor | None:
        """fp32 [head_dim / 2]: what Llama 3.1 divides each frequency by; None elsewhere."""
        if self.rope["rope_type"] != "llama3":
            return None
        rope, dim = self.rope, self.head_dim
        frequencies = 1.0 / (rope["rope_theta"] ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim))
        old, factor = float(rope["original_max_position_embeddings"]), float(rope["factor"])
        low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
        lengths = 2 * math.pi / frequencies
        smooth = (old / lengths - low) / (high - low)
        between = 1 / ((1 - smooth) / factor + smooth)
        short, long = lengths < old / high, lengths > old / low
        return torch.where(short, 1.0, torch.where(long, factor, between))

    def describe(self, writer: GGUFWriter) -> None:
        """Adds all keys of the architecture."""
        config = self.config
        writer.add_block_count(config.num_hidden_layers)
        writer.add_context_length(self.context)
        writer.add_embedding_length(config.hidden_size)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(self.heads)
        writer.add_head_count_kv(self.kv_heads)
        self._describe_rope(writer)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_key_length(self.head_dim)
        writer.add_value_length(self.head_dim)
        writer.add_vocab_size(config.vocab_size)
        if self.name == "llama":
            writer.add_rope_dimension_count(self.head_dim)

    def _describe_rope(self, writer: GGUFWriter) -> None:
        from gguf.constants import RopeScalingType

        rope = self.rope
        writer.add_rope_freq_base(float(rope["rope_theta"]))
        if rope["rope_type"] in ("linear", "yarn"):
            kind = RopeScalingType.LINEAR if rope["rope_type"] == "linear" else RopeScalingType.YARN
            writer.add_rope_scaling_type(kind)
            writer.add_rope_scaling_factor(float(rope["factor"]))
        if rope["rope_type"] == "yarn":
            writer.add_rope_scaling_orig_ctx_len(int(rope["original_max_position_embeddings"]))
            for key, add in (
                ("beta_fast", writer.add_rope_scaling_yarn_beta_fast),
                ("beta_slow", writer.add_rope_scaling_yarn_beta_slow),
            ):
                if rope.get(key) is not None:
                    add(float(rope[key]))


def read_architecture(config: Mapping[str, Any], where: Path) -> Architecture:
    """From config.json's content. ModelError names what llama.cpp's form of this model could not hold."""
    classes = config.get("architectures") or [f"a model of type {config.get('model_type')!r}"]
    experts = next((key for key in _EXPERTS if (config.get(key) or 0) > 1), None)
    if experts:
        raise _refusal(f"{classes[0]} is a mixture of experts ({experts}: {config[experts]})", where)
    name = ARCHITECTURES.get(classes[0])
    if name is None:
        raise _refusal(f"{classes[0]} is not among {', '.join(ARCHITECTURES)}", where)
    if "quantization_config" in config:
        raise ModelError(
            "the weights of this folder are quantised already",
            where=str(where),
            fix="export from the merged 16-bit folder: GGUF's kinds are made from that",
        )
    # a copy: transformers writes rope_theta into the dictionary that it is given
    rest = {key: deepcopy(value) for key, value in config.items() if key != "model_type"}
    whole = AutoConfig.for_model(config["model_type"], **rest)
    rope = _rope(whole, name, where)
    for key, wanted in (("hidden_act", "silu"), ("partial_rotary_factor", 1.0)):
        found = rope.get(key, getattr(whole, key, wanted))
        if found not in (wanted, None):
            raise _refusal(f"{key} is {found!r}, where llama.cpp's {name} computes with {wanted!r}", where)
    return Architecture(name, whole, rope, _context(whole))


def _rope(config: PretrainedConfig, name: str, where: Path) -> Mapping[str, Any]:
    rope = dict(config.rope_parameters or {})
    kind = rope.setdefault("rope_type", "default")
    known = ("default", "linear", "yarn", *(("llama3",) if name == "llama" else ()))
    if kind not in known:
        raise _refusal(f"its positions are of the type {kind!r}; known for {name}: {', '.join(known)}", where)
    odd = next((key for key in ("mscale", "mscale_all_dim", "attention_factor") if rope.get(key)), None)
    if odd:
        raise _refusal(f"its positions have {odd}, which is counted otherwise there", where)
    rope.setdefault("original_max_position_embeddings", config.max_position_embeddings)
    return rope


def _context(config: PretrainedConfig) -> int:
    """llama.cpp's forms of these architectures look at all earlier tokens: the same up to the window's length."""
    longest = int(config.max_position_embeddings)
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"]
    if not window or "sliding_attention" not in kinds or window >= longest:
        return longest
    return int(window)


def _refusal(what: str, where: Path) -> ModelError:
    return ModelError(
        f"there is no GGUF form of this model that would compute the same: {what}",
        where=str(where),
        fix="leave export.gguf out; the merged folder serves as it is",
    )
