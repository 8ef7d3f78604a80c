"""What export may refuse, found out before training: tools, forms of this model, disk and memory for the whole plan."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import torch

from tunesmith import console
from tunesmith.base import Base
from tunesmith.contract import Contract
from tunesmith.errors import ModelError, OutOfRoom, RecipeError, SetupError
from tunesmith.export.gguf.architecture import read_architecture
from tunesmith.export.gguf.kinds import BLOCK, QUANTISED
from tunesmith.export.gguf.library import require_gguf
from tunesmith.export.gguf.vocabulary import read_vocabulary
from tunesmith.export.modelfile import require_modelfile
from tunesmith.export.sizes import Item, Numbers, numbers_of, plan
from tunesmith.generate.llama_cpp.library import require_llama_cpp
from tunesmith.model.load import stored_quantized
from tunesmith.recipe import Recipe
from tunesmith.rows import Rows
from tunesmith.run import Run
from tunesmith.view.scored import run_decoding, scored_rows

_SPARE = 256 << 20  # for rows, reports and what else is small
_Q8_BLOCK = 32


def require_exportable(
    recipe: Recipe, base: Base, folder: Path, *, contract: Contract | None = None, run: Run | None = None
) -> list[Item]:
    """Raises what export would refuse of this recipe and base, hours earlier; returns what will lie on disk.

    `folder`: where the run lies or will lie. `contract`: where it is made already, its tokenizer is judged too. `run`:
    what lies in it already needs no more room. RecipeError, SetupError, ModelError, OutOfRoom.
    """
    _require_sense(recipe, base)
    export = recipe.export
    require_modelfile(recipe, contract)
    if export.gguf or export.adapter_gguf:
        _require_gguf_form(recipe, base, contract, run)
    if export.quantized and find_spec("bitsandbytes") is None:
        raise SetupError(
            "quantised folders need the package bitsandbytes",
            where="export.quantized",
            fix="pip install bitsandbytes, or leave export.quantized out",
        )
    items = plan(recipe, base)
    _require_disk(items, folder, run)
    if export.merged or export.gguf or export.quantized or export.adapter_gguf:
        _require_memory(recipe, numbers_of(base))
    return items


def _require_sense(recipe: Recipe, base: Base) -> None:
    export = recipe.export
    if export.adapter_gguf and recipe.tune.method == "full":
        raise RecipeError(
            "tune.method: full makes no adapter, so there is none to write as GGUF",
            where="export.adapter_gguf",
            fix="export.adapter_gguf: false; export.gguf writes the whole model",
        )
    stored = stored_quantized(base)
    if export.adapter_gguf and stored != "none":
        raise RecipeError(
            f"the base is stored in {stored}: there is no GGUF of it to put the adapter on",
            where="export.adapter_gguf",
            fix="export.adapter_gguf: false, or train on the base in 16 bit with model.quantize: nf4",
        )
    if stored in export.quantized:
        raise RecipeError(
            f"the base is stored in {stored} and has no other weights: put into {stored} again, the merge falls back "
            "on the base's own numbers and lose the adapter",
            where="export.quantized",
            fix=f"leave {stored} out of export.quantized and serve the adapter over the base, or train on the base in "
            f"16 bit with model.quantize: {stored}",
        )
    if export.imatrix and not {*export.gguf} & {*QUANTISED}:
        raise RecipeError(
            "an importance matrix is for GGUF kinds below 8 bits, and export.gguf names none",
            where="export.imatrix",
            fix="export.imatrix: false, or add a kind such as Q4_K_M to export.gguf",
        )


def _require_gguf_form(recipe: Recipe, base: Base, contract: Contract | None, run: Run | None) -> None:
    for need in (require_gguf, require_llama_cpp):  # each GGUF is run by llama.cpp before it counts
        try:
            need()
        except SetupError as error:
            error.where = "export.gguf"
            error.args = (error.what, error.where, error.fix)
            raise
    config = {key: value for key, value in base.config.items() if key != "quantization_config"}
    architecture = read_architecture(config, base.folder / "config.json")
    if architecture.context < int(architecture.config.max_position_embeddings):
        console.warn(
            f"the model looks back over {architecture.context:,} tokens only, which GGUF can't say for it: a file is "
            f"limited to a context of {architecture.context:,} tokens, where both compute the same"
        )
    if contract is not None:
        differs = read_vocabulary(contract, int(architecture.config.vocab_size), base.folder).differs
        if differs:
            console.warn(
                f"llama.cpp cuts {differs} into other tokens than this tokenizer does: export removes each GGUF file "
                "where one of the first 1,000 scored rows is such a text"
            )
        if run is not None:
            _require_reach(recipe, architecture.context, contract, run)
    widths = numbers_of(base).widths
    for kind in recipe.export.gguf:
        block = BLOCK if kind in QUANTISED else _Q8_BLOCK if kind == "Q8_0" else 1
        odd = sorted(width for width in widths if width % block)
        if odd:
            raise ModelError(
                f"{kind} takes rows of a multiple of {block} values; this base has rows of {odd[0]}: "
                "llama.cpp would put other widths in their place without a word",
                where="export.gguf",
                fix="export.gguf: [Q8_0], which takes every multiple of 32" if not odd[0] % 32 else "[F16]",
            )


def _require_reach(recipe: Recipe, context: int, contract: Contract, run: Run) -> None:
    """A GGUF of a model with a sliding window ends where the window does: each file answers the scored rows."""
    if not any(Rows.exists(run.data, split) for split in ("test", "validation")):
        return
    examples, most = scored_rows(recipe, run).examples, run_decoding(recipe, run).max_tokens
    longest = max(len(contract.prompt_ids(example.prompt)) for example in examples)
    if longest + most > context:
        raise ModelError(
            f"a GGUF of this model has {context:,} positions, and the longest scored prompt takes {longest:,}, its "
            f"answer up to {most:,}",
            where="export.gguf",
            fix="leave export.gguf out; or score shorter rows (evaluate.rows, evaluate.decoding.max_tokens)",
        )


def _require_disk(items: list[Item], folder: Path, run: Run | None) -> None:
    need = sum(item.bytes for item in items) + _SPARE
    there = _in(run.path) if run is not None else 0
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(place).free
    if need > free + there:
        largest = max(items, key=lambda item: item.bytes)
        raise OutOfRoom(
            f"the whole run takes about {need / 1e9:,.1f} GB of disk, and {(free + there) / 1e9:,.1f} GB are free "
            f"(the largest part: {largest.name}, {largest.bytes / 1e9:,.1f} GB)",
            where=str(place),
            fix="free some space, choose another --runs-dir, ask for fewer files in export, "
            "or stop before export: --until evaluate",
        )


def _in(folder: Path) -> int:
    """Bytes of what a run holds already. Hard links to prepared rows count too: they are small."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _require_memory(recipe: Recipe, numbers: Numbers) -> None:
    """The merged model, in the type of training, has to fit the card or else the machine, to be proved."""
    dtype: torch.dtype = getattr(torch, recipe.model.dtype)
    need = numbers.all * dtype.itemsize * 5 // 4
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    card = torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else 0
    if need > max(card, machine):
        raise OutOfRoom(
            f"the merged model takes about {need / 2**30:,.0f} GiB of memory to be proved; the card has "
            f"{card / 2**30:,.0f}, the machine {machine / 2**30:,.0f}",
            where="export",
            fix="export: {merged: false} without gguf and quantized leaves the adapter alone; or use a larger machine",
        )
