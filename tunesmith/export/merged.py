"""The adapter merged into its base as a 16-bit folder: written, chosen between two bases, proved, scored."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tunesmith import console
from tunesmith.errors import ProofFailed
from tunesmith.export import proofs, record
from tunesmith.export.choose import FOLDER, Choice, Compared, answer, choose, compare
from tunesmith.export.folder import ORIGIN, complete, new_folder, own_files, publish
from tunesmith.export.job import Job, free
from tunesmith.export.measure import folder_model, logits, reround_model
from tunesmith.export.reads import folder_config_equal, folder_renders_as_contract
from tunesmith.export.scores import LIVE, against_live
from tunesmith.export.yardstick import Yardstick
from tunesmith.model.merge import Kept, Source, merge_weights, read_deltas
from tunesmith.model.tuned import load_tuned
from tunesmith.run import write_atomic
from tunesmith.tasks.answered import answers_headline
from tunesmith.view.scored import run_task

NAME = "merged"


@contextmanager
def merged_folder(job: Job) -> Iterator[Yardstick]:
    """The proved folder, and what was measured of it on the way.

    It is `merged/` where the recipe wants that; what stands there already on this very origin is not made again.
    Otherwise it lies under a passing name and goes when the block ends.
    """
    run, keep = job.run, job.recipe.export.merged
    entry = record.entry(run, NAME)
    if record.stands(run, entry, job.origin_sha256) and entry["proved_on"] == _proved_on(job):
        yard = Yardstick(job, run.merged, entry["source"])
        console.note(f"merged: stands already in {run.merged}")
        if keep:
            _score(job, yard, entry)
        yield yard
        return
    _forget_stale(job)
    yard = Yardstick(job, run.merged, job.sources[0])
    _measure_live(job, yard)
    with ExitStack() as stack:
        folders = {source: stack.enter_context(new_folder(run)) for source in job.sources}
        left = {source: write_merge(job, source, folder) for source, folder in folders.items()}
        compared = _compare(job, job.choice, folders) if job.choice else {}
        kept = choose(compared) if compared else job.sources[0]
        yard.folder, yard.source = folders[kept], kept
        yard.candidates = {source: folder for source, folder in folders.items() if source != kept}
        try:
            _prove(job, yard, left[kept], compared)
        except ProofFailed:
            if keep:
                shutil.rmtree(run.merged, ignore_errors=True)
                record.forget(run, NAME)
            raise
        names = {
            "original": "the base's own weights",
            "dequantized": f"the {job.recipe.model.quantize} image",
        }
        into = f"merged into {names[kept]} as {str(job.dtype).removeprefix('torch.')}"
        if keep:
            publish(folders[kept], run.merged)
            yard.folder = run.merged
            console.note(f"{into}: {run.merged}")
            files = [path.relative_to(run.path) for path in own_files(run.merged)]
            made = {"kind": "merged", "type": str(job.dtype).removeprefix("torch."), "source": kept}
            entry = record.made(job, NAME, made, files, _proved_on(job))
            _score(job, yard, entry)
        else:
            console.note(f"{into}, for what is made of it (export.merged: false: it is not kept)")
        yield yard


def _proved_on(job: Job) -> str:
    """The choice between two bases rests on scores; the folder's other proofs on rows alone."""
    return job.proved_on if job.choice else job.scored.rows.sha256


def _forget_stale(job: Job) -> None:
    """Answers of a model merged from something else would be reported as this one's."""
    path = job.run.merged / ORIGIN
    stored = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    if {key: stored.get(key) for key in job.origin} != job.origin:
        (job.run.predictions / f"{NAME}.jsonl").unlink(missing_ok=True)


def _measure_live(job: Job, yard: Yardstick) -> None:
    """The adapter live on the base as trained. Its answers to the choice rows come first: measuring moves weights."""
    model = load_tuned(job.recipe, job.run.adapter, job.device)
    if job.choice:
        answer(job.recipe, job.run, model, job.choice.examples, job.choice.live)
    yard.live = logits(model, job.rows)
    reround_model(model, job.dtype, everything=job.adapter is None)
    yard.live_rerounded = logits(model, job.rows)


def write_merge(job: Job, source: Source, folder: Path) -> Kept:
    """The whole folder, not proved yet; what its rounding has left of the adapter."""
    deltas = read_deltas(job.adapter) if job.adapter else {}
    kept = Kept()
    sums = merge_weights(
        job.weights,
        deltas,
        folder,
        dtype=job.dtype,
        source=source,
        quantize=job.recipe.model.quantize,
        trained_in=job.trained_in,
        device=job.device,
        kept=kept,
    )
    origin = {**job.origin, "source": source}
    complete(folder, job.base, job.contract, job.decoding, job.dtype, origin, sums)
    return kept


def _compare(job: Job, choice: Choice, folders: dict[Source, Path]) -> dict[Source, Compared]:
    for source, folder in folders.items():
        model = folder_model(folder, job.dtype, job.device)
        answer(job.recipe, job.run, model, choice.examples, f"{FOLDER}/{source}")
        del model
        free()
    return compare(job.recipe, job.run, job.sources, choice)


def _prove(job: Job, yard: Yardstick, left: Kept, compared: dict[Source, Compared]) -> None:
    """All proofs of the kept folder, each written down; the first that fails ends the stage."""
    rows, prove, source = job.rows, job.run.prove, yard.source
    reloaded = yard.merged
    in_memory = yard.merged_in_memory()
    merged, singly = logits(in_memory, rows), logits(in_memory, rows, singly=True)
    del in_memory
    free()
    base = yard.base
    prove(proofs.merged_equals_fp32_merge(reloaded, merged, singly))
    rounding = proofs.spread(yard.live, yard.live_rerounded)
    prove(proofs.merged_has_effect(reloaded, base, yard.base_again, rounding))
    if source == "dequantized" or job.recipe.model.quantize == "none":
        prove(proofs.merged_close_to_adapter(reloaded, yard.live, yard.live_rerounded))
    if job.adapter is not None:
        prove(proofs.merged_keeps_adapter(left.share, str(job.dtype).removeprefix("torch.")))
    prove(folder_renders_as_contract(NAME, yard.folder, job.contract, job.scored.examples))
    prove(folder_config_equal(NAME, yard.folder, job.base, job.decoding))
    if compared:
        headline = answers_headline(run_task(job.recipe, job.run))
        prove(proofs.merged_scores_as_adapter(headline, compared[source].difference, source))


def _score(job: Job, yard: Yardstick, entry: record.Entry) -> None:
    """predictions/merged.jsonl: the scored rows, answered by the folder as others will load it."""
    out = job.run.predictions / f"{NAME}.jsonl"
    if out.exists() and entry.get("answered_on") == job.proved_on:
        return
    speed = None
    if job.choice and job.choice.scored:
        answered = (job.run.predictions / FOLDER / f"{yard.source}.jsonl").read_bytes()
        write_atomic(out, answered)
    else:
        model = folder_model(yard.folder, job.dtype, job.device)
        speed = answer(job.recipe, job.run, model, job.scored.examples, NAME)
        del model
        free()
    live = job.run.predictions / f"{LIVE}.jsonl"
    told = yard.against_live(yard.merged) | {"answered_on": job.proved_on}
    told |= against_live(job, NAME).to_json() if live.is_file() else {}
    record.change(job.run, NAME, told, tokens_per_second=speed)
