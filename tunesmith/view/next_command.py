"""What to type next for a run, in one line that is there to be copied."""

from __future__ import annotations

import re
import shlex

from tunesmith.run import read_text
from tunesmith.store.s3 import is_s3
from tunesmith.view.sources import Source
from tunesmith.view.summary import Summary


def next_command(one: Summary, source: Source, runs_dir: str) -> str:
    """The command that most likely comes next."""
    where = "" if runs_dir == "runs" else f" --runs-dir {shlex.quote(runs_dir)}"
    if is_s3(source.address):
        return f"tunesmith plot {source.address}"
    name = shlex.quote(one.name)
    if one.state == "running":
        return f"tunesmith plot {name}{where}"
    if one.state == "done" and one.headline:
        return f"tunesmith predict {name} ROWS --out answers.jsonl{where}"
    text = read_text(source.run.recipe_file)
    if text is None:
        return f"this run has no recipe.yaml; put it back to go on: {source.run.recipe_file}"
    recipe = shlex.quote(str(source.run.recipe_file))
    if re.search(rf"^name: {re.escape(one.name)}$", text, re.MULTILINE) is None:
        recipe += " --fork"  # the run of a recipe of another name
    if one.state == "failed":
        return f"mend what is said above, then: tunesmith run {recipe}{where}"
    return f"tunesmith run {recipe}{where}"
