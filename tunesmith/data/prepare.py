"""Stage prepare: rows → examples → token ids; split, inspected, proved row by row; once for all runs that need them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith import console
from tunesmith.base import Base, resolve
from tunesmith.contract import Contract
from tunesmith.data.cache import FOLDER, cache_key, filling, is_whole, require_unchanged, share, stats
from tunesmith.data.fill import fill
from tunesmith.data.formats.examples import Manner, format_of
from tunesmith.data.ingest import raw_batches
from tunesmith.data.levels import relevelled, verdict
from tunesmith.data.shown.page import render
from tunesmith.data.sources import SPLITS, SourceFile, resolve_sources
from tunesmith.errors import ModelError, RecipeError
from tunesmith.proof import Proof
from tunesmith.recipe import Data, Recipe
from tunesmith.rows import ROW_FILES, Rows, remove_rows
from tunesmith.run import Run, write_atomic

SHARED = ("findings.jsonl", "unread.jsonl")


@dataclass(frozen=True)
class Prepared:
    """Everything that training needs of the rows, on disk."""

    contract: Contract
    folder: Path
    report: dict[str, Any]
    """data/report.json: counts, lengths, what the inspection found, at the recipe's levels."""

    @property
    def splits(self) -> dict[str, Rows]:
        """The rows of each side."""
        return {name: Rows.open(self.folder, name) for name in SPLITS if Rows.exists(self.folder, name)}

    def proofs(self) -> list[Proof]:
        """The Contract's proofs over every row of every split."""
        stored = json.loads((self.folder / "proofs.json").read_text("utf-8"))["proofs"]
        return [Proof(**one) for one in stored]

    def write_page(self, recipe: Recipe, path: Path) -> None:
        """The report as a page, at this recipe's levels."""
        facts = [("tokenizer", self.contract.tokenizer_sha256[:16])]
        page = render(self.report, name=recipe.name, max_length=recipe.data.max_length, facts=facts)
        write_atomic(path, page.encode())

    def findings(self) -> Iterator[dict[str, Any]]:
        """Every finding of the inspection and every row that can't be used: check, source, detail."""
        for name in ("unread.jsonl", "findings.jsonl"):
            with (self.folder / name).open(encoding="utf-8") as file:
                yield from map(json.loads, file)


def prepare(recipe: Recipe, run: Run) -> None:
    """Reads the recipe's rows and fills `run.data`; keeps the contract and its proofs.

    RowError (exit 2) where rows can't be used, RowCheckFailed (exit 3) where a check of level error found some.
    """
    prepared = build(recipe, resolve(recipe.model), run.path.parent / FOLDER)
    prepared.contract.save(run.contract_folder, run.contract_folder / "tokenizer")
    run.data.mkdir(parents=True, exist_ok=True)
    for name in SHARED:
        if (prepared.folder / name).exists():
            share(prepared.folder / name, run.data / name)
    run.write_json(run.data / "report.json", prepared.report)
    prepared.write_page(recipe, run.data / "report.html")
    for name in SPLITS:
        remove_rows(run.data, name)
    verdict(recipe, prepared.report, run.data / "findings.jsonl")
    for proof in prepared.proofs():
        run.prove(proof)
    for name in prepared.splits:
        for file in reversed(ROW_FILES):  # the one that makes the split exist comes last
            share(prepared.folder / f"{name}.{file}", run.data / f"{name}.{file}")
    for name, counts in prepared.report["splits"].items():
        console.note(
            f"{name}: {counts['rows']} rows, {counts['tokens']} tokens, {counts['learned_tokens']} of them learned"
        )


def build(recipe: Recipe, base: Base, cache: Path) -> Prepared:
    """Rows, contract and token ids, from `cache` where they have been made before.

    What is wrong with rows is in the report, for `levels.verdict`; raises only where there is nothing to judge.
    """
    data = recipe.data
    sources = resolve_sources(data)
    contract = Contract.make(
        base.tokenizer_folder,
        template=recipe.model.template,
        system=data.system,
        instruction_role=data.instruction_role,
        reading={"format": row_format(data, sources), "columns": data.columns, "processor": data.processor},
    )
    _check_sizes(recipe, base, contract)
    read = stats(recipe, sources)
    folder = cache / cache_key(recipe, contract, sources)
    if is_whole(folder):
        console.note(f"rows: prepared before ({folder})")
    else:
        with filling(folder) as place:
            fill(recipe, contract, sources, place)
            shutil.rmtree(place / "pool")
            require_unchanged(read)
    report = relevelled(json.loads((folder / "report.json").read_text("utf-8")), data)
    named = zip(report["sources"], sources, strict=True)
    # these are this recipe's: another may have prepared the same rows, with another base or commit of a hub data set
    ours = {
        "sources": [told | {"revision": source.revision} for told, source in named],
        "positions": base.config.get("max_position_embeddings"),
        "cache": folder.name,
    }
    return Prepared(contract, folder, report | ours)


def row_format(data: Data, sources: Sequence[SourceFile]) -> str:
    """The format that training rows are read in: new rows have to be read in the same one."""
    if sources[0].path is None:
        return "instruction"
    return format_of(next(raw_batches(sources[0])).rows(), Manner.of(data))


def _check_sizes(recipe: Recipe, base: Base, contract: Contract) -> None:
    positions = base.config.get("max_position_embeddings")
    if isinstance(positions, int) and recipe.data.max_length > positions:
        raise RecipeError(
            f"data.max_length: {recipe.data.max_length} is more than the model's {positions} positions",
            where="data.max_length",
            fix=f"at most {positions}",
        )
    embeddings = base.config.get("vocab_size")
    if isinstance(embeddings, int) and contract.vocabulary_size > embeddings:
        raise ModelError(
            f"the tokenizer has {contract.vocabulary_size} ids, the model {embeddings} embeddings",
            where=str(base.tokenizer_folder),
            fix="use the tokenizer that belongs to this model",
        )
