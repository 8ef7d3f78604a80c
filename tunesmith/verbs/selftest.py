"""doctor --selftest: a recipe's base, rows and settings through every hand-off in small. Nothing is left behind."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from tunesmith import console
from tunesmith.proof import Proof
from tunesmith.recipe import Recipe


def selftest(recipe: Recipe) -> dict[str, Any]:
    """Prints each proof as it is made; `exit` is 3 where one fails."""
    from tunesmith.selftest.prove import LeftOut, prove

    began, made, left_out = time.monotonic(), list[Proof](), dict[str, str]()
    with tempfile.TemporaryDirectory(prefix="tunesmith-selftest-") as folder:
        for one in prove(recipe, Path(folder)):
            if isinstance(one, LeftOut):
                left_out |= dict.fromkeys(one.names, one.why)
                console.say(console.wrapped(f"left out {', '.join(one.names)}: {one.why}", indent=8))
            else:
                made.append(one)
                console.say(console.wrapped(one.line(), indent=8))
    failed = [proof.name for proof in made if not proof.passed]
    seconds = time.monotonic() - began
    if failed:
        console.say(f"{len(failed)} of {len(made)} proofs failed: {', '.join(failed)} ({seconds:.0f} s)")
        console.say("what to do: docs/troubleshooting.md, section self-test")
    else:
        rest = f", {len(left_out)} left out" if left_out else ""
        console.say(f"{'the' if left_out else 'all'} {len(made)} proofs passed{rest} ({seconds:.0f} s)")
    return {
        "proofs": [proof.to_json() for proof in made], "left_out": left_out, "exit": 3 if failed else 0,
    }  # fmt: skip
