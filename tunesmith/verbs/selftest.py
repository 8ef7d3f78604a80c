"""doctor --selftest: a recipe's base, rows and settings through every hand-off in small. Nothing is left behind."""

from __future__ import annotations

import shutil
import tempfile
import textwrap
import time
from pathlib import Path
from typing import Any

from tunesmith import console
from tunesmith.recipe import Recipe


def selftest(recipe: Recipe) -> dict[str, Any]:
    """Prints each proof as it is made; `exit` is 3 where one fails."""
    from tunesmith.selftest.prove import prove

    began, made = time.monotonic(), []
    width = max(60, min(100, shutil.get_terminal_size((80, 24)).columns))
    with tempfile.TemporaryDirectory(prefix="tunesmith-selftest-") as folder:
        for proof in prove(recipe, Path(folder)):
            made.append(proof)
            console.say("\n".join(textwrap.wrap(proof.line(), width, subsequent_indent=" " * 8)))
    failed = [proof.name for proof in made if not proof.passed]
    seconds = time.monotonic() - began
    if failed:
        console.say(f"{len(failed)} of {len(made)} proofs failed: {', '.join(failed)} ({seconds:.0f} s)")
        console.say("what to do: docs/troubleshooting.md, section self-test")
    else:
        console.say(f"all {len(made)} proofs passed ({seconds:.0f} s)")
    return {"proofs": [proof.to_json() for proof in made], "exit": 3 if failed else 0}
