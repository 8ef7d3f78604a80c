"""The Hugging Face hub as a place where models and data sets lie."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path
from threading import Event, Thread
from typing import cast

from tunesmith.errors import AccessError, OutOfRoom
from tunesmith.store.secrets import secret

MODEL_FILES = (
    "*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "tokenizer.model", "*.py",
    "README.md", "LICEN[CS]E*", "NOTICE*", "USE_POLICY*",  # what a card has to hand on
)  # fmt: skip


def fetch(
    repository: str, revision: str | None, cache_dir: str | None, patterns: Sequence[str]
) -> tuple[Path, str]:
    """Folder and commit of a model repository, downloaded or from the cache. AccessError says what to do next."""
    from huggingface_hub import snapshot_download

    with _told(repository, revision, "model", "model.base", "model.revision"):
        folder = Path(
            snapshot_download(
                repository,
                revision=revision,
                cache_dir=cache_dir,
                allow_patterns=list(patterns),
                token=secret("HF_TOKEN"),  # None: the login that `hf auth login` keeps
            )
        )
    return folder, folder.name


@contextmanager
def watched(repository: str, on_bytes: Callable[[int, int], None]) -> Iterator[None]:
    """Within, `on_bytes` hears twice a second how many bytes of how many of a model that is fetched are there.

    Nothing is told of an empty name, nor where the hub does not say how much there is.
    """
    total = _model_bytes(repository) if repository else 0
    if not total:
        yield
        return
    from huggingface_hub import constants

    blobs = Path(constants.HF_HUB_CACHE) / ("models--" + repository.replace("/", "--")) / "blobs"
    ended = Event()

    def watch() -> None:
        while not ended.wait(0.5):
            on_bytes(min(total, _folder_bytes(blobs)), total)

    thread = Thread(target=watch, name="fetched bytes", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _model_bytes(repository: str) -> int:
    """Of the files that `fetch` wants; 0 where the hub can't be asked."""
    from huggingface_hub import HfApi

    try:
        info = HfApi(token=secret("HF_TOKEN")).model_info(repository, files_metadata=True, timeout=10)
    except Exception:  # the fetch itself says what is wrong
        return 0
    return sum(
        one.size or 0
        for one in info.siblings or ()
        if any(fnmatch(one.rfilename, pattern) for pattern in MODEL_FILES)
    )


def _folder_bytes(folder: Path) -> int:
    total = 0
    for path in folder.glob("*"):
        with suppress(OSError):  # renamed meanwhile
            total += path.stat().st_size
    return total


@lru_cache(maxsize=64)
def dataset_files(repository: str, revision: str | None, where: str) -> tuple[tuple[str, ...], str]:
    """Names of all files of a data set, and its commit; where the hub can't be reached, of those in the cache.

    `where` is the recipe's key. AccessError says what to do next. Asked once a process.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    # the HTTP library's own, whichever the hub's library stands on
    http_error = cast(type[Exception], HfHubHTTPError.__mro__[1])
    with _told(repository, revision, "data set", f"{where}.hub", f"{where}.revision"):
        try:
            info = HfApi(token=secret("HF_TOKEN")).dataset_info(repository, revision=revision, timeout=30)
        except (OSError, http_error) as error:
            response = getattr(error, "response", None) if isinstance(error, HfHubHTTPError) else None
            if response is not None and response.status_code < 500:
                raise
            cached = _cached(repository, revision)
            if cached is None:
                raise OSError(str(error) or type(error).__name__) from error
            return cached
        return tuple(one.rfilename for one in info.siblings or ()), str(info.sha)


def fetch_dataset(
    repository: str, revision: str | None, commit: str, files: Sequence[str], where: str
) -> list[Path]:
    """These files of a data set at a commit, downloaded or from the cache."""
    from huggingface_hub import hf_hub_download

    with _told(repository, commit, "data set", f"{where}.hub", f"{where}.revision"):
        paths = [
            Path(
                hf_hub_download(
                    repository, name, repo_type="dataset", revision=commit, token=secret("HF_TOKEN")
                )
            )
            for name in files
        ]
        if revision != commit:  # the cache's own way to remember what a branch or tag stood for
            ref = _cache(repository) / "refs" / (revision or "main")
            ref.parent.mkdir(parents=True, exist_ok=True)
            ref.write_text(commit, "utf-8")
    return paths


def _cache(repository: str) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / ("datasets--" + repository.replace("/", "--"))


def _cached(repository: str, revision: str | None) -> tuple[tuple[str, ...], str] | None:
    """Files of a data set that lie in the cache, and their commit."""
    home = _cache(repository)
    ref = home / "refs" / (revision or "main")
    commit = ref.read_text("utf-8").strip() if ref.is_file() else revision or ""
    folder = home / "snapshots" / commit
    if not commit or not folder.is_dir():
        return None
    return tuple(
        sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    ), commit


@contextmanager
def _told(repository: str, revision: str | None, kind: str, where: str, revision_key: str) -> Iterator[None]:
    """The hub's errors as AccessErrors that say what to do next."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    of_model = kind == "model"
    try:
        yield
    except GatedRepoError:
        again = f"tunesmith pull {repository}" if of_model else "the same command again"
        raise AccessError(
            f"{repository} is gated: its owner wants you to accept the licence first",
            where=f"{where}: {repository}",
            fix=f"accept it on the {kind}'s page, then: hf auth login (or set HF_TOKEN); then: {again}",
        ) from None
    except RevisionNotFoundError:
        raise AccessError(f"{repository} has no revision {revision!r}", where=revision_key) from None
    except (RepositoryNotFoundError, HFValidationError):
        raise AccessError(
            f"there is no {'folder and no hub model' if of_model else 'hub data set'} {repository!r} "
            "(or it is private)",
            where=f"{where}: {repository}",
            fix="check the spelling; for a private one: hf auth login, or set HF_TOKEN",
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        if error.errno == errno.ENOSPC:
            raise OutOfRoom(
                f"no room on the disk for {repository}",
                where=f"{where}: {repository}",
                fix="free some, or set HF_HOME to a folder on a larger disk",
            ) from None
        raise AccessError(
            f"{repository} can't be reached and is not in the cache: {str(error).splitlines()[0]}",
            where=f"{where}: {repository}",
            fix="check the network, or give the path of a local " + ("folder" if of_model else "file"),
        ) from None
