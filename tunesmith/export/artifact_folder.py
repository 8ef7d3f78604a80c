"""quantized/nf4 and quantized/int8: the merged model as transformers and bitsandbytes store it quantised.

A merge into the image that the base has in NF4 can't be put into NF4 again: nearly every weight would fall back on the
number that it was moved from, and the adapter would be gone. Such a folder is made of the merge into the base's own
weights: there each weight crosses to the next number as often as the adapter moves it so far.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunesmith.export import artifact_proofs
from tunesmith.export.choose import answer
from tunesmith.export.folder import complete, own_files
from tunesmith.export.job import Job, free
from tunesmith.export.measure import folder_model, logits
from tunesmith.export.passing import Passing
from tunesmith.export.quantized import Held, quantization_config, write_quantized
from tunesmith.export.reads import folder_config_equal, folder_renders_as_contract
from tunesmith.export.yardstick import Yardstick
from tunesmith.model.merge import Source


class QuantisedFolder:
    """See `artifacts.Thing`. `kind`: nf4 or int8."""

    def __init__(self, job: Job, yard: Yardstick, kind: Held, passing: Passing) -> None:
        self.job, self.yard, self.kind, self.passing = job, yard, kind, passing

    @property
    def source(self) -> Source:
        """The base's own weights where the merge lies on the very numbers that this kind has."""
        return "original" if self.kind == self.job.recipe.model.quantize else self.yard.source

    def place(self) -> Path:
        """In the run."""
        return self.job.run.quantized / self.kind

    def make(self, folder: Path) -> Path:
        """From the merged files, never from a model that has worked."""
        job = self.job
        out = folder / self.kind
        out.mkdir()
        sums = write_quantized(self._merged, out, self.kind, dtype=job.dtype, device=job.device)
        origin = {**job.origin, "source": self.source, "quantized": self.kind}
        told = quantization_config(self.kind, job.dtype)
        complete(out, job.base, job.contract, job.decoding, job.dtype, origin, sums, told)
        return out

    def prove(self, path: Path) -> dict[str, Any]:
        """The folder, loaded as serve loads it."""
        job, yard, kind = self.job, self.yard, self.kind
        prove = job.run.prove
        model = folder_model(path, job.trained_in, job.device)
        found = logits(model, job.rows)
        del model
        free()
        plain, singly = (yard.quantised(kind, self._merged, singly=alone) for alone in (False, True))
        prove(artifact_proofs.equals_quantised_in_memory(kind, found, plain, singly))
        prove(artifact_proofs.keeps_adapter(kind, found, yard.merged, yard.base))
        prove(artifact_proofs.same_greedy(kind, found, yard.merged, plain))
        prove(folder_renders_as_contract(kind, path, job.contract, job.scored.examples))
        prove(folder_config_equal(kind, path, job.base, job.decoding))
        return yard.against_live(found)

    def answer(self, path: Path, name: str) -> float | None:
        """By our generator, in the type of training, so that only the weights differ from the live adapter's."""
        job = self.job
        model = folder_model(path, job.trained_in, job.device)
        speed = answer(job.recipe, job.run, model, job.scored.examples, name)
        del model
        free()
        return speed

    def settle(self) -> list[Path]:
        """It came whole."""
        return own_files(self.place())

    @property
    def _merged(self) -> Path:
        return self.passing.merged(self.source)
