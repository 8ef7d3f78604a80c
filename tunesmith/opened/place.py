"""What MODEL means: a run, a folder, a GGUF file, a hub id, or an S3 address of one of these. No torch, nothing loaded.

Looked for in this order: s3://…, a file, a folder, a run's name under --runs-dir (or `latest`), `starter`, the hub.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tunesmith.errors import AccessError, ModelError
from tunesmith.lookup import nearest
from tunesmith.run import Run, find_run, is_run, runs_in
from tunesmith.store.fetched import OnBytes, fetched, folder_name
from tunesmith.store.s3 import is_s3

Kind = Literal["run", "folder", "gguf", "hub"]
_MAGIC = b"GGUF"


@dataclass(frozen=True)
class Place:
    """Where a model lies."""

    kind: Kind
    asked: str
    """MODEL as it was typed."""
    path: Path
    """Of a run its folder; of a hub model its id."""
    run: Run | None = None
    """The run that it is, or that it was exported from."""
    foreign: bool = False
    """From S3 or the hub: no code that it names is run."""

    @property
    def name(self) -> str:
        """How requests say it."""
        if self.kind == "hub":
            return self.asked
        if self.kind == "gguf":
            return self.path.stem
        if self.run is not None and self.kind == "folder":
            return f"{self.run.name}-{self.path.name}"
        return self.path.resolve().name


def find_model(
    asked: str, runs_dir: Path, on_bytes: OnBytes | None = None, *, fetch: bool = True
) -> Place | None:
    """The place of MODEL. What lies in S3 is fetched first; None where that is so and `fetch` is False.

    AccessError or ModelError where there is nothing, or something else than a model.
    """
    if is_s3(asked):
        if not fetch:
            return None
        found = _local(asked, fetched(asked, on_bytes), foreign=True)
        assert found is not None
        return found
    path = Path(asked)
    if (path.exists() or path.is_symlink()) and (found := _local(asked, path, foreign=False)):
        return found
    if asked == "latest" or is_run(runs_dir / asked):
        run = find_run(asked, runs_dir)
        return Place("run", asked, run.path, run)
    if asked.endswith(".gguf"):
        raise AccessError("there is no such file", where=asked, fix="check the path")
    if asked == "starter":
        return Place("hub", asked, path)
    if asked.startswith((".", "/", "~")) or asked.count("/") > 1:
        raise AccessError(
            "there is no such folder or file", where=asked, fix=f"check the path{_hint(asked, runs_dir)}"
        )
    return Place("hub", asked, path, foreign=True)


def address_name(asked: str) -> str:
    """How requests say a model of S3 before it is here."""
    return folder_name(asked.rpartition("/")[2].removesuffix(".gguf"))


def unknown(place: Place, error: AccessError, runs_dir: Path) -> AccessError:
    """The hub's answer to a name that may have been meant for a run."""
    hint = _hint(place.asked, runs_dir)
    if not hint and "/" in place.asked:
        return error
    return AccessError(
        f"there is no run {place.asked} under {runs_dir}{hint}; as a model of the hub: {error.what}",
        where=place.asked,
        fix=f"tunesmith runs lists the runs; {error.fix}" if error.fix else "tunesmith runs lists the runs",
    )


def _hint(asked: str, runs_dir: Path) -> str:
    names = [run.name for run in runs_in(runs_dir)] if runs_dir.is_dir() else []
    guess = nearest(asked, names)
    return f"; did you mean the run {guess!r}?" if guess else ""


def _local(asked: str, path: Path, foreign: bool) -> Place | None:
    """A file or folder as a model; None for a folder that is none, whose name may be meant otherwise."""
    if path.is_file():
        with path.open("rb") as file:
            if file.read(4) != _MAGIC and path.suffix != ".gguf":
                raise ModelError(
                    "this file is no model", where=asked, fix="name a .gguf file, a model's folder or a run"
                )
        return Place("gguf", asked, path, _run_above(path, "gguf"), foreign)
    if not path.is_dir():
        raise AccessError(
            "this is no file and no folder", where=asked, fix="check the path; a link may be broken"
        )
    if is_run(path):
        return Place("run", asked, path, Run(path), foreign)
    if (path / "adapter_config.json").is_file() and not (path / "config.json").is_file():
        run = _run_above(path / "adapter_config.json", "adapter")
        if run is not None:
            return Place("run", asked, run.path, run, foreign)
        raise ModelError(
            "this folder holds an adapter without its base",
            where=asked,
            fix=f"tunesmith serve BASE --adapter NAME={path}",
        )
    if (path / "config.json").is_file():
        run = _run_above(path / "config.json", "merged") or _run_above(path, "quantized")
        return Place("folder", asked, path, run, foreign)
    files = sorted(one.name for one in path.glob("*.gguf"))
    if files:
        raise ModelError(
            f"this folder holds GGUF files ({', '.join(files[:4])})", where=asked, fix="name one of them"
        )
    if foreign or "/" in asked:
        raise ModelError(
            "this folder holds no model: there is no config.json",
            where=asked,
            fix="name a model's folder or a run",
        )
    return None


def _run_above(path: Path, folder: str) -> Run | None:
    """The run whose `folder`/ the path lies in."""
    home = path.absolute().parent
    return Run(home.parent) if home.name == folder and is_run(home.parent) else None
