"""Parses, calls, prints, exits. Nothing heavy is imported before a verb needs it."""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tunesmith import __version__, console
from tunesmith.errors import OutOfRoom, SetupError, Stopped, TunesmithError
from tunesmith.verbs.evaluate import evaluate, evaluate_options
from tunesmith.verbs.serve import serve, serve_options

Result = dict[str, Any]
Verb = Callable[[argparse.Namespace], Result]

NOT_YET = tuple("publish status logs cancel fetch sweep".split())


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 2 something to mend, 3 a proof or check failed, 75 stopped and resumable; a bug raises."""
    parser = _parser()
    arguments, unknown = parser.parse_known_args(argv)
    if unknown and arguments.verb is not _not_yet:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    outcome: Result = {"run": None, "headline": None}
    if threading.current_thread() is threading.main_thread():
        signal.signal(
            signal.SIGTERM, signal.default_int_handler
        )  # outside training too: stopped, and resumable
    try:
        if isinstance(arguments.runs_dir, str) and arguments.verb not in (_runs, _show, _plot, _table):
            raise TunesmithError(
                "runs can only be looked at in S3",
                where="--runs-dir",
                fix="name a folder here; runs, show, plot and table take s3://, too",
            )
        outcome |= arguments.verb(arguments)
        code = int(outcome.pop("exit", 0))  # a verb may have a list to give and still say no
    except TunesmithError as error:
        code = error.exit_code
        outcome |= error.result | {"error": str(error)}
        console.note(f"{'stopped' if isinstance(error, Stopped) else 'error'}: {error}")
    except KeyboardInterrupt:
        code = 75
        kept = arguments.verb in (_run, _again, _predict, _pull)
        console.note(f"stopped: the same command {'goes on' if kept else 'begins again'}")
    except (MemoryError, RuntimeError) as error:
        if not _is_memory(error):
            raise
        fix = "a smaller model, data.max_length, train.micro_batch or evaluate.batch"
        full = OutOfRoom("out of memory", fix=fix)
        code, outcome["error"] = full.exit_code, str(full)
        console.note(f"error: {full}")
    if arguments.json:
        print(json.dumps(outcome | {"exit": code}, ensure_ascii=False), flush=True)
    return code


def _is_memory(error: Exception) -> bool:
    """torch's own error, known by its name here: torch is not imported for this."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="last line of stdout: one JSON object")
    common.add_argument(
        "--runs-dir", type=_place, default=Path("runs"), metavar="DIR", help="where runs lie (runs/)"
    )
    recipe = argparse.ArgumentParser(add_help=False, parents=[common])
    recipe.add_argument("recipe", type=Path, metavar="RECIPE")
    recipe.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="over the file's value"
    )
    parser = argparse.ArgumentParser(
        prog="tunesmith",
        description="From rows and a Llama-class model to a fine-tuned model you can defend.",
    )
    parser.add_argument("--version", action="version", version=f"tunesmith {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)

    def add(
        name: str, verb: Verb, text: str, parent: argparse.ArgumentParser = common
    ) -> argparse.ArgumentParser:
        one = verbs.add_parser(name, help=text, description=text, parents=[parent])
        one.set_defaults(verb=verb)
        return one

    one = add("init", _init, "look at rows, write a commented recipe for them")
    one.add_argument("rows", type=Path, metavar="ROWS")
    one.add_argument("--base", default="starter", metavar="ID", help="hub id or folder (starter)")
    one.add_argument("--out", type=Path, metavar="FILE", help="the recipe (named after the rows)")
    one.add_argument("--force", action="store_true", help="write over FILE")
    one = add("check", _check, "look at recipe, files, rows and plan; no GPU needed", recipe)
    one.add_argument(
        "--show", type=_count, default=0, metavar="N", help="print N rows with learned tokens coloured"
    )
    one.add_argument(
        "--reject-to",
        type=Path,
        metavar="FILE",
        help="set bad rows aside here; the others are kept beside it",
    )
    one.add_argument("--gpu", metavar="NAME", help="foretell memory and time on this card, e.g. L4 or H100")
    one.add_argument(
        "--price", type=_price, metavar="USD_PER_HOUR", help="of that card: foretell the cost, too"
    )
    one.add_argument("--on", default=None, help="not available yet in this version")
    for name, until, text in (
        ("run", "export", "prepare, train, evaluate, export; again: resume"),
        ("prepare", "prepare", "rows to token ids, proved"),
        ("train", "train", "up to the trained adapter"),
    ):
        one = add(name, _run, text, recipe)
        one.set_defaults(until=until)
        one.add_argument("--fork", action="store_true", help="start another run beside the one of this name")
        one.add_argument("--on", default=None, help="not available yet in this version")
        if name == "run":
            one.add_argument(
                "--until", choices=("prepare", "train", "evaluate", "export"), help="stop after this stage"
            )
    for name, text in (("evaluate", "score a finished run again"), ("export", "export a finished run again")):
        one = add(name, _again, text)
        one.set_defaults(stage=name)
        if name == "export":
            one.add_argument("run", metavar="RUN")
        else:
            evaluate_options(one)
    one = add("predict", _predict, "answers for new rows; resumable")
    one.add_argument("model", metavar="MODEL", help="RUN, folder, GGUF file, hub id or s3://…")
    one.add_argument("rows", type=Path, metavar="ROWS")
    one.add_argument("--out", type=Path, required=True, metavar="FILE")
    one.add_argument(
        "--batch",
        type=_batch,
        default="auto",
        metavar="N",
        help="answers side by side (auto: what memory takes)",
    )
    one.add_argument("--max-tokens", type=_at_least_1, default=None, help="longest answer")
    serve_options(add("serve", serve, "answer over HTTP: OpenAI's and Ollama's routes, and pages"))
    one = add("pull", _pull, "download a base model ahead of time")
    one.add_argument("what", metavar="RECIPE|ID")
    one = add("doctor", _doctor, "what of this machine fits, each with the command that mends it")
    one.add_argument(
        "--selftest",
        type=Path,
        metavar="RECIPE",
        help="prove template, packing, saving and learning on its base",
    )
    one.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="with --selftest"
    )
    one.add_argument("--on", default=None, help="not available yet in this version")
    _add_looks(add)
    add("schema", _schema, "the recipe's JSON schema, for editors")
    for name in NOT_YET:
        one = add(name, _not_yet, "(not available yet)")
        one.add_argument("rest", nargs="*")
        one.set_defaults(name=name)
    return parser


def _add_looks(add: Callable[[str, Verb, str], argparse.ArgumentParser]) -> None:
    """Verbs that look at runs, and clean."""
    one = add("runs", _runs, "the runs, newest first")
    one.add_argument("what", nargs="?", choices=("list",), default="list", help="list")
    one = add("show", _show, "how far a run is, what it found, and what to type next")
    one.add_argument("run", metavar="RUN", help="folder, name under --runs-dir, latest, or s3://…")
    for name, verb, text in (
        ("plot", _plot, "loss, gap, learning rate, gradient norm and speed as a PNG"),
        ("table", _table, "the logged steps as CSV or JSON"),
    ):
        one = add(name, verb, text)
        one.add_argument("runs", metavar="RUN", nargs="+")
        one.add_argument("--out", type=Path, metavar="FILE")
        if name == "table":
            one.add_argument("--format", choices=("csv", "json"), help="as FILE ends, else csv")
    one = add(
        "compare", _compare, "two or more runs on the same rows: paired differences, and what they can tell"
    )
    one.add_argument("runs", metavar="RUN", nargs="+")
    one.add_argument("--out", type=Path, metavar="FILE", help="also as a page: FILE.html, .md or .json")
    one = add("clean", _clean, "remove checkpoints that a run no longer needs; asks first")
    one.add_argument("run", metavar="RUN", nargs="?")
    one.add_argument("--cache", action="store_true", help="remove prepared rows that no run shares any more")
    one.add_argument("--yes", action="store_true", help="don't ask")


def _place(text: str) -> Path | str:
    """A folder, or an S3 address, which a Path would spoil."""
    return text if text.startswith("s3://") else Path(text)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no number of rows")
    return int(text)


def _at_least_1(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 on")
    return int(text)


def _batch(text: str) -> int | str:
    return text if text == "auto" else _at_least_1(text)


def _price(text: str) -> float:
    try:
        price = float(text)
    except ValueError:
        price = math.nan
    if not 0 <= price < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no price in US dollars an hour")
    return price


# ---- verbs; each imports what it needs


def _init(arguments: argparse.Namespace) -> Result:
    from tunesmith.verbs.init import init

    return init(arguments.rows, arguments.base, arguments.out, arguments.force)


def _check(arguments: argparse.Namespace) -> Result:
    _refuse(arguments, ("on",))
    if arguments.price is not None and arguments.gpu is None:
        raise TunesmithError("--price is that of a card", fix="check RECIPE --gpu NAME --price USD_PER_HOUR")
    if arguments.gpu is not None and arguments.reject_to is not None:
        raise TunesmithError("--reject-to sets rows aside and foretells nothing", fix="give --gpu afterwards")
    recipe = _recipe(arguments)
    from tunesmith.verbs.check import check

    typed = shlex.join([str(arguments.recipe), *(word for one in arguments.set for word in ("--set", one))])
    return check(
        recipe, arguments.runs_dir, arguments.show, arguments.reject_to, typed, arguments.gpu, arguments.price
    )


def _run(arguments: argparse.Namespace) -> Result:
    _refuse(arguments, ("on",))
    recipe = _recipe(arguments)
    from tunesmith.recipe_file import dump_recipe
    from tunesmith.verbs.run import run

    return run(recipe, dump_recipe(recipe), arguments.runs_dir, arguments.until or "export", arguments.fork)


def _again(arguments: argparse.Namespace) -> Result:
    if arguments.stage == "evaluate":
        return evaluate(arguments)
    from tunesmith.verbs.run import again

    return again(arguments.run, arguments.runs_dir, arguments.stage)


def _predict(arguments: argparse.Namespace) -> Result:
    from tunesmith.verbs.predict import predict

    return predict(
        arguments.model,
        arguments.rows,
        arguments.out,
        runs_dir=arguments.runs_dir,
        batch=arguments.batch,
        max_tokens=arguments.max_tokens,
    )


def _pull(arguments: argparse.Namespace) -> Result:
    from tunesmith.base import resolve
    from tunesmith.recipe import Model
    from tunesmith.recipe_file import load_recipe

    is_recipe = arguments.what.endswith((".yaml", ".yml"))
    base = resolve(load_recipe(arguments.what).model if is_recipe else Model(base=arguments.what))
    console.say(f"{base.name} lies in {base.folder}")
    return {}


def _doctor(arguments: argparse.Namespace) -> Result:
    _refuse(arguments, ("on",))
    if arguments.selftest:
        from tunesmith.recipe_file import load_recipe
        from tunesmith.verbs.selftest import selftest

        return selftest(load_recipe(arguments.selftest, arguments.set))
    if arguments.set:
        raise TunesmithError(
            "--set changes a recipe, and none is given", fix="doctor --selftest RECIPE --set …"
        )
    from tunesmith.verbs.doctor.examine import doctor

    return doctor(arguments.runs_dir)


def _runs(arguments: argparse.Namespace) -> Result:
    from tunesmith.verbs.runs import runs

    return runs(arguments.runs_dir)


def _show(arguments: argparse.Namespace) -> Result:
    from tunesmith.verbs.show import show

    return show(arguments.run, arguments.runs_dir)


def _plot(arguments: argparse.Namespace) -> Result:
    from tunesmith.verbs.plot import plot

    return plot(arguments.runs, arguments.runs_dir, arguments.out)


def _table(arguments: argparse.Namespace) -> Result:
    from tunesmith.verbs.table import table

    return table(arguments.runs, arguments.runs_dir, arguments.format, arguments.out)


def _compare(arguments: argparse.Namespace) -> Result:
    from tunesmith.verbs.compare import compare

    return compare(arguments.runs, arguments.runs_dir, arguments.out)


def _clean(arguments: argparse.Namespace) -> Result:
    from tunesmith.verbs.clean import clean, clean_cache

    if bool(arguments.run) == arguments.cache:
        raise TunesmithError("what is to be cleaned?", fix="clean RUN, or clean --cache")
    if arguments.cache:
        return clean_cache(arguments.runs_dir, arguments.yes)
    return clean(arguments.run, arguments.runs_dir, arguments.yes)


def _schema(arguments: argparse.Namespace) -> Result:
    from tunesmith.recipe import Recipe

    console.say(json.dumps(Recipe.model_json_schema(by_alias=True), indent=2))
    return {}


def _not_yet(arguments: argparse.Namespace) -> Result:
    raise SetupError(f"tunesmith {arguments.name} is not available yet in this version")


def _refuse(arguments: argparse.Namespace, names: Sequence[str]) -> None:
    for name in names:
        if getattr(arguments, name) is not None:
            raise SetupError(f"--{name.replace('_', '-')} is not available yet in this version")


def _recipe(arguments: argparse.Namespace) -> Any:
    from tunesmith.recipe_file import load_recipe

    return load_recipe(arguments.recipe, arguments.set)


def entry() -> None:
    """The `tunesmith` command."""
    if "PYTORCH_ALLOC_CONF" not in os.environ:  # read when torch is imported
        # without it, ragged micro-batches leave a tenth of a card's memory in gaps, and a full plan doesn't fit
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    sys.exit(main())


if __name__ == "__main__":
    entry()
