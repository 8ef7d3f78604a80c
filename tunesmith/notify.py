"""How a run ends is written into its state.json, and told to a webhook where the recipe names one (train.notify).

The message says name, stage, exit code and headline; never a row's text, a path or the address itself. A webhook that
hangs or refuses costs the run ten seconds and a warning at most.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

from tunesmith import console
from tunesmith.errors import SetupError, TunesmithError
from tunesmith.run import Run
from tunesmith.store.secrets import secret

PATIENCE = 10.0  # seconds for the webhook, all in all
_SILENT = "the webhook doesn't answer"


def require(name: str | None) -> None:
    """SetupError where the variable is missing or holds no http(s) address."""
    if name is not None:
        _address(name)


@contextmanager
def told(run: Run, name: str | None) -> Iterator[None]:
    """While the run works. `name`: of the variable that holds the webhook's address; None: nobody is told."""
    run.write_state(ended=None)
    try:
        yield
    except BaseException as error:
        code = _exit_code(error)
        ended = {"exit": code, "phase": stage_of(run.read_json(run.state_file)), "error": _words(error)}
        with suppress(TunesmithError, OSError):  # the disk may be what it failed for
            run.write_state(ended=ended)
        if name is not None:
            _tell(run, name, code, type(error).__name__)
        raise
    if name is not None:
        _tell(run, name, 0, None)


def _words(error: BaseException) -> str:
    return (
        str(error)
        if isinstance(error, TunesmithError)
        else f"{type(error).__name__}: {error}".removesuffix(": ")
    )


def stage_of(state: Mapping[str, Any]) -> str:
    """The stage that a state.json speaks of: running, done last, or (stopped) the one that a signal cut short."""
    phase = str(state.get("phase") or "prepare").removesuffix(" done")
    return "train" if phase == "stopped" else phase  # only training stops in good order


def _exit_code(error: BaseException) -> int:
    """As the command line will give it."""
    if isinstance(error, TunesmithError):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return 75
    return 2 if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" else 1


def _tell(run: Run, name: str, code: int, error: str | None) -> None:
    with suppress(TunesmithError, OSError, ValueError):  # a report that can't be read is not worth the notice
        message = _message(run, code, error)
        problem = _post(_address(name), message)
        if problem:
            console.warn(f"nobody was told: {problem} ({name})")


def _message(run: Run, code: int, error: str | None) -> dict[str, Any]:
    """`text` is what chat services show."""
    phase = stage_of(run.read_json(run.state_file))
    headline = run.read_json(run.report / "report.json").get("headline")
    word = {0: "finished", 75: "stopped; the same command goes on"}.get(code, "failed")
    text = f"{run.name}: {word} ({phase}, exit {code}{f', {error}' if error else ''})"
    if headline and code == 0:
        base, tuned = headline["base"], headline["tuned"]
        text += f". {headline['metric']}: base {base:.3f}, tuned {tuned:.3f} (n = {headline['n']})"
    return {"text": text, "run": run.name, "phase": phase, "exit": code, "headline": headline}


def _address(name: str) -> str:
    address = secret(name)
    if address is None:
        raise SetupError(
            f"the environment variable {name} is not set",
            where="train.notify",
            fix=f"export {name}=https://…, write it into .env, or leave train.notify out",
        )
    try:
        parts = urlsplit(address)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        sound = False
    if not sound:
        raise SetupError(
            f"{name} holds no http(s) address", where="train.notify", fix=f"export {name}=https://…"
        )
    return address


def _post(address: str, message: Mapping[str, Any]) -> str | None:
    """What went wrong, in words without the address; None: it arrived. In a thread, since a timeout of a socket
    begins anew with each byte."""
    said: list[str | None] = []
    thread = threading.Thread(target=lambda: said.append(_send(address, message)), daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return said[0] if said else _SILENT


def _send(address: str, message: Mapping[str, Any]) -> str | None:
    import urllib.error
    import urllib.request
    from http.client import HTTPException

    class _Stay(urllib.request.HTTPRedirectHandler):
        """An address that moved is not followed: it is a secret, and so is where it leads."""

        def redirect_request(self, *_: Any) -> None:
            return None

    request = urllib.request.Request(
        address, json.dumps(message).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    try:
        with urllib.request.build_opener(_Stay).open(request, timeout=PATIENCE) as answer:
            answer.read(1024)
    except urllib.error.HTTPError as error:
        with error:
            return f"the webhook answers {error.code}"
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            return _SILENT
        words = getattr(reason, "strerror", None) or type(reason).__name__
        return f"the webhook can't be reached: {words}"
    return None
