"""Small random models of true architectures, shared by the tests of model, engine, merge and generator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
KINDS = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "llama_tied": (LlamaConfig, LlamaForCausalLM, {"tie_word_embeddings": True}),
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": 5}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),  # biases on q, k, v
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 16}),  # norms on q, k
}


def tiny(
    kind: str = "llama", *, dtype: torch.dtype = torch.float32, attention: str = "eager", **config: Any
) -> PreTrainedModel:
    """A model with random weights large enough that every part matters to its logits."""
    config_class, model_class, more = KINDS[kind]
    torch.manual_seed(0)
    model = model_class(config_class(**(SIZES | more | config), attn_implementation=attention))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.3 if parameter.dim() == 1 else 0.12)
    return model.to(dtype).eval()


def write_tiny(folder: Path, kind: str = "llama", **saving: Any) -> PreTrainedModel:
    """The same model as a folder; returns it (fp32, transformers' eager attention)."""
    model = tiny(kind)
    model.save_pretrained(folder, **saving)
    return model
