"""export.json: what export has made and proved, of what, how large, how fast, and how far from the live adapter.

An entry is written when its thing is whole, proved and in its place, so a killed export goes on behind the last one.
{artifacts: {NAME: {kind, type, origin, proved_on, files: {path: {bytes, sha256}}, bytes, tokens_per_second, logits,
answers_equal, answers_stop, score, loss}}}
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith import console
from tunesmith.export.folder import unlist
from tunesmith.run import Run, sha256_file

if TYPE_CHECKING:
    from tunesmith.export.job import Job

Entry = dict[str, Any]


def entries(run: Run) -> dict[str, Entry]:
    """All that stands."""
    found = run.read_json(run.export_file).get("artifacts", {})
    return found if isinstance(found, dict) else {}


def entry(run: Run, name: str) -> Entry:
    """One of them; empty where there is none."""
    return entries(run).get(name, {})


def stands(run: Run, one: Entry, origin: str) -> bool:
    """Whether it was made of this very origin, and its files are there unharmed."""
    if not one or one.get("origin") != origin:
        return False
    files: Mapping[str, Mapping[str, Any]] = one["files"]
    for name, about in files.items():
        path = run.path / name
        if not path.is_file() or path.stat().st_size != about["bytes"]:
            return False
    return all(sha256_file(run.path / name) == about["sha256"] for name, about in files.items())


def made(
    job: Job,
    name: str,
    told: Mapping[str, Any],
    files: Sequence[Path],
    proved_on: str,
    origin: str | None = None,
) -> Entry:
    """Writes the entry of a thing that has just come to its place. `files`: relative to the run."""
    run = job.run
    about: dict[str, dict[str, Any]] = {
        str(path): {"bytes": (run.path / path).stat().st_size, "sha256": sha256_file(run.path / path)}
        for path in files
    }
    one: Entry = dict(told) | {
        "origin": origin or job.origin_sha256,
        "proved_on": proved_on,
        "files": about,
        "bytes": sum(file["bytes"] for file in about.values()),
    }
    _write(run, entries(run) | {name: one})
    return one


def change(run: Run, name: str, told: Mapping[str, Any], tokens_per_second: float | None = None) -> None:
    """Adds to an entry. A speed that was not measured this time (answers were kept) leaves the former one."""
    speed = {} if tokens_per_second is None else {"tokens_per_second": tokens_per_second}
    known = entries(run)
    _write(run, known | {name: known.get(name, {}) | dict(told) | speed})


def forget(run: Run, name: str) -> None:
    """The thing is gone: its entry, its answers and its proofs go too (a failed proof stays: it says why)."""
    known = entries(run)
    (run.predictions / f"{name}.jsonl").unlink(missing_ok=True)
    run.forget_proofs([one["name"] for one in run.proofs() if one["passed"] and _is_of(one["name"], name)])
    if name in known:
        _write(run, {key: one for key, one in known.items() if key != name})


def proof_prefix(name: str) -> str:
    """What the names of a thing's proofs begin with."""
    return name.replace("-", "_") + "_"


def _is_of(proof: str, name: str) -> bool:
    return proof.startswith(proof_prefix(name))


def forget_stale(job: Job, asked: Collection[str]) -> None:
    """Removes what was made of an adapter, contract or base that are no longer these, and failed proofs of things that
    nobody asks for any more. What still fits stays, asked for or not."""
    run = job.run
    for name, one in entries(run).items():
        if one.get("merged_origin", one.get("origin")) == job.origin_sha256 or name == "merged":
            continue
        for file in one["files"]:
            unlist((run.path / file).parent, {Path(file).name})
            (run.path / file).unlink(missing_ok=True)
        forget(run, name)
        console.note(f"{name} was made of another adapter or contract: it is removed")
    for folder in (run.quantized / "nf4", run.quantized / "int8"):
        if folder.is_dir() and folder.name not in entries(run) and not list(folder.glob("*.safetensors")):
            shutil.rmtree(folder)
    known = {*asked, *entries(run)}
    stale = [
        one["name"]
        for one in run.proofs()
        if one["name"].startswith(("gguf_", "nf4_", "int8_"))
        and not any(_is_of(one["name"], name) for name in known)
    ]
    run.forget_proofs(stale)


def _write(run: Run, content: Mapping[str, Entry]) -> None:
    run.write_json(run.export_file, {"artifacts": dict(content)})
