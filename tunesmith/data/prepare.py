"""Stage prepare: rows → examples → token ids, proved row by row."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith import console
from tunesmith.base import Base, resolve
from tunesmith.contract import Contract
from tunesmith.data.formats import SHOWN, Manner, file_format, read_file, to_examples
from tunesmith.data.proofs import Pair, contract_proofs
from tunesmith.data.split import split_rows
from tunesmith.errors import ModelError, RecipeError, RowCheckFailed, RowError
from tunesmith.example import Example
from tunesmith.proof import Proof
from tunesmith.recipe import Data, Recipe
from tunesmith.rows import remove_rows, write_rows
from tunesmith.run import Run
from tunesmith.tasks import make_task
from tunesmith.tasks.schema import load_schema
from tunesmith.tasks.score import check_golds

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Prepared:
    """Everything that training needs of the rows, in memory."""

    contract: Contract
    splits: dict[str, list[Pair]]
    dropped: dict[str, list[str]]
    """Ids of overlong rows left out, where data.overlong says drop."""

    def report(self) -> dict[str, Any]:
        """data/report.json: counts and lengths in tokens."""
        return {
            "splits": {
                name: _counts(pairs, self.dropped.get(name, [])) for name, pairs in self.splits.items()
            }
        }

    def proofs(self) -> list[Proof]:
        """The Contract's proofs over every row of every split."""
        return [
            proof
            for name, pairs in self.splits.items()
            for proof in contract_proofs(self.contract, name, pairs)
        ]


def prepare(recipe: Recipe, run: Run) -> None:
    """Reads the recipe's rows and fills `run.data`; keeps the contract and its proofs."""
    base = resolve(recipe.model)
    prepared = build(recipe, base)
    prepared.contract.save(run.contract_folder, run.contract_folder / "tokenizer")
    for proof in prepared.proofs():
        run.prove(proof)
    for name in SPLITS:
        if name not in prepared.splits:  # of an earlier recipe
            remove_rows(run.data, name)
    for name, pairs in prepared.splits.items():
        write_rows(run.data, name, pairs)
    positions = base.config.get("max_position_embeddings")
    run.write_json(run.data / "report.json", prepared.report() | {"positions": positions})
    for name, pairs in prepared.splits.items():
        tokens = sum(len(encoded.ids) for _, encoded in pairs)
        learned = sum(sum(encoded.learned) for _, encoded in pairs)
        console.note(f"{name}: {len(pairs)} rows, {tokens} tokens, {learned} of them learned")


def build(recipe: Recipe, base: Base) -> Prepared:
    """Rows, contract and token ids; RowError or RowCheckFailed lists every row that can't be used."""
    data = recipe.data
    contract = Contract.make(
        base.tokenizer_folder,
        template=recipe.model.template,
        system=data.system,
        instruction_role=data.instruction_role,
        reading={"format": training_format(data)},
    )
    _check_sizes(recipe, base, contract)
    examples = read_splits(data, recipe.seed)
    splits: dict[str, list[Pair]] = {}
    dropped: dict[str, list[str]] = {}
    for name, rows in examples.items():
        pairs = _encode(contract, rows)
        long = [
            (example, len(encoded.ids)) for example, encoded in pairs if len(encoded.ids) > data.max_length
        ]
        if long:
            _overlong(long, len(pairs), data)
            dropped[name] = [example.id for example, _ in long]
            console.warn(
                f"{name}: {len(long)} of {len(pairs)} rows over {data.max_length} tokens are left out"
            )
            pairs = [pair for pair in pairs if len(pair[1].ids) <= data.max_length]
        if not pairs:
            raise RowError(f"no {name} rows are left", where=f"data.{name}", fix="raise data.max_length")
        splits[name] = pairs
    if data.json_schema:
        _check_schema(Path(data.json_schema), splits)
    _check_golds(recipe, splits)
    return Prepared(contract, splits, dropped)


def read_splits(data: Data, seed: int) -> dict[str, list[Example]]:
    """Examples of each split that the recipe names or sets aside."""
    manner = Manner(data.format, data.system, data.instruction_role)
    given = {name: getattr(data, name) for name in SPLITS if getattr(data, name) is not None}
    examples = {name: read_source(name, source, manner) for name, source in given.items()}
    shares = {name: share for name in SPLITS[1:] if (share := getattr(data.split, name))}
    if shares:
        examples |= split_rows(examples["train"], shares, seed)
    return {name: examples[name] for name in SPLITS if name in examples}


def training_format(data: Data) -> str:
    """The format that training rows are read in: new rows have to be read in the same one."""
    if not isinstance(data.train, str) or data.train == "starter":
        return "instruction"
    return file_format(Path(data.train), Manner(data.format))


def read_source(name: str, source: object, manner: Manner) -> list[Example]:
    """Rows of one split: a path, or `starter`."""
    if source == "starter":
        from tunesmith.starter import reports

        return to_examples(((f"starter:{row['id']}", row) for row in reports.rows(name)), "starter", manner)
    if not isinstance(source, str):
        raise RecipeError("a list of files is not available yet in this version", where=f"data.{name}")
    return read_file(Path(source), manner)


def source_files(data: Data) -> dict[str, Path]:
    """The files that the rows come from, by split."""
    named = {name: getattr(data, name) for name in SPLITS}
    files = {
        name: Path(source)
        for name, source in named.items()
        if isinstance(source, str) and source != "starter"
    }
    return files | ({"schema": Path(data.json_schema)} if data.json_schema else {})


def _encode(contract: Contract, rows: Sequence[Example]) -> list[Pair]:
    pairs: list[Pair] = []
    bad: list[RowError] = []
    for example in rows:
        try:
            pairs.append((example, contract.encode(example)))
        except RowError as error:
            bad.append(error)
    if bad:
        more = f"\n  … and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
        listing = "\n".join(f"  {error.where}: {error.what}" for error in bad[:SHOWN])
        raise RowError(
            f"{len(bad)} of {len(rows)} rows don't fit the template:\n{listing}{more}", fix=bad[0].fix
        )
    return pairs


def _overlong(long: list[tuple[Example, int]], total: int, data: Data) -> None:
    if data.overlong == "drop":
        return
    listing = "\n".join(f"  {example.source}: {length} tokens" for example, length in long[:SHOWN])
    more = f"\n  … and {len(long) - SHOWN} more" if len(long) > SHOWN else ""
    longest = max(length for _, length in long)
    raise RowError(
        f"{len(long)} of {total} rows are longer than data.max_length: {data.max_length}\n{listing}{more}",
        where="data.max_length",
        fix=f"data.max_length: {longest} takes them all; data.overlong: drop leaves them out",
    )


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


def _check_schema(path: Path, splits: dict[str, list[Pair]]) -> None:
    import jsonschema
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    try:
        schema = json.loads(path.read_text("utf-8"))
        jsonschema.validators.validator_for(schema).check_schema(schema)
    except FileNotFoundError:
        raise RowError(f"there is no schema {path}", where="data.schema") from None
    except OSError as error:
        raise RowError(f"{path} can't be read: {error.strerror}", where="data.schema") from None
    except (ValueError, jsonschema.SchemaError) as error:
        raise RowError(
            f"{path} is no JSON schema: {str(error).splitlines()[0]}", where="data.schema"
        ) from None
    # an empty registry: a $ref to a web address is an error, never a download
    validator = jsonschema.validators.validator_for(schema)(schema, registry=Registry())
    broken: list[str] = []
    total = 0
    for pairs in splits.values():
        for example, _ in pairs:
            total += 1
            try:
                problem = jsonschema.exceptions.best_match(
                    validator.iter_errors(json.loads(example.answer or ""))
                )
                text = f"{problem.json_path}: {problem.message}" if problem else ""
            except json.JSONDecodeError as error:
                text = f"not JSON: {error.msg}"
            except Unresolvable as error:
                raise RowError(
                    f"{path} refers to {error.ref!r}, which it does not hold",
                    where="data.schema",
                    fix="put the definition into the schema itself, under $defs",
                ) from None
            if text:
                broken.append(f"  {example.source}: {text[:160]}")
    if broken:
        more = f"\n  … and {len(broken) - SHOWN} more" if len(broken) > SHOWN else ""
        listing = "\n".join(broken[:SHOWN])
        raise RowCheckFailed(
            f"the answers of {len(broken)} of {total} rows break the schema:\n{listing}{more}",
            where="data.schema",
            fix=f"mend these rows, or {path}",
        )


def _check_golds(recipe: Recipe, splits: dict[str, list[Pair]]) -> None:
    """The rows that evaluate will score can be scored: said before training, not after it."""
    scored = splits.get("test") or splits.get("validation")
    if not scored:
        return
    schema = load_schema(recipe.data.json_schema) if recipe.data.json_schema else None
    golds = [example.answer for example, _ in splits["train"] if example.answer is not None]
    check_golds(make_task(recipe.evaluate.task, schema, golds), [example for example, _ in scored])


def _counts(pairs: Sequence[Pair], dropped: Sequence[str]) -> dict[str, Any]:
    lengths = np.asarray([len(encoded.ids) for _, encoded in pairs])
    learned = np.asarray([sum(encoded.learned) for _, encoded in pairs])
    quantiles = {f"p{q}": int(np.percentile(lengths, q, method="inverted_cdf")) for q in (50, 90, 99)}
    return {
        "rows": len(pairs),
        "documents": len({example.document for example, _ in pairs}),
        "tokens": int(lengths.sum()),
        "learned_tokens": int(learned.sum()),
        "length": {"min": int(lengths.min()), **quantiles, "max": int(lengths.max())},
        "longest_answer": int(learned.max()),
        "dropped_overlong": list(dropped),
    }
