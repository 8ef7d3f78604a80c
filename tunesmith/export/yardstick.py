"""Logits on the proof rows that exported things are held against. Each is measured once, when it is first asked for.

One model is loaded at a time and dropped, so an export takes no more memory than merging. All [n, V], fp32, CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tunesmith.export.job import Job, free
from tunesmith.export.measure import (
    folder_model,
    logits,
    merged_in_memory,
    quantised_in_memory,
    reround_model,
    round_in_blocks,
)
from tunesmith.export.proofs import greedy_differs, largest, mean_kl, spread
from tunesmith.model.merge import Source
from tunesmith.model.tuned import load_tuned


class Yardstick:
    """Of one merged folder: the live adapter, the folder, the base without the adapter, and noises."""

    def __init__(self, job: Job, folder: Path, source: Source) -> None:
        self.job, self.folder, self.source = job, folder, source
        self.candidates: dict[Source, Path] = {}
        """Merges into other weights that were not kept; they lie there until the stage ends."""
        self._known: dict[object, Tensor] = {}

    def _measured(self, name: object, make: Callable[[], Any]) -> Tensor:
        if name not in self._known:
            model = make()
            self._known[name] = logits(model, self.job.rows)
            del model
            free()
        return self._known[name]

    # ---- of the live adapter

    @property
    def live(self) -> Tensor:
        """The adapter live on the base as trained."""
        job = self.job
        return self._measured("live", lambda: load_tuned(job.recipe, job.run.adapter, job.device))

    @live.setter
    def live(self, found: Tensor) -> None:
        self._known["live"] = found

    @property
    def live_rerounded(self) -> Tensor:
        """The same on a base whose weights were rounded once more, at random."""
        return self._known["live, rerounded"]

    @live_rerounded.setter
    def live_rerounded(self, found: Tensor) -> None:
        self._known["live, rerounded"] = found

    # ---- of the merged model

    @property
    def merged(self) -> Tensor:
        """The folder, reloaded."""
        return self._measured("merged", lambda: self._folder(self.job.trained_in))

    @property
    def base(self) -> Tensor:
        """A merge of nothing."""
        if "base" not in self._known:
            model = self.merged_in_memory(strength=0.0)
            self._known["base"], self._known["base, again"] = (logits(model, self.job.rows) for _ in range(2))
            del model
            free()
        return self._known["base"]

    @property
    def base_again(self) -> Tensor:
        """The same model measured a second time."""
        _ = self.base
        return self._known["base, again"]

    @property
    def on_the_base(self) -> Tensor:
        """The adapter live on the base's own weights: as llama.cpp puts it on a GGUF of them. Rounded nowhere."""
        job = self.job
        if job.recipe.model.quantize == "none":
            return self.live
        dense = job.recipe.model.model_copy(update={"quantize": "none"})
        recipe = job.recipe.model_copy(update={"model": dense})
        return self._measured("on the base", lambda: load_tuned(recipe, job.run.adapter, job.device))

    def rounded(self, dtype: torch.dtype) -> Tensor:
        """The folder with all weights rounded once more to `dtype`, at random."""

        def make() -> Any:
            model = self._folder(self.job.trained_in)
            reround_model(model, dtype, everything=True)
            return model

        return self._measured(("rounded", dtype), make)

    def in_blocks(self, bits: int) -> Tensor:
        """The folder with all matrices rounded to `bits` in the plainest way: blocks of 32 with a scale each."""

        def make() -> Any:
            model = self._folder(self.job.trained_in)
            round_in_blocks(model, bits)
            return model

        return self._measured(("blocks", bits), make)

    def quantised(self, kind: str, folder: Path, *, singly: bool = False) -> Tensor:
        """The weights of the merged `folder` quantised in memory to nf4 or int8; `singly`: rows one by one."""
        if (kind, True) not in self._known:
            job = self.job
            model = quantised_in_memory(folder, kind, job.dtype, job.trained_in, job.device)
            for alone in (False, True):
                self._known[kind, alone] = logits(model, job.rows, singly=alone)
            del model
            free()
        return self._known[kind, singly]

    def against_live(self, found: Tensor) -> dict[str, Any]:
        """How far an artifact's logits are from the live adapter's, for the record."""
        live = self.live
        return {
            "logits": {
                "positions": len(live),
                "greedy": 1 - greedy_differs(found, live) / len(live),
                "rms": spread(found, live),
                "largest": largest(found, live),
                "mean_kl": mean_kl(live, found),
            }
        }

    def _folder(self, dtype: torch.dtype) -> Any:
        return folder_model(self.folder, dtype, self.job.device)

    def merged_in_memory(self, strength: float = 1.0) -> Any:
        """The merge by another way than the folder's; `strength` 0: the base alone."""
        job = self.job
        return merged_in_memory(
            job.weights if strength else job.base,
            job.adapter,
            dtype=job.dtype,
            source=self.source,
            quantize=job.recipe.model.quantize,
            trained_in=job.trained_in,
            device=job.device,
            strength=strength,
        )
