"""A short name for a loaded model: answers of one are never mixed with those of another."""

from __future__ import annotations

import hashlib
import json

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.model.lora import adapters

SAMPLES = 64  # values of each tensor: a trained or requantised one differs nearly everywhere


@torch.no_grad()
def model_key(model: PreTrainedModel) -> str:
    """Hash of architecture, evenly spaced values of every tensor, and the adapters with their scales, on or off."""
    config = model.config.to_dict() | {"_name_or_path": None}  # where a model lies changes no answer
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    digest.update(repr([(one.name, one.scaling, one.enabled) for one in adapters(model)]).encode())
    picked: dict[torch.dtype, list[Tensor]] = {}
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        flat = tensor.detach().reshape(-1)
        picked.setdefault(tensor.dtype, []).append(flat[:: max(1, len(flat) // SAMPLES)])
    for dtype in sorted(picked, key=str):  # one transfer for each type, not one a tensor
        digest.update(torch.cat(picked[dtype]).view(torch.uint8).cpu().numpy().tobytes())
    return digest.hexdigest()
