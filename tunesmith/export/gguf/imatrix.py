"""An importance matrix: how much each input column of each linear is used, by which quantisers weigh their errors.

The mean of x² over the tokens of training rows, x the linear's input, computed by the model itself, in the file format
of llama.cpp's own tool (tools/imatrix: NAME.in_sum2 and NAME.counts), so that `llama-quantize --imatrix` reads it too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunesmith.base import resolve
from tunesmith.engine.protocol import pack_sequences
from tunesmith.errors import ModelError
from tunesmith.export.gguf.architecture import read_architecture
from tunesmith.export.gguf.file import write_file
from tunesmith.export.gguf.library import require_gguf
from tunesmith.export.gguf.tensors import Planned, gguf_name
from tunesmith.model.attention import Packed
from tunesmith.model.load import load_model
from tunesmith.model.lora import linears
from tunesmith.model.tuned import default_device
from tunesmith.recipe import Model

_SUM, _COUNT = ".in_sum2", ".counts"
_TOKENS = 4096  # most in one stream, unless a single row has more


@torch.no_grad()
def write_imatrix(
    source: Path, rows: Sequence[Sequence[int]], out: Path, device: torch.device | None = None
) -> None:
    """Runs the model of the folder `source` over `rows` (token ids) and writes `out`, whole or not at all.

    ModelError where the model has no GGUF form, or where there is nothing to run.
    """
    require_gguf()
    if not any(rows):
        raise ModelError(
            "there are no training rows for an importance matrix", fix="export: {imatrix: false}"
        )
    base = resolve(Model(base=str(source)))
    architecture = read_architecture(base.config, source / "config.json")
    model = load_model(
        base, dtype=architecture.config.dtype or torch.float32, device=device or default_device()
    )
    tokens = sum(map(len, rows))
    with _sums(model) as sums:
        for stream in _streams(rows):
            _run(model, stream)
    tensors = []
    for name in sorted(sums):
        new = gguf_name(architecture, f"{name}.weight")
        found = sums[name].float().cpu()
        if not bool(torch.isfinite(found).all()):
            raise ModelError(f"the inputs of {name} are not finite", where=str(source), fix="merge again")
        tensors += [
            Planned(new + _SUM, "F32", (1, len(found)), found),
            Planned(new + _COUNT, "F32", (1, 1), torch.tensor([float(tokens)])),
        ]

    def describe(writer: Any) -> None:
        writer.add_type("imatrix")
        writer.add_array("imatrix.datasets", ["training rows"])
        writer.add_uint32("imatrix.chunk_count", len(rows))
        writer.add_uint32("imatrix.chunk_size", max(map(len, rows)))

    write_file(out, architecture.name, describe, tensors)


def _streams(rows: Sequence[Sequence[int]]) -> Iterator[list[list[int]]]:
    """Rows that are run side by side."""
    stream: list[list[int]] = []
    for row in rows:
        if stream and sum(map(len, stream)) + len(row) > _TOKENS:
            yield stream
            stream = []
        if row:
            stream.append(list(row))
    if stream:
        yield stream


def _run(model: PreTrainedModel, rows: list[list[int]]) -> None:
    batch = pack_sequences(rows, [[True] * len(row) for row in rows], range(len(rows)), step=0).to(
        model.device
    )
    body = model.get_submodule(model.base_model_prefix)  # logits are not needed
    body(
        input_ids=batch.ids[None],
        position_ids=batch.positions[None],
        use_cache=False,
        attention=Packed(batch.cu_seqlens, batch.max_length),
    )


@contextmanager
def _sums(model: PreTrainedModel) -> Iterator[dict[str, Tensor]]:
    """Name of a linear → Σ x² over all tokens that the model runs, float64 [columns]."""
    found: dict[str, Tensor] = {}

    def watch(name: str) -> Any:
        def add(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].detach().float()
            squares = x.reshape(-1, x.shape[-1]).square().sum(0, dtype=torch.float64)
            found[name] = found[name] + squares if name in found else squares

        return add

    hooks = [model.get_submodule(name).register_forward_pre_hook(watch(name)) for name in linears(model)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def read_imatrix(path: Path) -> Mapping[str, NDArray[np.float32]]:
    """Name of a GGUF tensor → mean of x² [columns], of a file of this form. ModelError where it is no such file."""
    gguf = require_gguf()
    try:
        reader = gguf.GGUFReader(path)
        stored = {one.name: np.array(one.data, np.float32).reshape(-1) for one in reader.tensors}
        found = {
            name.removesuffix(_SUM): values / np.maximum(stored[name.removesuffix(_SUM) + _COUNT][0], 1)
            for name, values in stored.items()
            if name.endswith(_SUM)
        }
    except (ValueError, KeyError, OSError, IndexError) as error:
        raise ModelError(
            f"the importance matrix can't be read: {error}", where=str(path), fix="make it again"
        ) from None
    if not found:
        raise ModelError("the file holds no importance matrix", where=str(path), fix="make it again")
    return found
