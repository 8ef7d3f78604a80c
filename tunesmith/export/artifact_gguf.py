"""gguf/NAME-KIND.gguf and gguf/NAME-adapter.gguf: written, run by llama.cpp, and proved on what that computes.

A quantised kind is made by llama.cpp from an exact file: one that the recipe asks for too, or one under a passing name.
Both are proved to compute as the merged model first, so that nothing of ours stands between a proved file and a quant.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tunesmith import console
from tunesmith.export import artifact_proofs
from tunesmith.export.choose import answer_by
from tunesmith.export.folder import write_sums
from tunesmith.export.gguf.adapter import write_adapter_gguf
from tunesmith.export.gguf.imatrix import write_imatrix
from tunesmith.export.gguf.kinds import QUANTISED
from tunesmith.export.gguf.quantize import quantize_gguf
from tunesmith.export.gguf.write import write_gguf
from tunesmith.export.job import Job, free
from tunesmith.export.passing import Passing
from tunesmith.export.positions import gguf_positions_equal
from tunesmith.export.reads import gguf_stops_equal, gguf_tokens_equal
from tunesmith.export.sizes import model_bytes
from tunesmith.export.stored import stored_logits
from tunesmith.export.yardstick import Yardstick
from tunesmith.generate.llama_cpp import LlamaGenerator, LlamaModel
from tunesmith.model.merge import Source, exact_type
from tunesmith.rows import Rows
from tunesmith.view.scored import chosen

TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
BITS = {"Q8_0": 8, "Q6_K": 6, "Q5": 5, "Q4": 4, "IQ4": 4, "Q3": 3, "Q2": 2}
MATRIX_ROWS = 200  # training rows of an importance matrix
SLOTS = 16  # answers side by side where evaluate.batch is auto


class Sources:
    """What GGUF files are made of: exact files and the importance matrix, each made once and when it is needed."""

    def __init__(self, job: Job, yard: Yardstick, passing: Passing) -> None:
        self.job, self.yard, self._passing = job, yard, passing

    @cached_property
    def exact(self) -> Path:
        """A file that holds the merged weights as they are: in gguf/, else a passing one."""
        job = self.job
        for kind in job.recipe.export.gguf:
            path = _file(job, kind)
            if path.is_file() and kind in TYPES and _holds(TYPES[kind], job.dtype):
                return path
        exact = _kind_of(job.dtype)
        path = self._passing.folder / f"{exact}.gguf"
        _write(self.yard.folder, path, exact, job)
        _prove_exact(job, self.yard, "gguf-source", path, exact)
        return path

    @cached_property
    def base(self) -> Path:
        """The base that an adapter is put on, with the run's tokens and template."""
        job = self.job
        path = self._passing.folder / "base.gguf"
        _write(job.base.folder, path, _kind_of(exact_type(job.base)), job)
        return path

    @cached_property
    def imatrix(self) -> Path | None:
        """From training rows, where the recipe asks for one."""
        job = self.job
        if not job.recipe.export.imatrix:
            return None
        train = Rows.open(job.run.data, "train")
        numbers = chosen(len(train), MATRIX_ROWS, job.recipe.seed)
        path = self._passing.folder / "imatrix.gguf"
        write_imatrix(
            self.yard.folder, [train.ids(number).tolist() for number in numbers], path, self.job.device
        )
        free()
        return path


class ModelFile:
    """See `artifacts.Thing`. `kind`: one of the recipe's GGUF kinds."""

    def __init__(self, job: Job, yard: Yardstick, kind: str, sources: Sources) -> None:
        self.job, self.yard, self.kind, self.sources = job, yard, kind, sources
        self.source: Source = yard.source

    def place(self) -> Path:
        """In the run."""
        return _file(self.job, self.kind)

    def make(self, folder: Path) -> Path:
        """By us, or by llama.cpp from an exact file."""
        out = folder / self.place().name
        if self.kind in QUANTISED:
            quantize_gguf(self.sources.exact, out, self.kind, self.sources.imatrix)
        else:
            _write(self.yard.folder, out, self.kind, self.job)
        return out

    def prove(self, path: Path) -> dict[str, Any]:
        """Tokens and stops first; then what llama.cpp computes."""
        job, yard, name = self.job, self.yard, f"gguf-{self.kind}"
        if self.kind in TYPES:
            return yard.against_live(_prove_exact(job, yard, name, path, self.kind))
        _prove_reading(job, name, path)
        found = _logits(job, path)
        bits = next(number for begin, number in BITS.items() if self.kind.startswith(begin))
        plain = yard.in_blocks(bits)
        stored = stored_logits(path, self.kind, yard.folder, job.trained_in, job.device, job.rows)
        free()
        job.run.prove(artifact_proofs.computes_as_stored(name, found, *stored))
        job.run.prove(artifact_proofs.is_merged_quantised(name, found, yard.merged, plain, bits))
        job.run.prove(artifact_proofs.keeps_adapter(name, found, yard.merged, yard.base))
        job.run.prove(artifact_proofs.same_greedy(name, found, yard.merged, plain))
        return yard.against_live(found)

    def answer(self, path: Path, name: str) -> float | None:
        """By llama.cpp."""
        return _answer(self.job, path, None, name)

    def settle(self) -> list[Path]:
        """Contract and tokenizer beside the file, so that it is served by the prompts that were trained."""
        return _settle(self.job, self.place())


class AdapterFile:
    """See `artifacts.Thing`: the adapter alone, to be put on a GGUF of its base."""

    def __init__(self, job: Job, yard: Yardstick, sources: Sources) -> None:
        self.job, self.yard, self.sources = job, yard, sources
        self.source: Source = "original"

    def place(self) -> Path:
        """In the run."""
        return _file(self.job, "adapter")

    def make(self, folder: Path) -> Path:
        """From the adapter's own folder."""
        out = folder / self.place().name
        write_adapter_gguf(self.job.run.adapter, self.job.base, out, self.job.contract)
        return out

    def prove(self, path: Path) -> dict[str, Any]:
        """On the base's own weights in GGUF it has to compute as the live adapter does on these.

        Not as a merge: rounding to 16 bit takes some of the adapter away, all in one direction.
        """
        job, yard, name = self.job, self.yard, "gguf-adapter"
        found = _logits(job, self.sources.base, path)
        kind = _coarsest(exact_type(job.base), torch.float16, job.trained_in, job.dtype)
        noisy = yard.rounded(kind)
        job.run.prove(
            artifact_proofs.computes_as_live(
                name, found, yard.on_the_base, _shifted(yard, noisy), _name(kind)
            )
        )
        job.run.prove(artifact_proofs.keeps_adapter(name, found, yard.on_the_base, yard.base))
        job.run.prove(artifact_proofs.same_greedy(name, found, yard.on_the_base, _shifted(yard, noisy)))
        return yard.against_live(found)

    def answer(self, path: Path, name: str) -> float | None:
        """By llama.cpp, over the base."""
        return _answer(self.job, self.sources.base, path, name)

    def settle(self) -> list[Path]:
        """As of a model's file."""
        return _settle(self.job, self.place())


def _shifted(yard: Yardstick, noisy: Tensor) -> Tensor:
    """The noise that was measured around the merged folder, around the live adapter on the base's own weights."""
    return yard.on_the_base + (noisy - yard.merged)


def _prove_exact(job: Job, yard: Yardstick, name: str, path: Path, kind: str) -> Tensor:
    _prove_reading(job, name, path)
    found = _logits(job, path)
    coarsest = _coarsest(TYPES[kind], job.trained_in)
    noisy = yard.rounded(coarsest)
    job.run.prove(artifact_proofs.computes_as_merged(name, found, yard.merged, noisy, _name(coarsest)))
    job.run.prove(artifact_proofs.keeps_adapter(name, found, yard.merged, yard.base))
    job.run.prove(artifact_proofs.same_greedy(name, found, yard.merged, noisy))
    return found


def _prove_reading(job: Job, name: str, path: Path) -> None:
    job.run.prove(gguf_tokens_equal(name, path, job.contract, job.scored.examples))
    job.run.prove(gguf_stops_equal(name, path, job.contract))
    job.run.prove(gguf_positions_equal(name, path, job.base))


def _write(folder: Path, out: Path, kind: str, job: Job) -> None:
    with console.progress(f"write {kind}", total=model_bytes(job.base, kind), unit="B") as bar:
        write_gguf(folder, out, kind, job.contract, on_bytes=lambda count: bar.update(count))


def _logits(job: Job, path: Path, adapter: Path | None = None) -> Tensor:
    """At the places that `measure.logits` looks at: before each learned token."""
    before = [[*learned[1:], False] for learned in job.rows.learned]
    with LlamaModel.open(path, adapter=adapter, context=max(map(len, job.rows.ids)), slots=1) as model:
        return model.logits(job.rows.ids, before)


def _answer(job: Job, path: Path, adapter: Path | None, name: str) -> float | None:
    examples = job.scored.examples
    longest = max(len(job.contract.prompt_ids(example.prompt)) for example in examples)
    batch = job.recipe.evaluate.batch
    slots = min(len(examples), SLOTS if batch == "auto" else min(batch, SLOTS))
    context = longest + job.decoding.max_tokens
    with LlamaModel.open(path, adapter=adapter, context=context, slots=slots) as model:
        return answer_by(job.recipe, job.run, LlamaGenerator(model), examples, name)


def _settle(job: Job, place: Path) -> list[Path]:
    folder = place.parent
    job.contract.save(folder)
    write_sums(folder)
    return [place]


def _file(job: Job, kind: str) -> Path:
    return job.run.gguf / f"{job.recipe.name}-{kind}.gguf"


def _kind_of(dtype: torch.dtype) -> str:
    return next(kind for kind, one in TYPES.items() if one == dtype)


def _holds(wide: torch.dtype, narrow: torch.dtype) -> bool:
    return wide in (narrow, torch.float32)


def _coarsest(*types: torch.dtype) -> torch.dtype:
    return max(types, key=lambda one: torch.finfo(one).eps)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
