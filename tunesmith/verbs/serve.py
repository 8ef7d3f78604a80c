"""serve: a model answers over HTTP. Light to import: the command line takes its options from here."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith import console
from tunesmith.errors import SetupError, TunesmithError

if TYPE_CHECKING:
    from tunesmith.serve.limits import Limits

_HOST = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*|\[[0-9A-Fa-f:.]+\]")
ENGINES = ("auto", "transformers", "llama.cpp", "vllm")


def serve_options(parser: argparse.ArgumentParser) -> None:
    """What the verb takes."""
    add = parser.add_argument
    add("model", metavar="MODEL", help="RUN, folder, GGUF file, hub id or s3:// address")
    add("--host", default="127.0.0.1", help="address to listen on (127.0.0.1; others need --token-file)")
    add("--port", type=int, default=8000, help="8000; 0: a free one, which is printed")
    add("--token-file", type=Path, metavar="FILE", help="ask for the token in FILE (a line each)")
    add(
        "--adapter",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="another adapter on the same base, asked for as model NAME; may be repeated",
    )
    add("--engine", choices=ENGINES, default="auto", help="what runs the model (auto: as MODEL needs)")
    add(
        "--slots",
        type=_slots,
        default="auto",
        metavar="N",
        help="answers side by side (auto: as memory takes)",
    )
    add("--context", type=_from_1, metavar="TOKENS", help="longest prompt and answer together")
    add(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name that requests may call this server by; may be repeated",
    )
    add(
        "--limit",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="one of the caps in docs/serving.md; may be repeated",
    )


def serve(arguments: argparse.Namespace) -> dict[str, Any]:
    """Serves until SIGTERM or Ctrl-C."""
    _require_packages()
    # read when torch is imported: oneDNN and PyTorch each keep compiled products by shape (docs/serving.md)
    for cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(cache, "16")
    from tunesmith.serve.guard.access import Access, read_tokens
    from tunesmith.serve.models import ServedModels
    from tunesmith.serve.running.address import listen, url
    from tunesmith.serve.running.lifecycle import run
    from tunesmith.serve.state import ServeState

    access = Access(read_tokens(arguments.token_file)) if arguments.token_file is not None else None
    limits = _limits(arguments.limit)
    adapters, known_as = _adapters(arguments.adapter), _hosts(arguments.allow_host)
    sock, loopback = listen(arguments.host, arguments.port, guarded=access is not None)
    with sock:
        models = ServedModels(
            arguments.model,
            adapters,
            arguments.engine,
            arguments.runs_dir,
            slots=arguments.slots,
            context=arguments.context,
        )
        hosts = {"localhost"} | known_as
        if not loopback:
            hosts |= {socket.gethostname().lower(), socket.getfqdn().lower()}
        state = ServeState(
            models, limits, arguments.runs_dir, access=access, hosts=frozenset(hosts), loopback=loopback
        )
        address, names = url(sock), list(models.names())
        told = console.note if arguments.json else console.say

        def listening() -> None:
            told(f"{address} answers as {', '.join(names)}; loading {names[0]} (Ctrl-C ends it)")

        def ready() -> None:
            if arguments.json:
                console.say(json.dumps({"url": address, "models": names, "ready": True}, ensure_ascii=False))
            else:
                console.say(f"{names[0]} is ready: {address}")

        run(state, sock, ready, listening)
    return {"url": address}


def _require_packages() -> None:
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise SetupError(f"serve needs {error.name}", fix="pip install 'tunesmith[serve]'") from None


def _adapters(given: Sequence[str]) -> dict[str, Path]:
    adapters: dict[str, Path] = {}
    for one in given:
        name, equals, path = one.partition("=")
        if not (name and equals and path):
            raise TunesmithError(f"{one!r} is no adapter", where="--adapter", fix="--adapter NAME=PATH")
        if name in adapters:
            raise TunesmithError(f"{name!r} is given twice", where="--adapter", fix="name each once")
        adapters[name] = Path(path)
    return adapters


def _hosts(given: Sequence[str]) -> set[str]:
    """As a Host header has them, without the port."""
    for name in given:
        if not _HOST.fullmatch(name):
            raise TunesmithError(
                f"{name!r} is no name of a host",
                where="--allow-host",
                fix="the name alone, as in --allow-host models.example.org (no scheme, no port, no dot at its end)",
            )
    return {name.lower() for name in given}


def _limits(given: Sequence[str]) -> Limits:
    from tunesmith.serve.limits import Limits

    kinds = {one.name: one.type for one in dataclasses.fields(Limits)}
    values: dict[str, Any] = {}
    for one in given:
        name, _, text = one.partition("=")
        if name not in kinds:
            raise TunesmithError(f"{name!r} is no limit", where="--limit", fix=f"one of {', '.join(kinds)}")
        try:
            values[name] = int(text) if kinds[name] == "int" else float(text)
        except ValueError:
            values[name] = -1
        if not 0 < values[name] < 1 << 40:
            raise TunesmithError(
                f"{text!r} is no number above 0", where=f"--limit {name}", fix=f"{name}=NUMBER"
            )
    return Limits(**values)


def _from_1(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 on")
    return int(text)


def _slots(text: str) -> int | str:
    return text if text == "auto" else _from_1(text)
