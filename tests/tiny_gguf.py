"""Tiny models with the starter's tokenizer, and what llama.cpp computes and reads from their GGUF files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tiny_models import tiny
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith import starter
from tunesmith.contract import Contract
from tunesmith.generate.llama_cpp import LlamaModel

LLAMA31 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama_tied": ("llama_tied", {}),
    "llama31": ("llama", {"rope_parameters": LLAMA31, "max_position_embeddings": 512}),
    "llama_biases": ("llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 32}),
    "llama_linear": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
    "mistral": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {}),
    "qwen2_yarn": (
        "qwen2",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e4,
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "qwen3": ("qwen3", {"head_dim": 32}),
}


class TinyFolder(NamedTuple):
    """A model, as a folder and in memory, and its contract."""

    folder: Path
    model: PreTrainedModel
    contract: Contract


def tiny_folder(folder: Path, name: str, dtype: torch.dtype = torch.float32, **more: Any) -> TinyFolder:
    """The folder `name` of MODELS; two embeddings more than the tokenizer has ids."""
    kind, config = MODELS[name]
    sizes: dict[str, Any] = {"vocab_size": 2050, "hidden_size": 128, "intermediate_size": 192}
    model = tiny(kind, dtype=dtype, **(sizes | config | more))
    model.save_pretrained(folder)
    contract = Contract.make(starter.base_folder())
    contract.save(folder)
    return TinyFolder(folder, model, contract)


def random_rows(vocabulary: int, lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
    """Random ids."""
    made = torch.Generator().manual_seed(seed)
    return [torch.randint(0, vocabulary, (length,), generator=made).tolist() for length in lengths]


@torch.no_grad()
def hugging_face_logits(model: PreTrainedModel, rows: Sequence[Sequence[int]]) -> Tensor:
    """fp32 [all tokens, V]."""
    return torch.cat([model(input_ids=torch.tensor([row]), use_cache=False).logits[0] for row in rows])


def llama_cpp_logits(path: Path, rows: Sequence[Sequence[int]], adapter: Path | None = None) -> Tensor:
    """The same by llama.cpp."""
    model = LlamaModel.open(path, adapter=adapter, context=max(map(len, rows)), slots=1)
    return model.logits(rows, [[True] * len(row) for row in rows])
