"""What is made of the merged model, one thing after another: made, proved, scored, put in its place, written down.

A thing appears whole or not at all. What stands already, of the same origin and proved on the same rows, is left alone;
of the same origin but other rows or another limit, it is proved again and not made again. A proof that fails takes its
own thing away; the others are still made, and the failure is raised at the end.
"""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from tunesmith import console
from tunesmith.errors import ProofFailed
from tunesmith.export import artifact_proofs, record
from tunesmith.export.artifact_folder import QuantisedFolder
from tunesmith.export.artifact_gguf import AdapterFile, ModelFile, Sources
from tunesmith.export.folder import new_folder, publish, unlist
from tunesmith.export.gguf.kinds import QUANTISED
from tunesmith.export.job import Job, sha256_of
from tunesmith.export.passing import Passing
from tunesmith.export.scores import against_live, require_live_answers
from tunesmith.export.yardstick import Yardstick
from tunesmith.model.merge import Source
from tunesmith.recipe import Recipe

HELD = ("nf4", "int8")


class Thing(Protocol):
    """One kind of artifact."""

    @property
    def source(self) -> Source:
        """Whose weights it is made of, or made for."""
        ...

    def place(self) -> Path:
        """Where it will lie: a file, or a folder."""
        ...

    def make(self, folder: Path) -> Path:
        """Makes it in `folder`, a passing one; returns its path there."""
        ...

    def prove(self, path: Path) -> dict[str, Any]:
        """Proves it where it lies, without answers; what was measured. ProofFailed."""
        ...

    def answer(self, path: Path, name: str) -> float | None:
        """Writes predictions/NAME.jsonl; tokens a second, None where some answers were there already."""
        ...

    def settle(self) -> list[Path]:
        """Completes the folder that it has come to; its own files, those that a card may rewrite left out."""
        ...


class Wanted(NamedTuple):
    """Something that a recipe asks for. `name`: as the report calls it."""

    name: str
    kind: str
    """quantised, gguf or adapter."""
    type: str


def wanted(recipe: Recipe) -> list[Wanted]:
    """In the order in which they are made: exact GGUF files first, since others can be quantised from them."""
    export = recipe.export
    files = sorted(dict.fromkeys(export.gguf), key=lambda kind: kind in QUANTISED)
    made = [Wanted(kind, "quantised", kind) for kind in HELD if kind in export.quantized]
    made += [Wanted(f"gguf-{kind}", "gguf", kind) for kind in files]
    return made + ([Wanted("gguf-adapter", "adapter", "adapter")] if export.adapter_gguf else [])


def make_artifacts(job: Job, yard: Yardstick) -> None:
    """Makes all that the recipe asks for beside `merged/`. ProofFailed at the end, where one of them failed."""
    failed: list[tuple[str, ProofFailed]] = []
    with ExitStack() as stack:
        passing = Passing(job, yard, stack)
        sources = Sources(job, yard, passing)
        for one in wanted(job.recipe):
            try:
                _make(job, one, _thing(job, yard, one, passing, sources))
            except ProofFailed as error:
                failed.append((one.name, error))
                console.warn(f"{one.name} is removed: {error.what}")
    if failed:
        first = failed[0][1]
        raise ProofFailed(
            f"removed: {', '.join(name for name, _ in failed)}; what passed stays. {first.what}",
            where=first.where,
            fix=first.fix,
        )


def _thing(job: Job, yard: Yardstick, one: Wanted, passing: Passing, sources: Sources) -> Thing:
    if one.kind == "quantised":
        return QuantisedFolder(job, yard, "nf4" if one.type == "nf4" else "int8", passing)
    return (
        AdapterFile(job, yard, sources) if one.kind == "adapter" else ModelFile(job, yard, one.type, sources)
    )


def _make(job: Job, one: Wanted, thing: Thing) -> None:
    run, place = job.run, thing.place()
    origin = sha256_of([job.origin_sha256, thing.source, one.type, one.kind, job.recipe.export.imatrix])
    entry = record.entry(run, one.name)
    there = record.stands(run, entry, origin)
    answers = run.predictions / f"{one.name}.jsonl"
    if there and entry["proved_on"] == job.proved_on and answers.is_file():
        console.note(f"{one.name}: stands already in {place}")
        return
    require_live_answers(job)
    with new_folder(run) as folder:
        path = place if there else thing.make(folder)
        try:
            told = thing.prove(path)
            speed = thing.answer(path, one.name)
            told |= _score(job, one.name)
        except ProofFailed:
            _remove(place)
            record.forget(run, one.name)
            if place.parent.is_dir() and place.suffix:
                thing.settle()
            raise
        if not there:
            unlist(place.parent, {place.name})
            publish(path, place)
    files = [path.relative_to(run.path) for path in thing.settle()]
    about = {"kind": one.kind, "type": one.type, "merged_origin": job.origin_sha256}
    record.made(job, one.name, about | told, files, job.proved_on, origin)
    record.change(run, one.name, {}, speed or entry.get("tokens_per_second"))
    console.note(f"{one.name}: {record.entry(run, one.name)['bytes'] / 1e6:,.1f} MB in {place}")


def _score(job: Job, name: str) -> dict[str, Any]:
    """Proves that answers end, and that no more score is lost than the recipe allows."""
    found = against_live(job, name)
    job.run.prove(artifact_proofs.answers_end(name, found.lines, found.live))
    limit = job.recipe.export.max_loss
    if limit is not None:
        job.run.prove(artifact_proofs.keeps_score(name, found.metric, found.difference, found.lower, limit))
    return found.to_json()


def _remove(place: Path) -> None:
    unlist(place.parent, {place.name})
    if place.is_dir():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)
