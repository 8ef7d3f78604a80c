"""Adapters on disk, in PEFT's file format: adapter_config.json beside adapter_model.safetensors.

Plain PEFT loads what is written here, and what PEFT wrote is read here or refused; nothing is ignored.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from tunesmith import console
from tunesmith.errors import ModelError
from tunesmith.lookup import nearest
from tunesmith.model.dropout import Dropout
from tunesmith.model.lora import LoraLinear, adapters, attach, linears
from tunesmith.recipe import Tune
from tunesmith.run import write_atomic

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_KEY = re.compile(r"base_model\.model\.(?P<name>.+)\.lora_(?P<half>[AB])\.weight")
# config keys that may hold anything: they change nothing about how the two matrices are applied
_HARMLESS = {
    "auto_mapping",
    "base_model_name_or_path",
    "ensure_weight_tying",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "lora_dropout",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
}
_READ = {
    "alpha_pattern",
    "bias",
    "init_lora_weights",
    "lora_alpha",
    "peft_type",
    "r",
    "rank_pattern",
    "use_rslora",
}
# these start from a base that they changed, so the adapter doesn't fit the base by itself
_MOVED_BASES = ("pissa", "olora", "corda", "loftq", "lora_ga")


def save_adapter(
    model: nn.Module,
    folder: Path,
    base_name: str,
    tune: Tune,
    *,
    revision: str | None = None,
) -> None:
    """Write the model's adapters into `folder`, each file whole or not at all; the same state gives the same bytes."""
    found = adapters(model)
    if not found:
        raise ValueError("the model has no adapters")
    tensors = {}
    for adapter in found:
        tensors[f"base_model.model.{adapter.name}.lora_A.weight"] = adapter.A.detach().cpu().contiguous()
        tensors[f"base_model.model.{adapter.name}.lora_B.weight"] = adapter.B.detach().cpu().contiguous()
    first = found[0]
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "revision": revision,
        "r": first.rank,
        "lora_alpha": first.alpha,
        "lora_dropout": tune.dropout,
        "use_rslora": first.rslora,
        "rank_pattern": {a.name: a.rank for a in found if a.rank != first.rank},
        "alpha_pattern": {a.name: a.alpha for a in found if a.alpha != first.alpha},
        "target_modules": _targets(model, found),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
        "modules_to_save": None,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / WEIGHTS, save(tensors, metadata={"format": "pt"}))
    write_atomic(folder / CONFIG, (json.dumps(config, indent=2, sort_keys=True) + "\n").encode())


def _targets(model: nn.Module, found: list[LoraLinear]) -> list[str]:
    """Last names where they mean exactly these modules in the whole model, as PEFT reads them; else full names."""
    names = [adapter.name for adapter in found]
    leaves = sorted({name.rpartition(".")[2] for name in names})
    others = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) or hasattr(m, "in_features")]
    meant = {n.removesuffix(".base") for n in others if n.removesuffix(".base").rpartition(".")[2] in leaves}
    return leaves if meant == set(names) else sorted(names)


class StoredPair(NamedTuple):
    """One linear's matrices as they lie in a file, A [r, in] and B [out, r], and what scales their product."""

    A: Tensor
    B: Tensor
    rank: int
    alpha: float
    rslora: bool


def read_adapter(folder: Path) -> dict[str, StoredPair]:
    """Name of a linear in the base's model → its pair. ModelError as for `load_adapter`, but for names and shapes."""
    config = _read_config(folder)
    pairs = {}
    for name, pair in _read_pairs(folder / WEIGHTS).items():
        rank = _pattern(config["rank_pattern"], name, config["r"])
        alpha = _pattern(config["alpha_pattern"], name, config["lora_alpha"])
        pairs[name] = StoredPair(pair["A"], pair["B"], int(rank), float(alpha), bool(config["use_rslora"]))
    return pairs


def load_adapter(model: nn.Module, folder: Path, *, dropout: float = 0.0) -> list[str]:
    """Freeze `model` and put the adapters of `folder` beside its linears; returns their names.

    Raises ModelError for anything that would not be applied exactly as PEFT applies it, for names and shapes that
    don't fit, for halves without their other half, and for numbers that aren't finite.
    """
    if adapters(model):
        raise ValueError("the model has adapters already")
    weights = folder / WEIGHTS
    pairs = read_adapter(folder)
    known = set(linears(model))
    unknown = sorted(set(pairs) - known)
    if unknown:
        guess = nearest(unknown[0], known)
        raise ModelError(
            f"the adapter holds {unknown[0]} ({len(unknown)} such), which is no linear of the model's layers"
            + (f"; the nearest is {guess}" if guess else ""),
            where=str(weights),
            fix="load it on the base it was trained on",
        )
    model.requires_grad_(False)
    shared = Dropout(dropout)
    for name in [name for name in linears(model) if name in pairs]:
        pair = pairs[name]
        adapter = attach(model, name, pair.rank, pair.alpha, pair.rslora, shared)
        for half, parameter, stored in (("A", adapter.A, pair.A), ("B", adapter.B, pair.B)):
            _fill(parameter, stored, f"{name}.lora_{half}", weights)
    if all(not pair.B.any() for pair in pairs.values()):
        console.warn(f"the adapter in {folder} changes nothing: all of its B matrices are zero")
    return [adapter.name for adapter in adapters(model)]


def _fill(parameter: nn.Parameter, stored: Tensor, name: str, path: Path) -> None:
    if stored.shape != parameter.shape:
        raise ModelError(
            f"{name} is {list(stored.shape)}; this base with the adapter's rank needs {list(parameter.shape)}",
            where=str(path),
            fix="load it on the base it was trained on",
        )
    if not bool(torch.isfinite(stored).all()):
        raise ModelError(
            f"{name} holds numbers that are not finite",
            where=str(path),
            fix="train it again",
        )
    with torch.no_grad():
        parameter.copy_(stored)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        raise ModelError(
            "this folder holds no adapter: there is no adapter_config.json",
            where=str(folder),
        )
    try:
        config: dict[str, Any] = json.loads(path.read_text("utf-8"))
        if not isinstance(config, dict):
            raise TypeError("it holds no JSON object")
    except (ValueError, TypeError) as error:
        raise ModelError(
            f"{CONFIG} can't be read: {error}", where=str(path), fix="save the adapter again"
        ) from None
    refuse = _refusal(config)
    if refuse:
        raise ModelError(
            f"this adapter uses {refuse}, which tunesmith lacks",
            where=str(path),
            fix="merge it with PEFT into its base and use the result as model.base",
        )
    defaults = {
        "rank_pattern": {},
        "alpha_pattern": {},
        "use_rslora": False,
        "lora_alpha": 8,
        "r": 8,
    }
    return defaults | {key: value for key, value in config.items() if value is not None}


def _refusal(config: dict[str, Any]) -> str | None:
    """The first setting that would change what the two matrices mean."""
    if config.get("peft_type") != "LORA":
        return f"peft_type {config.get('peft_type')}"
    if config.get("bias", "none") != "none":
        return f"trained biases (bias: {config['bias']})"
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_MOVED_BASES):
        return f"init_lora_weights {start}"
    for key in sorted(set(config) - _HARMLESS - _READ):
        if config[key]:  # every other feature of PEFT is off when empty, null or false
            return f"{key}: {config[key]}"
    return None


def _read_pairs(path: Path) -> dict[str, dict[str, Tensor]]:
    """Module name -> {"A": [r, in], "B": [out, r]}."""
    if not path.is_file():
        pickles = sorted(one.name for kind in ("bin", "pt", "pth") for one in path.parent.glob(f"*.{kind}"))
        raise ModelError(
            f"the adapter is a pickle ({pickles[0]}), which can run code on loading"
            if pickles
            else f"the adapter has no {WEIGHTS}",
            where=str(path.parent),
            fix="save it as safetensors",
        )
    pairs: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118  # not a dict
                match = _KEY.fullmatch(key)
                if match is None:
                    raise ModelError(f"the adapter holds {key}, which is no LoRA matrix", where=str(path))
                pairs.setdefault(match["name"], {})[match["half"]] = file.get_tensor(key)
    except SafetensorError:
        raise ModelError(
            "the adapter's file is cut short, or is no safetensors", where=str(path), fix="fetch it again"
        ) from None
    for name, pair in pairs.items():
        if len(pair) != 2:
            missing = "B" if "A" in pair else "A"
            raise ModelError(
                f"the adapter lacks {name}.lora_{missing}",
                where=str(path),
                fix="save it again",
            )
    if not pairs:
        raise ModelError("the adapter is empty", where=str(path))
    return pairs


def _pattern(patterns: dict[str, Any], name: str, default: Any) -> Any:
    """PEFT's rule: the first pattern that matches the whole name, or its end after a dot."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return value
    return default
