"""Stage export: what the recipe asks for is made of the adapter, each thing proved against it and scored beside it."""

from __future__ import annotations

from tunesmith.errors import ProofFailed
from tunesmith.export import record
from tunesmith.export.artifacts import make_artifacts, wanted
from tunesmith.export.folder import clean, write_sums
from tunesmith.export.job import Job
from tunesmith.export.merged import NAME, merged_folder
from tunesmith.export.modelfile import write_modelfiles
from tunesmith.export.preflight import require_exportable
from tunesmith.model.room import room
from tunesmith.recipe import Recipe
from tunesmith.run import Run


def export(recipe: Recipe, run: Run) -> None:
    """Makes what the recipe's export section asks for, each thing whole, proved and scored, or not at all.

    What stands already, made of the same things, is left as it is. A failed proof takes its thing away and keeps the
    others: ProofFailed at the end, or at once where it is the merge, which all others are made of.
    """
    clean(run)
    names = [one.name for one in wanted(recipe)]
    if not recipe.export.merged and not names:
        return
    with room(
        "merging",
        "lower evaluate.batch, or free the card; export: {merged: false} leaves the adapter alone",
    ):
        job = Job.of(recipe, run)
        require_exportable(recipe, job.base, run.path, contract=job.contract, run=run)
        record.forget_stale(job, [NAME, *names])
        with merged_folder(job) as yard:
            try:
                make_artifacts(job, yard)
            except ProofFailed:
                write_modelfiles(recipe, run, job.contract)  # of what passed
                raise
        write_modelfiles(recipe, run, job.contract)
    write_sums(run.adapter)
