"""The Hugging Face hub as a place where models lie."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tunesmith.errors import AccessError
from tunesmith.store.secrets import secret

MODEL_FILES = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "tokenizer.model", "*.py")


def fetch(
    repository: str, revision: str | None, cache_dir: str | None, patterns: Sequence[str]
) -> tuple[Path, str]:
    """Folder and commit of a model repository, downloaded or from the cache. AccessError says what to do next."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where = f"model.base: {repository}"
    try:
        folder = Path(
            snapshot_download(
                repository,
                revision=revision,
                cache_dir=cache_dir,
                allow_patterns=list(patterns),
                token=secret("HF_TOKEN"),  # None: the login that `hf auth login` keeps
            )
        )
    except GatedRepoError:
        raise AccessError(
            f"{repository} is gated: its owner wants you to accept the licence first",
            where=where,
            fix="accept it on the model's page, then: hf auth login (or set HF_TOKEN); "
            f"then: tunesmith pull {repository}",
        ) from None
    except RevisionNotFoundError:
        raise AccessError(f"{repository} has no revision {revision!r}", where="model.revision") from None
    except (RepositoryNotFoundError, HFValidationError):
        raise AccessError(
            f"there is no folder and no hub model {repository!r} (or it is private)",
            where=where,
            fix="check the spelling; for a private one: hf auth login, or set HF_TOKEN",
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise AccessError(
            f"{repository} can't be reached and is not in the cache: {str(error).splitlines()[0]}",
            where=where,
            fix="check the network, or give the path of a local folder",
        ) from None
    return folder, folder.name
