"""Doors and keys: tokens by name (never their value), AWS credentials, and whether the hub answers."""

from __future__ import annotations

import os
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path

from tunesmith.store.secrets import secret
from tunesmith.verbs.doctor.finding import Finding

TIMEOUT = 2.0  # seconds for the hub's answer
_AWS_VARIABLES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_PROFILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)


def tokens() -> list[Finding]:
    """Which keys are there, by the name of their place."""
    return [hub_token(), aws(os.environ, Path.home())]


def hub_token() -> Finding:
    """The hub's token: environment, `.env`, or the login that `hf auth login` keeps."""
    from huggingface_hub import get_token

    if os.environ.get("HF_TOKEN"):
        return Finding("hub token", "ok", "HF_TOKEN (environment)")
    if secret("HF_TOKEN"):
        return Finding("hub token", "ok", "HF_TOKEN (.env)")
    if get_token():
        return Finding("hub token", "ok", "the login of hf auth login")
    words = "none: gated models such as Llama can't be downloaded; the starter and open models can"
    return Finding("hub token", "warn", words, "hf auth login")


def aws(environment: Mapping[str, str], home: Path) -> Finding:
    """AWS credentials; only S3 and runs on AWS need them."""
    names = [name for name in _AWS_VARIABLES if environment.get(name)]
    if not names and secret("AWS_ACCESS_KEY_ID"):
        names = ["AWS_ACCESS_KEY_ID in .env"]
    file = Path(environment.get("AWS_SHARED_CREDENTIALS_FILE") or home / ".aws" / "credentials")
    for path in (file, Path(environment.get("AWS_CONFIG_FILE") or home / ".aws" / "config")):
        if path.is_file():
            names.append(str(path))
    if names:
        return Finding("AWS", "ok", ", ".join(names))
    words = "no credentials (only S3 and runs on AWS need them)"
    return Finding("AWS", "ok", words, "aws configure, or export AWS_PROFILE=NAME")


def ask_hub() -> Callable[[], Finding]:
    """Asks in the background; what is returned waits for the answer, never much longer than TIMEOUT."""
    answers: list[Finding] = []
    asking = threading.Thread(target=lambda: answers.append(hub()), daemon=True)
    asking.start()

    def answer() -> Finding:
        from huggingface_hub.constants import ENDPOINT

        asking.join(TIMEOUT + 0.5)  # looking up a name has no timeout of its own
        return answers[0] if answers else _silent(ENDPOINT, f"{TIMEOUT:.0f} s")

    return answer


def hub() -> Finding:
    """Whether the hub answers; without it local folders, the cache and the starter still work."""
    from huggingface_hub.constants import ENDPOINT

    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        words = "HF_HUB_OFFLINE is set: only models in the cache, folders and the starter"
        return Finding("hub", "warn", words, "unset HF_HUB_OFFLINE")
    try:
        request = urllib.request.Request(ENDPOINT, method="HEAD")
        with urllib.request.urlopen(request, timeout=TIMEOUT):
            pass
    except urllib.error.HTTPError:
        pass  # it answers
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        return _silent(ENDPOINT, str(reason))
    return Finding("hub", "ok", f"{ENDPOINT} answers")


def _silent(address: str, why: str) -> Finding:
    words = f"{address} does not answer ({why}): only the cache, folders and the starter"
    fix = "check the network and HTTPS_PROXY; or copy the model here and name its folder in model.base"
    return Finding("hub", "warn", words, fix)
