"""A model that lies in S3, fetched into the cache: whole and checked, or not there.

    $XDG_CACHE_HOME/tunesmith/s3/HASH/NAME/       (~/.cache where XDG_CACHE_HOME is not set)

HASH stands for the address and the content that S3 tells (names, sizes, ETags): what changes there is fetched anew into
a folder of its own. Files come into a hidden folder beside it, are compared with SHA256SUMS where that lies there, and
the folder is then renamed. A process that is killed meanwhile leaves the hidden folder; the next one goes on with it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import NamedTuple

from tunesmith import console
from tunesmith.errors import AccessError, ModelError
from tunesmith.run import disk_error, sha256_file
from tunesmith.store.s3 import S3, Found

SUMS = "SHA256SUMS"
# never code, never pickles
MODEL = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model", SUMS, "README.md")
# rows have no business on a server
RUN = (
    "*.json",
    "recipe.yaml",
    "report/report.json",
    "tokenizer/*.json",
    "tokenizer/*.jinja",
    "tokenizer/tokenizer.model",
    *(f"adapter/{one}" for one in MODEL),
)
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
_AT_ONCE = 4  # files
_LINE = re.compile(r"(?P<sum>[0-9a-f]{64}) [ *](?P<name>.+)")

OnBytes = Callable[[int, int], None]
"""Hears how many bytes of how many are there."""


class _Wanted(NamedTuple):
    """What is to be fetched."""

    store: S3
    name: str  # of the folder
    files: tuple[Found, ...]

    @property
    def folder(self) -> Path:
        told = [self.store.address, *([one.name, one.size, one.etag] for one in self.files)]
        content = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]
        return cache_home() / "s3" / content / self.name


def cache_home() -> Path:
    """Where what was fetched is kept."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "tunesmith"


def fetched(address: str, on_bytes: OnBytes | None = None) -> Path:
    """The local copy of a model's folder, a run or a .gguf file in S3. AccessError, ModelError, OutOfRoom."""
    file = PurePosixPath(address).name if address.endswith(".gguf") else ""
    wanted = _file(address, file) if file else _folder(address)
    folder, total = wanted.folder, sum(one.size for one in wanted.files)
    if not folder.is_dir():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with _alone(folder):
                if not folder.is_dir():
                    _fetch(wanted, folder, on_bytes or (lambda done, of: None))
        except OSError as error:
            raise disk_error(error, folder) or error from None
    if on_bytes:
        on_bytes(total, total)
    return folder / file if file else folder


def _file(address: str, name: str) -> _Wanted:
    store = S3(address.rpartition("/")[0])
    found = store.find(_inside(name, address))
    if found is None:
        raise AccessError("there is no such object", where=address, fix=_spelling(store.address))
    beside = [one for one in map(store.find, (SUMS, "contract.json", "tokenizer.json")) if one]
    beside += [one for one in map(store.find, ("tokenizer_config.json", "special_tokens_map.json")) if one]
    return _Wanted(store, folder_name(name.removesuffix(".gguf")), tuple(sorted([found, *beside])))


def _folder(address: str) -> _Wanted:
    store = S3(address)
    all_files = {_inside(one.name, address): one for one in store.list()}
    if not all_files:
        raise AccessError("there is nothing here", where=address, fix=_spelling(address.rpartition("/")[0]))
    patterns = RUN if "recipe.yaml" in all_files else MODEL
    files = [one for name, one in all_files.items() if _matches(name, patterns)]
    pickles = [name for name in all_files if name.endswith(PICKLES)]
    if pickles and not any(one.name.endswith(".safetensors") for one in files):
        raise ModelError(
            f"the weights are a pickle ({pickles[0]}), which can run code on loading",
            where=address,
            fix="convert them to safetensors where you trust them, and upload that",
        )
    if not any(
        one.name in ("config.json", "recipe.yaml") or one.name.endswith(".safetensors") for one in files
    ):
        raise AccessError(
            "there is no model here", where=address, fix=f"{_spelling(address)}; or name a .gguf file"
        )
    return _Wanted(store, folder_name(store.prefix.rpartition("/")[2] or store.bucket), tuple(sorted(files)))


def _matches(name: str, patterns: Sequence[str]) -> bool:
    """A pattern without a slash means files of the folder itself."""
    return any(name.count("/") == one.count("/") and fnmatch(name, one) for one in patterns)


def _fetch(wanted: _Wanted, folder: Path, on_bytes: OnBytes) -> None:
    partial = folder.with_name(f".{folder.name}.part")
    partial.mkdir(exist_ok=True)
    total, here = sum(one.size for one in wanted.files), Lock()
    done = sum(min(one.size, _size(partial / one.name)) for one in wanted.files)
    of = f" (goes on at {done / total:.0%})" if done else ""
    console.note(f"fetching {wanted.store.address}: {total / 1e6:,.1f} MB{of}")
    on_bytes(done, total)
    with console.progress("fetch", total=total, done=done, unit="bytes") as bar:

        def told(count: int) -> None:
            nonlocal done
            with here:
                done += count
                bar.update(count)
                on_bytes(min(done, total), total)

        def one(found: Found) -> None:
            to = partial / found.name
            to.parent.mkdir(parents=True, exist_ok=True)
            wanted.store.download(found, to, told)

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            jobs = [pool.submit(one, found) for found in wanted.files]
            try:
                for job in jobs:
                    job.result()
            finally:
                for job in jobs:
                    job.cancel()
    _check(partial, wanted)
    partial.rename(folder)


def _check(partial: Path, wanted: _Wanted) -> None:
    """Compares with every SHA256SUMS. What differs is removed: the next try fetches it again."""
    names = {one.name for one in wanted.files}
    lists = sorted(name for name in names if PurePosixPath(name).name == SUMS)
    single = any(name.endswith(".gguf") for name in names)
    for sums in lists:
        parent = PurePosixPath(sums).parent
        for name, sum_ in _read_sums(partial / sums, wanted.store.address):
            whole = str(parent / name)
            if whole not in names:
                # of a .gguf file's neighbours only a few are fetched, and code and documents never are
                if single or not _matches(name, MODEL):
                    continue
                raise AccessError(
                    f"{whole} is missing, although {sums} lists it",
                    where=f"{wanted.store.address}/{whole}",
                    fix="upload the folder again",
                )
            if sha256_file(partial / whole) != sum_:
                (partial / whole).unlink()
                raise ModelError(
                    f"{whole} is not the file that {sums} tells: its SHA-256 differs",
                    where=f"{wanted.store.address}/{whole}",
                    fix="upload the folder again; somebody may have changed it",
                )


def _read_sums(path: Path, address: str) -> Iterator[tuple[str, str]]:
    for line in path.read_text("utf-8", "replace").splitlines():
        match = _LINE.fullmatch(line)
        if match is None:
            raise ModelError(
                f"{SUMS} has a line that is no checksum", where=address, fix="sha256sum * > SHA256SUMS"
            )
        yield _inside(match["name"], address), match["sum"]


def _inside(name: str, address: str) -> str:
    """The name, where it stays below its folder. ModelError otherwise: nothing is ever written elsewhere."""
    parts = name.split("/")
    odd = "\\" in name or not name.isprintable() or any(part in ("", ".", "..") for part in parts)
    if odd or len(name) > 500 or parts[0].startswith("~"):
        raise ModelError(
            f"{name[:80]!r} is no name of a file below this address", where=address, fix="remove that object"
        )
    return name


def folder_name(name: str) -> str:
    """The last part of an address as a folder of the cache."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".") or "model"


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() and not path.is_symlink() else 0


def _spelling(address: str) -> str:
    return f"check the spelling: aws s3 ls {address}/"


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time fetches a folder; the lock goes with the process."""
    with folder.with_name(f".{folder.name}.lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            console.note(f"another process fetches {folder.name}: waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
