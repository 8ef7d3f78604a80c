"""AdamW over the flat buffer: torch's own in fp32, or bitsandbytes' with 8-bit (and paged) state.

The parameters that an optimiser sees are views into `FlatParameters`: one, or where weights decay in full
fine-tuning, runs of matrices and runs of vectors (norms and biases don't decay).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from itertools import groupby
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tunesmith.engine.protocol import FlatParameters
from tunesmith.errors import SetupError

BETAS, EPSILON = (0.9, 0.999), 1e-8
_LARGEST = 1 << 30  # numbers in a part: bitsandbytes counts them in 32 bits


def clip(gradient: Tensor, limit: float | None) -> Tensor:
    """Scales the flat gradient in place to a norm of at most `limit`; returns its norm before, 0-d, on the device."""
    norm: Tensor = torch.linalg.vector_norm(gradient)
    if limit is not None:
        gradient.mul_(torch.clamp(limit / (norm + 1e-6), max=1.0))  # always multiplied: no branch, no sync
    return norm


class Optimizer:
    """AdamW with decoupled decay (Loshchilov and Hutter 2019); 8-bit state as in Dettmers et al. 2022."""

    def __init__(
        self,
        kind: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"],
        parameters: FlatParameters,
        *,
        weight_decay: float,
    ) -> None:
        self.parts = _parts(parameters, weight_decay)
        groups = [
            {"params": [p for p, decays in self.parts if decays == kept], "weight_decay": weight_decay * kept}
            for kept in (True, False)
        ]
        groups = [group for group in groups if group["params"]]
        self._torch = _make(kind, groups)
        self._create_state()

    def step(self, rate: float) -> None:
        """One update at this learning rate, from the gradients in the flat buffer."""
        for group in self._torch.param_groups:
            group["lr"] = rate
        self._torch.step()

    def tensors(self) -> dict[str, Tensor]:
        """The state by name, `<part>.<key>`."""
        return {
            f"{i}.{key}": value if isinstance(value, Tensor) else torch.tensor(value)
            for i, (part, _) in enumerate(self.parts)
            for key, value in self._torch.state[part].items()
            if not key.startswith("qmap")  # bitsandbytes' constant code books
        }

    def load(self, saved: Mapping[str, Tensor]) -> None:
        """Takes the state that `tensors` gave. Raises KeyError or ValueError when it is another optimiser's."""
        expected = set(self.tensors())
        if expected != set(saved):
            raise ValueError(f"optimiser state differs: {sorted(expected ^ set(saved))}")
        for i, (part, _) in enumerate(self.parts):
            state = self._torch.state[part]
            for key in [key for key in state if not key.startswith("qmap")]:
                value = saved[f"{i}.{key}"]
                if not isinstance(state[key], Tensor):
                    state[key] = value.item()
                elif state[key].shape != value.shape or state[key].dtype != value.dtype:
                    raise ValueError(f"optimiser state {i}.{key}: {tuple(value.shape)} {value.dtype}")
                else:
                    state[key].copy_(value)

    def _create_state(self) -> None:
        """Both libraries make their state in the first step; the memory probe and a resume need it before."""
        for g, group in enumerate(self._torch.param_groups):
            for p, part in enumerate(group["params"]):
                if hasattr(self._torch, "init_state"):  # bitsandbytes: paged buffers must be its own
                    with warnings.catch_warnings():
                        warnings.filterwarnings("ignore", message="Paged optimizers are not supported on CPU")
                        self._torch.init_state(group, part, g, p)
                else:
                    self._torch.state[part] = {
                        "step": torch.zeros((), dtype=torch.float32, device=part.device),
                        "exp_avg": torch.zeros_like(part),
                        "exp_avg_sq": torch.zeros_like(part),
                    }


def _parts(parameters: FlatParameters, weight_decay: float) -> list[tuple[nn.Parameter, bool]]:
    """Views of the flat buffers as (parameter, whether it decays), in order."""
    sizes = [(weight_decay == 0 or len(shape) > 1, shape) for shape in parameters.shapes]
    parts, begin = [], 0
    for decays, run in groupby(sizes, key=lambda pair: pair[0]):
        end = begin + sum(torch.Size(shape).numel() for _, shape in run)
        for start in range(begin, end, _LARGEST):
            stop = min(start + _LARGEST, end)
            part = nn.Parameter(parameters.data[start:stop])
            part.grad = parameters.grad[start:stop]
            parts.append((part, decays))
        begin = end
    return parts


def _make(kind: str, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    if kind == "adamw":
        return torch.optim.AdamW(groups, lr=0.0, betas=BETAS, eps=EPSILON, fused=True)
    try:
        import bitsandbytes
    except ImportError as error:
        raise SetupError(
            f"train.optimizer: {kind} needs the package bitsandbytes",
            fix="pip install bitsandbytes, or train.optimizer: adamw",
        ) from error
    paged = kind == "paged_adamw_8bit"
    adamw: torch.optim.Optimizer = bitsandbytes.optim.AdamW(  # type: ignore[attr-defined, no-untyped-call]  # no types there
        groups, lr=0.0, betas=BETAS, eps=EPSILON, optim_bits=8, is_paged=paged
    )
    return adamw
