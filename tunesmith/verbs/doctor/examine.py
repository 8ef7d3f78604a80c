"""doctor: what of this machine fits, what is untested, what fails, each with the command that mends it.

Nothing is changed and nothing of the user's is read but names. torch is imported where it is installed.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from tunesmith import __version__, console
from tunesmith.verbs.doctor import access, card, machine, versions
from tunesmith.verbs.doctor.finding import Finding, worst

Groups = dict[str, list[Finding]]


def doctor(runs_dir: Path) -> dict[str, Any]:
    """Prints every check; `exit` is 2 where one fails."""
    groups = examine(runs_dir)
    width = console.width()
    console.say(f"tunesmith {__version__}")
    for title, findings in groups.items():
        console.say(f"\n{title}")
        for finding in findings:
            console.say("\n".join(finding.lines(width)))
    every = [finding for findings in groups.values() for finding in findings]
    failed, warned = ([f.name for f in every if f.state == state] for state in ("fail", "warn"))
    ends = [f"{len(every)} checks"]
    ends += [f"{len(failed)} fail ({', '.join(failed)})"] if failed else ["none fails"]
    ends += [f"{len(warned)} to know about ({', '.join(warned)})"] if warned else []
    console.say("\n" + "\n".join(textwrap.wrap(", ".join(ends), width)))
    return {"checks": [finding.to_json() for finding in every], "exit": 2 if worst(every) == "fail" else 0}


def examine(runs_dir: Path) -> Groups:
    """All findings by group."""
    hub = access.ask_hub()  # waits while torch is imported
    installed = versions.findings()
    facts = card.look()
    return {
        "versions": installed,
        "card": card.judge(facts),
        "machine": machine.findings(runs_dir, len(facts.cards)),
        "access": [hub(), *access.tokens()],
        "extras": versions.extras(),
    }
