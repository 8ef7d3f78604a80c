"""From a folder of safetensors to a transformers model with frozen weights, tensor by tensor.

The model is built on the meta device and filled as its tensors are read, each quantised on its way where the recipe
says so: the peak is the model as it will lie there plus one tensor, on CUDA plus those that are read ahead (256 MiB, or
a single larger one). Nothing is guessed: a missing, left over or
misshapen tensor is an error, and so is a kind of model whose tensors would have to be converted.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from tunesmith import console
from tunesmith.base import Base
from tunesmith.errors import ModelError
from tunesmith.model.attention import register
from tunesmith.model.lora import linears
from tunesmith.model.tensors import COMPANION, COMPUTED, StoredTensors
from tunesmith.model.weights import FrozenLinear, FrozenWeight, quantized, stored_weight

# rotary angles that depend on the longest row of a batch: a row's loss would depend on its neighbours
_BATCH_DEPENDENT_ROPE = ("dynamic", "longrope")
_SHOWN = {"nf4": "NF4", "int8": "8 bits"}


def load_model(
    base: Base,
    *,
    dtype: torch.dtype | str,
    quantize: str = "none",
    device: torch.device | str = "cpu",
) -> PreTrainedModel:
    """The base, frozen, in evaluation mode, with our attention.

    `dtype` is that of arithmetic and of all weights that aren't quantised; with `quantize` nf4 or int8 the linears of
    the decoder layers become `FrozenLinear`s, while embeddings, norms and the head stay dense.
    """
    kind: torch.dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    model, packed = empty_model(base, kind, quantize)
    tensors = StoredTensors(base)
    frozen = _fill(model, tensors, kind, quantize, packed, torch.device(device))
    return _finished(model, frozen, torch.device(device), base)


def noise_model(
    base: Base, *, dtype: torch.dtype, quantize: str, device: torch.device, **config: Any
) -> PreTrainedModel:
    """A model of the base's kind and widths with random weights of its own; `config` changes config.json's values.

    No generator but its own is drawn from.
    """
    model, _ = empty_model(base, dtype, quantize, **config)
    in_layers = set(linears(model)) if quantize != "none" else set()
    generator, frozen = torch.Generator(device).manual_seed(0), {}
    for name, parameter in list(model.named_parameters()):
        owner, _, leaf = name.rpartition(".")
        tensor = torch.empty(parameter.shape, dtype=dtype, device=device)
        tensor.normal_(1.0 if tensor.ndim == 1 else 0.0, 0.02, generator=generator)
        if leaf == "weight" and owner in in_layers:
            frozen[owner] = quantized(tensor, quantize)
        else:
            _put(model.get_submodule(owner), leaf, tensor)
    return _finished(model, frozen, device, base)


def _finished(
    model: PreTrainedModel, frozen: dict[str, FrozenWeight], device: torch.device, base: Base
) -> PreTrainedModel:
    """Puts the quantised weights in, shares and computes what is not stored, and freezes the model."""
    for name, weight in frozen.items():
        _swap(model, name, weight)
    model.tie_weights()
    _rebuild_buffers(model, device)
    _check_whole(model, base)
    model.requires_grad_(False)
    model.config.use_cache = False
    model.train(False)
    return model


def empty_model(
    base: Base, dtype: torch.dtype, quantize: str, **changed: Any
) -> tuple[PreTrainedModel, bool]:
    """The base's model on the meta device, and whether its files are quantised. ModelError for what can't be trained.

    `changed` stands for values of config.json.
    """
    config = AutoConfig.from_pretrained(base.folder)
    packed = _check_config(config, base, quantize)
    for key, value in changed.items():
        setattr(config, key, value)
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]  # transformers' is untyped
            config, attn_implementation=register(), dtype=dtype
        )
    return model, packed


def _check_config(config: PreTrainedConfig, base: Base, quantize: str) -> bool:
    """Whether the base is stored quantised. Refuses what would be trained wrongly."""
    where = str(base.folder / "config.json")
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") in _BATCH_DEPENDENT_ROPE:
        raise ModelError(
            f"rotary angles of type {rope['rope_type']} depend on the longest row of a batch",
            where=where,
            fix="use a base with another rope_type (default, llama3, linear, yarn)",
        )
    held = stored_quantized(base)
    if held == "none":
        return False
    if quantize != held:
        raise ModelError(
            f"the base is stored in {_SHOWN[held]}", where=where, fix=f"set model.quantize: {held}"
        )
    del config.quantization_config
    return True


def stored_quantized(base: Base) -> str:
    """How a base's files hold its linears: none, nf4 or int8. ModelError where it is another way."""
    stored = base.config.get("quantization_config")
    if stored is None:
        return "none"
    method = stored.get("quant_method")
    if method == "bitsandbytes" and stored.get("load_in_8bit"):
        return "int8"
    if method == "bitsandbytes" and stored.get("load_in_4bit") and stored.get("bnb_4bit_quant_type") == "nf4":
        return "nf4"
    raise ModelError(
        f"the base is stored quantised by {method}, which can't be trained",
        where=str(base.folder / "config.json"),
        fix="use the base in 16 bit, with model.quantize: nf4 to save memory",
    )


def _fill(
    model: PreTrainedModel,
    tensors: StoredTensors,
    dtype: torch.dtype,
    how: str,
    packed: bool,
    device: torch.device,
) -> dict[str, FrozenWeight]:
    """Put every stored tensor into the model; returns the quantised weights of linears by the linear's name."""
    wanted = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **_persistent_buffers(model),
    }
    in_layers = set(linears(model)) if how != "none" else set()
    frozen: dict[str, FrozenWeight] = {}
    names, left_over = dict[str, str](), []  # stored key → name in the model
    for key in tensors:
        if not (COMPUTED.search(key) or (packed and COMPANION.search(key))):
            name = name_in(model, key, wanted)
            names |= {} if name is None else {key: name}
            left_over += [key] if name is None else []
    if left_over:
        raise ModelError(
            f"{type(model).__name__} has no place for {left_over[0]} ({len(left_over)} such)",
            where=str(tensors.folder),
            fix="models whose tensors transformers converts on loading are not supported; "
            "save it once with save_pretrained in the layout of its class",
        )
    tied = _tied(model)
    held, whole = list[str](), list[str]()
    for key in names:
        (held if packed and tensors.is_quantized(key) else whole).append(key)
    for key in whole:
        _require_shape(tensors.about(key)[1], wanted[names[key]], key, tensors)
    with console.progress("load", total=len(names), unit="tensors") as bar:
        for key in held:
            stored = stored_weight(key, tensors.companions(key))
            _require_shape(stored.shape, wanted[names[key]], key, tensors)
            frozen[names[key].rpartition(".")[0]] = stored.to(device)
            bar.update()
        read = tensors.read_all(whole, device)
        for key in whole:
            name, tensor = names[key], next(read)  # not by zip, which would hold the tensor before
            owner, _, leaf = name.rpartition(".")
            if name in tied and tied[name] in tensors and not _equal(tensor, tensors.read(tied[name])):
                raise ModelError(
                    f"{key} differs from {tied[name]}, although config.json ties them",
                    where=str(tensors.folder),
                    fix="set tie_word_embeddings to false in config.json",
                )
            if tensor.is_floating_point():
                tensor = tensor.to(dtype)
            if leaf == "weight" and owner in in_layers:
                frozen[owner] = quantized(tensor, how)
            else:
                _put(model.get_submodule(owner), leaf, tensor)
            del tensor  # or it would lie beside the next one
            bar.update()
    return frozen


def _tied(model: PreTrainedModel) -> dict[str, str]:
    """Name -> the name whose tensor it shares, as config.json says."""
    if not getattr(model.config, "tie_word_embeddings", False):
        return {}
    keys = getattr(model, "_tied_weights_keys", None) or {}
    return dict(keys) if isinstance(keys, dict) else {}


def name_in(model: PreTrainedModel, key: str, wanted: dict[str, Any]) -> str | None:
    """A stored key's name in the model: itself, or behind the prefix that a headless checkpoint lacks."""
    prefixed = f"{model.base_model_prefix}.{key}"
    return key if key in wanted else prefixed if prefixed in wanted else None


def _persistent_buffers(model: nn.Module) -> dict[str, Tensor]:
    stored = set(model.state_dict())
    return {name: buffer for name, buffer in model.named_buffers() if name in stored}


def _require_shape(found: tuple[int, ...], wanted: Tensor, key: str, tensors: StoredTensors) -> None:
    if found != tuple(wanted.shape):
        raise ModelError(
            f"{key} is {list(found)}, but config.json makes it {list(wanted.shape)}",
            where=str(tensors.folder),
            fix="the folder mixes two models: download it again",
        )


def _equal(tensor: Tensor, other: Tensor) -> bool:
    return torch.equal(tensor, other.to(tensor.device))


def _put(module: nn.Module, leaf: str, tensor: Tensor) -> None:
    if leaf in module._parameters:
        setattr(module, leaf, nn.Parameter(tensor, requires_grad=False))
    else:
        setattr(module, leaf, tensor)


def _swap(model: nn.Module, name: str, weight: FrozenWeight) -> None:
    """The linear `name` becomes a FrozenLinear over `weight`, with the bias that was loaded into it."""
    holder = model.get_submodule(name.rpartition(".")[0])
    linear = model.get_submodule(name)
    assert isinstance(linear, nn.Linear)
    bias = None if linear.bias is None else linear.bias.detach()
    setattr(holder, name.rpartition(".")[2], FrozenLinear(weight, bias))


def _rebuild_buffers(model: PreTrainedModel, device: torch.device) -> None:
    """Buffers that no checkpoint holds (rotary frequencies) were made on the meta device: make their owners again."""
    for name, module in list(model.named_modules()):
        own = dict(module.named_buffers(recurse=False))
        if not any(buffer.is_meta for buffer in own.values()):
            continue
        config = getattr(module, "config", None)
        if config is None or list(module.parameters()):
            raise ModelError(
                f"{name} ({type(module).__name__}) computes buffers in a way that tunesmith doesn't know"
            )
        fresh = type(module)(config)
        for leaf, buffer in fresh.named_buffers(recurse=False):
            module.register_buffer(
                leaf,
                buffer.to(device),
                persistent=leaf not in module._non_persistent_buffers_set,
            )


def _check_whole(model: nn.Module, base: Base) -> None:
    tensors = [*model.named_parameters(), *model.named_buffers()]
    missing = [name for name, tensor in tensors if tensor.is_meta]
    if missing:
        raise ModelError(
            f"the base has no {missing[0]} ({len(missing)} such)",
            where=str(base.folder),
            fix="download it again, or use a base whose files hold all of its tensors",
        )
