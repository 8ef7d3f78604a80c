"""evaluate: a finished run again, a predictions file beside it or alone, or its rows as an inspect_ai log.

Light to import: the command line takes its options from here.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tunesmith.errors import TunesmithError


def evaluate_options(parser: argparse.ArgumentParser) -> None:
    """What the verb takes."""
    parser.add_argument("run", metavar="RUN", nargs="?")
    parser.add_argument(
        "--redact", action="store_true", help="leave the texts of rows out of what is written"
    )
    parser.add_argument(
        "--from",
        dest="predictions",
        type=Path,
        metavar="FILE",
        help="score a predictions file: beside RUN, or alone",
    )
    parser.add_argument("--recipe", type=Path, help="with --from alone: whose task scores it")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="with --recipe: write a report there, too")
    parser.add_argument(
        "--inspect-log",
        type=Path,
        metavar="FILE",
        help="write RUN's scored rows as an inspect_ai log (.eval or .json); nothing is scored again",
    )
    parser.add_argument(
        "--system", default=None, metavar="NAME", help="with --inspect-log: whose answers (tuned)"
    )


def evaluate(arguments: argparse.Namespace) -> dict[str, Any]:
    """One of the four; TunesmithError where the options ask for two."""
    if arguments.predictions is not None:
        return _score(arguments)
    if not arguments.run:
        raise TunesmithError("which run?", fix="evaluate RUN (a folder, a name under --runs-dir, or latest)")
    for option in ("recipe", "out"):
        if getattr(arguments, option) is not None:
            raise TunesmithError(f"--{option} is for --from FILE", fix="evaluate --from FILE --recipe RECIPE")
    if arguments.inspect_log is not None:
        from tunesmith.verbs.inspect_log import inspect_log

        return inspect_log(
            arguments.run, arguments.runs_dir, arguments.inspect_log, arguments.system, arguments.redact
        )
    from tunesmith.verbs.run import again

    return again(arguments.run, arguments.runs_dir, "evaluate", arguments.redact)


def _score(arguments: argparse.Namespace) -> dict[str, Any]:
    """A predictions file, beside a run or alone."""
    if bool(arguments.run) == bool(arguments.recipe) or arguments.inspect_log is not None:
        raise TunesmithError(
            "--from scores a file beside a run, or alone by a recipe's task",
            fix="evaluate RUN --from FILE, or evaluate --from FILE --recipe RECIPE [--out FOLDER]",
        )
    from tunesmith.verbs.score import score, score_beside

    if arguments.run:
        if arguments.out is not None:
            raise TunesmithError(
                "--out is for a file alone", fix="RUN's own report is written again without it"
            )
        return score_beside(arguments.run, arguments.predictions, arguments.runs_dir, arguments.redact)
    from tunesmith.recipe_file import load_recipe

    recipe = load_recipe(arguments.recipe)
    return score(recipe, arguments.predictions, arguments.runs_dir, arguments.out, arguments.redact)
