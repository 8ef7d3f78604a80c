"""Stage export: the adapter merged into its base as a 16-bit folder, proved against the live adapter, and scored."""

from __future__ import annotations

import gc
import json
import shutil
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tunesmith import console
from tunesmith.base import Base, resolve
from tunesmith.contract import Contract
from tunesmith.errors import ModelError, ProofFailed
from tunesmith.export import proofs
from tunesmith.export.choose import FOLDER, Choice, Compared, answer, choice_rows, choose, compare
from tunesmith.export.folder import ORIGIN, clean, complete, new_folder, publish
from tunesmith.export.measure import (
    ProofRows,
    folder_model,
    logits,
    merged_in_memory,
    proof_rows,
    reround_model,
)
from tunesmith.model.merge import Source, merge_weights, merged_type, read_deltas, stored_types
from tunesmith.model.room import room
from tunesmith.model.tuned import default_device, load_tuned
from tunesmith.recipe import Recipe
from tunesmith.run import Run, sha256_file, write_atomic
from tunesmith.tasks.answered import answers_headline
from tunesmith.view.scored import run_decoding, run_task, scored_rows


def export(recipe: Recipe, run: Run) -> None:
    """Makes what the recipe's export section asks for. ProofFailed leaves no `merged/` behind."""
    clean(run)
    if recipe.export.merged:
        with room(
            "merging",
            "lower evaluate.batch, or free the card; export: {merged: false} leaves the adapter alone",
        ):
            _merge(_Job.of(recipe, run))


@dataclass(frozen=True)
class _Job:
    """What is merged, how, and the rows to prove it on."""

    recipe: Recipe
    run: Run
    base: Base
    weights: Base  # whose files are read: the base, or the trained model after full fine-tuning
    adapter: Path | None
    sources: list[Source]
    trained_in: torch.dtype
    dtype: torch.dtype
    device: torch.device
    rows: ProofRows
    choice: Choice | None

    @classmethod
    def of(cls, recipe: Recipe, run: Run) -> _Job:
        if not any(run.adapter.glob("*.safetensors")):
            raise ModelError(
                "there is nothing to export yet",
                where=str(run.adapter),
                fix="train first: tunesmith run RECIPE",
            )
        base = resolve(recipe.model)
        full = recipe.tune.method == "full"
        scored = scored_rows(recipe, run)
        stored_quantized = "quantization_config" in base.config
        choice = None if recipe.model.quantize == "none" or stored_quantized else choice_rows(recipe, run)
        trained_in: torch.dtype = getattr(torch, recipe.model.dtype)
        return cls(
            recipe=recipe,
            run=run,
            base=base,
            weights=replace(base, folder=run.adapter) if full else base,
            adapter=None if full else run.adapter,
            sources=_sources(recipe, choice is not None),
            trained_in=trained_in,
            dtype=merged_type(base, trained_in),
            device=_device(base, trained_in),
            rows=proof_rows(scored.rows, scored.numbers),
            choice=choice,
        )

    @property
    def origin(self) -> dict[str, Any]:
        """What decides the merged weights, but for their source."""
        return {
            "base": self.base.name,
            "revision": self.base.revision,
            "base_sha256": self.base.fingerprint,
            "adapter_sha256": [sha256_file(path) for path in sorted(self.run.adapter.glob("*.safetensors"))],
            "trained": {"quantize": self.recipe.model.quantize, "dtype": self.recipe.model.dtype},
            "dtype": str(self.dtype).removeprefix("torch."),
        }


def _sources(recipe: Recipe, comparable: bool) -> list[Source]:
    if recipe.model.quantize == "none":
        return ["original"]
    # without rows to compare on, what training saw is kept: it can be proved without scores
    return ["dequantized", "original"] if comparable else ["dequantized"]


class _Live(NamedTuple):
    """Of the live adapter."""

    logits: Tensor
    rerounded: Tensor


def _merge(job: _Job) -> None:
    run = job.run
    _forget_stale(job)
    live = _measure_live(job)
    with ExitStack() as stack:
        folders = {source: stack.enter_context(new_folder(run)) for source in job.sources}
        for source, folder in folders.items():
            _write(job, source, folder)
        compared = _compare(job, job.choice, folders) if job.choice else {}
        kept = choose(compared) if compared else job.sources[0]
        try:
            _prove(job, kept, folders[kept], live, compared)
        except ProofFailed:
            shutil.rmtree(run.merged, ignore_errors=True)
            raise
        publish(folders[kept], run)
    weights = {"original": "the base's own weights", "dequantized": f"the {job.recipe.model.quantize} image"}
    console.note(f"merged into {weights[kept]} as {str(job.dtype).removeprefix('torch.')}: {run.merged}")
    _score(job, kept)


def _forget_stale(job: _Job) -> None:
    """Answers of a model merged from something else would be reported as this one's."""
    path = job.run.merged / ORIGIN
    stored = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    if {key: stored.get(key) for key in job.origin} != job.origin:
        (job.run.predictions / "merged.jsonl").unlink(missing_ok=True)


def _measure_live(job: _Job) -> _Live:
    """The adapter live on the base as trained. Its answers to the choice rows come first: measuring moves weights."""
    model = load_tuned(job.recipe, job.run.adapter, job.device)
    if job.choice:
        answer(job.recipe, job.run, model, job.choice.examples, job.choice.live)
    found = logits(model, job.rows)
    reround_model(model, job.dtype, everything=job.adapter is None)
    return _Live(found, logits(model, job.rows))


def _write(job: _Job, source: Source, folder: Path) -> None:
    deltas = read_deltas(job.adapter) if job.adapter else {}
    sums = merge_weights(
        job.weights,
        deltas,
        folder,
        dtype=job.dtype,
        source=source,
        quantize=job.recipe.model.quantize,
        trained_in=job.trained_in,
        device=job.device,
    )
    origin = {**job.origin, "source": source}
    decoding = run_decoding(job.recipe, job.run)
    complete(folder, job.base, Contract.load(job.run.contract_folder), decoding, job.dtype, origin, sums)


def _compare(job: _Job, choice: Choice, folders: dict[Source, Path]) -> dict[Source, Compared]:
    for source, folder in folders.items():
        model = folder_model(folder, job.dtype, job.device)
        answer(job.recipe, job.run, model, choice.examples, f"{FOLDER}/{source}")
        del model
        _free()
    return compare(job.recipe, job.run, job.sources, choice)


def _prove(job: _Job, source: Source, folder: Path, live: _Live, compared: dict[Source, Compared]) -> None:
    """All proofs of the kept folder, each written down; the first that fails ends the stage."""
    rows, prove = job.rows, job.run.prove
    reloaded = logits(folder_model(folder, job.trained_in, job.device), rows)
    _free()
    in_memory = _in_memory(job, job.weights, source, strength=1.0)
    merged, singly = logits(in_memory, rows), logits(in_memory, rows, singly=True)
    del in_memory
    _free()
    plain = _in_memory(job, job.base, source, strength=0.0)
    base, again = logits(plain, rows), logits(plain, rows)
    del plain
    _free()
    prove(proofs.merged_equals_fp32_merge(reloaded, merged, singly))
    rounding = proofs.spread(live.logits, live.rerounded)
    prove(proofs.merged_has_effect(reloaded, base, again, rounding))
    if source == "dequantized" or job.recipe.model.quantize == "none":
        prove(proofs.merged_close_to_adapter(reloaded, live.logits, live.rerounded))
    if compared:
        headline = answers_headline(run_task(job.recipe, job.run))
        prove(proofs.merged_scores_as_adapter(headline, compared[source].difference, source))


def _in_memory(job: _Job, base: Base, source: Source, strength: float) -> Any:
    return merged_in_memory(
        base,
        job.adapter,
        dtype=job.dtype,
        source=source,
        quantize=job.recipe.model.quantize,
        trained_in=job.trained_in,
        device=job.device,
        strength=strength,
    )


def _score(job: _Job, kept: Source) -> None:
    """predictions/merged.jsonl: the scored rows, answered by the folder as others will load it."""
    if job.choice and job.choice.scored:
        answered = (job.run.predictions / FOLDER / f"{kept}.jsonl").read_bytes()
        write_atomic(job.run.predictions / "merged.jsonl", answered)
        return
    model = folder_model(job.run.merged, job.dtype, job.device)
    answer(job.recipe, job.run, model, scored_rows(job.recipe, job.run).examples, "merged")


def _device(base: Base, trained_in: torch.dtype) -> torch.device:
    """The accelerator, unless the whole model in 16 bit (fp32 after training in it) does not fit there."""
    device = default_device()
    if device.type == "cuda":
        need = sum(stored_types(base).values()) * trained_in.itemsize * 5 // 4
        have = torch.cuda.get_device_properties(device).total_memory
        if need > have:
            console.warn(
                f"the merged model takes about {need / 2**30:.0f} GiB, the card has {have / 2**30:.0f}: "
                "proofs and scores of the merge run on the CPU, which takes long"
            )
            return torch.device("cpu")
    return device


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
