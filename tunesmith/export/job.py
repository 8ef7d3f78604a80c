"""What an export works on: recipe, run, base, trained weights, and the rows that it is proved and compared on."""

from __future__ import annotations

import gc
import hashlib
import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from tunesmith import __version__, console
from tunesmith.base import Base, resolve
from tunesmith.contract import Contract
from tunesmith.errors import ModelError
from tunesmith.export.choose import Choice, choice_rows
from tunesmith.export.measure import ProofRows, proof_rows
from tunesmith.generate.protocol import Decoding
from tunesmith.model.load import stored_quantized
from tunesmith.model.merge import Source, merged_type, stored_types
from tunesmith.model.tuned import default_device
from tunesmith.recipe import Recipe
from tunesmith.run import Run, sha256_file
from tunesmith.view.scored import ScoredRows, run_decoding, scored_rows


@dataclass(frozen=True)
class Job:
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
    scored: ScoredRows
    rows: ProofRows
    choice: Choice | None

    @classmethod
    def of(cls, recipe: Recipe, run: Run) -> Job:
        """ModelError where nothing has been trained."""
        if not any(run.adapter.glob("*.safetensors")):
            raise ModelError(
                "there is nothing to export yet",
                where=str(run.adapter),
                fix="train first: tunesmith run RECIPE",
            )
        base = resolve(recipe.model)
        full = recipe.tune.method == "full"
        scored = scored_rows(recipe, run)
        held = stored_quantized(base) != "none"
        choice = None if recipe.model.quantize == "none" or held else choice_rows(recipe, run)
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
            device=proving_device(base, trained_in),
            scored=scored,
            rows=proof_rows(scored.rows, scored.numbers),
            choice=choice,
        )

    @cached_property
    def contract(self) -> Contract:
        """How messages become ids."""
        return Contract.load(self.run.contract_folder)

    @cached_property
    def decoding(self) -> Decoding:
        """As evaluate decodes."""
        return run_decoding(self.recipe, self.run)

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

    @cached_property
    def origin_sha256(self) -> str:
        """Of all that decides the merged folder and what is made of it, but for a kind."""
        decoding = [self.decoding.temperature, self.decoding.top_p]  # generation_config.json has them
        return sha256_of([self.origin, self.contract.sha256, decoding, self.recipe.name, __version__])

    @property
    def proved_on(self) -> str:
        """Hash of what proofs and scores rest on beside the thing itself: rows, decoding, task, limit, live answers."""
        live = self.run.predictions / "tuned.jsonl"
        return sha256_of(
            [
                self.recipe.evaluate.model_dump(mode="json"),
                self.recipe.export.max_loss,
                self.scored.rows.sha256,
                sha256_file(live) if live.is_file() else None,
            ]
        )


def sha256_of(content: Any) -> str:
    """Hash of something that JSON can say."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def free() -> None:
    """Gives back what a model that was dropped has left."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _sources(recipe: Recipe, comparable: bool) -> list[Source]:
    if recipe.model.quantize == "none":
        return ["original"]
    # without rows to compare on, what training saw is kept: it can be proved without scores
    return ["dequantized", "original"] if comparable else ["dequantized"]


def proving_device(base: Base, trained_in: torch.dtype) -> torch.device:
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
