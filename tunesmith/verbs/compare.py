"""compare: two or more runs on the same rows, with paired statistics. No model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith import console
from tunesmith.errors import TunesmithError
from tunesmith.evaluate.compared.compared_words import findings
from tunesmith.evaluate.compared.comparison import Group
from tunesmith.evaluate.compared.comparison import compare as compare_systems
from tunesmith.evaluate.compared.same_rows import require_same_rows, rows_sha256
from tunesmith.evaluate.score import Systems, with_likelihood
from tunesmith.recipe import Recipe
from tunesmith.recipe_file import load_recipe
from tunesmith.rows import Rows
from tunesmith.run import Run, find_run, require_writable, write_atomic
from tunesmith.tasks.own_task import blamed
from tunesmith.tasks.score import Scored, score_predictions
from tunesmith.verbs.comparison_page import html, markdown, slice_rows, system_table
from tunesmith.view.scored import ScoredRows, run_task, scored_rows
from tunesmith.view.series import read_lines

_FORMS = (".md", ".json", ".html")


@dataclass(frozen=True)
class _Told:
    """A run and what it was scored on."""

    run: Run
    recipe: Recipe
    rows: ScoredRows
    name: str

    @property
    def kin(self) -> str:
        """The same for runs that differ by nothing but their seed."""
        kept = self.recipe.model_dump(
            mode="json", by_alias=True, exclude={"name", "seed", "publish", "targets"}
        )
        kept["data"] |= {"train": Rows.open(self.run.data, "train").sha256}  # the rows, whatever their path
        return json.dumps(kept, sort_keys=True)


def compare(names: Sequence[str], runs_dir: Path, out: Path | None = None) -> dict[str, Any]:
    """Prints scores, differences and what they can and can't tell; returns all of it. `out`: .md, .json or .html."""
    if out is not None and out.suffix.lower() not in _FORMS:
        raise TunesmithError(
            f"{out.name} ends in none of {', '.join(_FORMS)}", where="--out", fix="name a file that does"
        )
    if out is not None:
        require_writable(out)
    content = compared(_open(names, runs_dir))
    _print(content)
    if out is not None:
        write_atomic(out, _rendered(content, out.suffix.lower()).encode("utf-8", "replace"))
        console.say(f"written: {out}")
    main = content["comparisons"][0] if content["comparisons"] else None
    headline = None if main is None else {"metric": content["metric"], "difference": main["difference"]}
    return {"headline": headline, "comparison": content} | ({} if out is None else {"out": str(out)})


def compared(told: Sequence[_Told]) -> dict[str, Any]:
    """The content of a comparison; RowCheckFailed where the runs were scored on other rows."""

    first = told[0]
    for other in told[1:]:
        require_same_rows(first.name, first.rows.examples, other.name, other.rows.examples)
    systems, bases = _systems(told)
    groups = [*_groups(told), *bases]
    content: dict[str, Any] = {
        "runs": [
            {
                "run": one.name,
                "seed": one.recipe.seed,
                "base": one.recipe.model.base,
                "split": one.rows.split,
                "selected_on_scored_rows": one.rows.selected,
                "overlap": one.rows.overlap,
            }
            for one in told
        ],
        "rows_sha256": rows_sha256(first.rows.examples),
    }
    with blamed(systems.task):
        content |= compare_systems(systems, groups, seed=first.recipe.evaluate.decoding.seed)
    content["said"] = _said(told, bases)
    return content | {"findings": findings(content)}


def _open(names: Sequence[str], runs_dir: Path) -> list[_Told]:
    runs = [find_run(name, runs_dir) for name in names]
    paths = [run.path.resolve() for run in runs]
    if len(set(paths)) < len(paths) or len(paths) < 2:
        raise TunesmithError(
            f"{len(set(paths))} run is named; two or more are compared", fix="tunesmith compare RUN RUN…"
        )
    short = [run.name for run in runs]
    told = []
    for run in runs:
        if not (run.predictions / "tuned.jsonl").is_file():
            raise TunesmithError(
                f"{run.name} has no answers yet",
                where=str(run.predictions),
                fix=f"tunesmith evaluate {run.path}",
            )
        recipe = load_recipe(run.recipe_file)
        name = run.name if short.count(run.name) == 1 else str(run.path)
        told.append(_Told(run, recipe, scored_rows(recipe, run), name))
    return told


def _systems(told: Sequence[_Told]) -> tuple[Systems, list[Group]]:
    """All tuned models and the bases, each base once, scored by the first run's task; and the bases as columns."""

    task = run_task(told[0].recipe, told[0].run)
    examples = told[0].rows.examples
    scored: dict[str, Scored] = {}
    bases: list[Group] = []
    seen: dict[tuple[str, ...], str] = {}
    for one in told:
        alone = {"tuned": score_predictions(one.run.predictions / "tuned.jsonl", examples, task)}
        if (one.run.predictions / "base.jsonl").is_file():
            alone["base"] = score_predictions(one.run.predictions / "base.jsonl", examples, task)
        lines = read_lines(one.run.report / "likelihood.jsonl")
        judged = with_likelihood(Systems(task, examples, alone), lines).scored
        scored[f"tuned {one.name}"] = judged["tuned"]
        if "base" not in judged:
            continue
        said = tuple(line["answer"] for row in judged["base"].predictions for line in row)
        if said not in seen:
            seen[said] = one.name
            scored[f"base {one.name}"] = judged["base"]
    for name in seen.values():
        shown = "base" if len(seen) == 1 else f"base of {name}"
        bases.append(Group(shown, (f"base {name}",), "base"))
    return Systems(task, examples, scored), bases


def _groups(told: Sequence[_Told]) -> list[Group]:
    """Runs of one recipe with other seeds stand together; of the same seed twice they stay apart."""

    kin: dict[tuple[str, int], list[_Told]] = {}
    for one in told:
        key, turn = one.kin, 0
        while any(other.recipe.seed == one.recipe.seed for other in kin.get((key, turn), ())):
            turn += 1
        kin.setdefault((key, turn), []).append(one)
    return [
        Group(
            group[0].name if len(group) == 1 else f"{group[0].name} ({len(group)} seeds)",
            tuple(f"tuned {one.name}" for one in group),
        )
        for group in kin.values()
    ]


def _said(told: Sequence[_Told], bases: Sequence[Group]) -> list[str]:
    """What else is not the same in these runs, and what makes scores too high."""
    first, made = told[0], []
    for one in told[1:]:
        for what, here, there in (
            ("base", _base(first.recipe), _base(one.recipe)),
            ("evaluate.task", first.recipe.evaluate.task, one.recipe.evaluate.task),
            ("decoding", _decoding(first.recipe), _decoding(one.recipe)),
        ):
            if here != there:
                made.append(f"{one.name} has another {what} than {first.name}: {there}, not {here}.")
    if any(one.recipe.evaluate.task != first.recipe.evaluate.task for one in told):
        made.append(f"All answers are scored here as {first.name} scores its own.")
    if len(bases) > 1 and len({_base(one.recipe) for one in told}) == 1:
        made.append("The base's answers differ from run to run, so each run's base has its own column.")
    made += [
        f"{one.name}: the scored rows also chose the checkpoint, so its scores are too high."
        for one in told
        if one.rows.selected
    ]
    made += [
        f"{one.name}: {one.rows.overlap['train']} scored rows stand in its training rows too: its scores are too high."
        for one in told
        if one.rows.overlap["train"]
    ]
    return made


def _base(recipe: Recipe) -> str:
    held = "" if recipe.model.quantize == "none" else f", {recipe.model.quantize}"
    at = f" @ {recipe.model.revision}" if recipe.model.revision else ""
    return f"{recipe.model.base}{at} ({recipe.model.dtype}{held})"


def _decoding(recipe: Recipe) -> str:
    one = recipe.evaluate.decoding
    return f"temperature {one.temperature:g}, top-p {one.top_p:g}, {one.samples} samples, max_tokens {one.max_tokens}"


def _print(content: Mapping[str, Any]) -> None:
    title = f"{content['rows']} rows, {content['documents']} documents; 95 % intervals by document"
    console.table(title, *system_table(content))
    for one in content["comparisons"]:
        if one["slices"]:
            console.say()
            head, rows = slice_rows(content, one)
            console.table(f"slices by {content['metric']}; * too little to say much", head, rows)
    console.say()
    for sentence in content["findings"]:
        console.say(console.wrapped(sentence, indent=0))


def _rendered(content: Mapping[str, Any], form: str) -> str:
    if form == ".json":
        return json.dumps({"schema_version": 1} | dict(content), indent=2, ensure_ascii=False) + "\n"
    return markdown(content) if form == ".md" else html(content)
