"""The models that a server answers with: names, and the engines behind them, each loaded once when it is first asked.

A run whose adapter is live has its own name (tuned) and `base`, the same weights without it; every --adapter NAME=PATH
is one more over those weights. Any other model has its own name. With llama.cpp each adapter is an engine of its own,
whose weights are the same pages of the same file.
"""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from tunesmith import console
from tunesmith.errors import ModelError, TunesmithError
from tunesmith.generate.protocol import LiveGenerator
from tunesmith.lookup import nearest
from tunesmith.opened.adapters import Adapter, find_adapter
from tunesmith.opened.model import Opened, chosen_engine, open_model
from tunesmith.opened.place import Place, address_name, find_model
from tunesmith.run import Run
from tunesmith.serve.protocol import ModelStatus, Served, UnknownModel
from tunesmith.store.hub import watched

VLLM_SLOTS = 64  # answers side by side in vLLM, where nobody says
BASE = "base"  # the name of a run's base without its adapter
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

State = Literal["waiting", "loading", "ready", "failed"]


@dataclass
class _Loading:
    """An engine, or how far it is. What is read from any thread is replaced, never changed in place."""

    names: tuple[str, ...]
    load: Callable[[_Loading], dict[str, Served]]
    state: State = "waiting"
    detail: str = ""
    done: float = 0.0
    served: Mapping[str, Served] = field(default_factory=dict)
    future: Future[Mapping[str, Served]] | None = None
    was_there: bool = False
    """It has been loaded before."""

    def told(self, done: int, total: int) -> None:
        """Bytes that have come."""
        self.done = done / total if total else 1.0
        self.detail = f"fetching: {done / 1e6:,.1f} of {total / 1e6:,.1f} MB"

    @property
    def lives(self) -> list[LiveGenerator]:
        return list({id(one.live): one.live for one in self.served.values()}.values())

    @property
    def ready(self) -> bool:
        """It is there, and no engine has ended by an error."""
        return self.state == "ready" and not any(live.closed for live in self.lives)


class ServedModels:
    """See `serve.protocol.Models`. TunesmithError where names, paths or the engine can't be meant; loads nothing yet.

    slots: answers side by side; context: most tokens of a prompt and its answer (None: 8,192, or what the model has).
    """

    def __init__(
        self,
        model: str,
        adapters: Mapping[str, Path] | None = None,
        engine: str = "auto",
        runs_dir: Path = Path("runs"),
        *,
        slots: int | Literal["auto"] = "auto",
        context: int | None = None,
    ) -> None:
        self._asked, self._runs_dir, self._slots, self._context = model, runs_dir, slots, context
        self._engine = engine
        chosen_engine(engine)
        self._lock = threading.Lock()
        self._closed = False
        place = find_model(model, runs_dir, fetch=False)  # None: in S3, told when it is here
        self._adapters = [find_adapter(name, path, runs_dir) for name, path in (adapters or {}).items()]
        own = (address_name(model),) if place is None else self._own_names(place)
        run = place.run if place else None
        self._facts: dict[str, dict[str, Any]] = {name: {"run": self._run_name(run)} for name in own if run}
        self._facts |= {one.name: {"run": self._run_name(one.run)} for one in self._adapters if one.run}
        self._require_names(own)
        self._loads = self._plan(place, own)

    # ---- of the protocol

    def names(self) -> tuple[str, ...]:
        """The tuned model first, then its base, then each adapter."""
        return tuple(name for load in self._loads for name in load.names)

    def status(self) -> tuple[ModelStatus, ...]:
        """Of each, in the order of `names`."""
        return tuple(
            ModelStatus(name, load.state, load.detail, load.done, dict(self._facts.get(name, {})))
            for load in self._loads
            for name in load.names
        )

    async def get(self, name: str) -> Served:
        """The model of this name, loaded where it is not there (any more); who asks meanwhile waits for the same load.

        UnknownModel; whatever the load failed with, after which the next `get` tries again.
        """
        load = self._of(name)
        if load.ready and (found := load.served.get(name)) is not None:
            return found
        # a client that goes does not end the load that others wait for
        served = await asyncio.shield(asyncio.wrap_future(self._started(load)))
        return served[name] if name in served else await self.get(name)

    def close(self) -> None:
        """Ends all engines; what is being loaded is ended when it is there."""
        with self._lock:
            self._closed = True
            lives = [live for load in self._loads for live in load.lives]
            for load in self._loads:
                load.served, load.state = {}, "waiting"
        for live in lives:
            live.close()

    # ---- loading

    def _of(self, name: str) -> _Loading:
        for load in self._loads:
            if name in load.names:
                return load
        guess = nearest(name, self.names())
        raise UnknownModel(
            f"there is no model {name!r}" + (f"; did you mean {guess!r}?" if guess else ""),
            where="model",
            fix=f"one of: {', '.join(self.names())}",
        )

    def _started(self, load: _Loading) -> Future[Mapping[str, Served]]:
        with self._lock:
            if self._closed:
                raise ModelError("the server is ending", fix="ask again when it is back")
            if load.future is None or (load.future.done() and not load.ready):
                ended, load.served = load.lives, {}
                load.future = Future()
                load.future.set_running_or_notify_cancel()
                load.state, load.detail, load.done = "loading", "looking for its files", 0.0
                # a daemon: a download never holds the end of the process back
                threading.Thread(
                    target=self._work, args=(load, load.future, ended), name="load", daemon=True
                ).start()
            return load.future

    def _work(
        self, load: _Loading, future: Future[Mapping[str, Served]], ended: Sequence[LiveGenerator]
    ) -> None:
        """`ended`: engines of an earlier load, whose memory is needed."""
        began = time.monotonic()
        try:
            for live in ended:
                live.close()
            served = load.load(load)
        except BaseException as error:
            with self._lock:
                load.state, load.detail = "failed", _why(error)
            # a first model that was never there ends the server, which says so itself
            if load.was_there or load is not self._loads[0]:
                console.warn(f"{load.names[0]} can't be loaded: {load.detail}")
            if isinstance(error, TunesmithError):
                error = error.with_traceback(None)  # its frames would hold the weights
            future.set_exception(error)
            return
        with self._lock:
            load.served = served
            lives = load.lives if self._closed else []
            if not self._closed:
                load.names = tuple(served)
                load.state, load.detail, load.done, load.was_there = "ready", "", 1.0, True
        for live in lives:  # the server has ended meanwhile
            live.close()
        console.note(f"{', '.join(served)}: loaded in {time.monotonic() - began:.1f} s")
        future.set_result(served)

    # ---- what is loaded

    def _plan(self, place: Place | None, own: tuple[str, ...]) -> list[_Loading]:
        """One engine for all names; one for each adapter where llama.cpp answers."""
        names = own + tuple(one.name for one in self._adapters)
        if not self._is_llama(place):
            return [_Loading(names, self._load_all)]
        alone = [_Loading(own, lambda load: self._load_llama(load, None))]
        return alone + [
            _Loading((one.name,), lambda load, one=one: self._load_llama(load, one))  # type: ignore[misc]
            for one in self._adapters
        ]

    def _is_llama(self, place: Place | None) -> bool:
        asked_for_file = self._asked.endswith(".gguf") if place is None else place.kind == "gguf"
        return self._engine == "llama.cpp" or (self._engine == "auto" and asked_for_file)

    def _open(self, load: _Loading) -> Opened:
        place = find_model(self._asked, self._runs_dir, load.told)
        assert place is not None
        with watched(place.asked if place.kind == "hub" and place.foreign else "", load.told):
            opened = open_model(place, self._engine, self._runs_dir)
        load.done, load.detail = 1.0, f"loading {opened.bytes() / 1e6:,.0f} MB of weights"
        return opened

    def _load_all(self, load: _Loading) -> dict[str, Served]:
        opened = self._open(load)
        folders = {one.name: one.folder(opened) for one in self._adapters}
        if opened.engine == "vllm":
            live: LiveGenerator = self._vllm(load, opened, folders)
        else:
            live = opened.live(slots=self._slots, context=self._context, adapters=folders)
        own = self._own_names(opened.place)
        self._require_names(own)
        tuned = _served(opened, live)
        served = {own[0]: replace(tuned, name=own[0], adapter=opened.name if opened.adapter else "")}
        if len(own) > 1:
            served[own[1]] = replace(tuned, name=own[1])
        for one in self._adapters:
            served[one.name] = _of_adapter(one, opened, tuned)
        self._facts = {name: self._told(one, opened) for name, one in served.items()}
        return served

    def _load_llama(self, load: _Loading, adapter: Adapter | None) -> dict[str, Served]:
        opened = self._open(load)
        folders = {adapter.name: adapter.file()} if adapter else {}
        live = opened.live(slots=self._slots, context=self._context, adapters=folders)
        made = _served(opened, live)
        if adapter is not None:
            made = replace(_of_adapter(adapter, opened, made), adapter="")  # it is always on in this engine
        else:
            made = replace(made, name=load.names[0])
        self._facts = self._facts | {made.name: self._told(made, opened)}
        return {made.name: made}

    def _vllm(self, load: _Loading, opened: Opened, folders: Mapping[str, Path]) -> LiveGenerator:
        from tunesmith.serve.vllm.engine import LiveVllm

        assert opened.base is not None
        if opened.quantize != "none" and "quantization_config" not in opened.base.config:
            raise ModelError(
                f"vLLM would answer from the base itself, not from its {opened.quantize} image that was trained on",
                where="--engine vllm",
                fix=f"serve {opened.place.path / 'merged'}, or --engine transformers",
            )

        def told(line: str) -> None:
            load.detail = line

        own = {opened.name: opened.adapter} if opened.adapter else {}
        return LiveVllm.launch(
            opened.base.folder,
            context=opened.served_context(self._context),
            slots=VLLM_SLOTS if self._slots == "auto" else self._slots,
            dtype=opened.dtype,
            adapters={**own, **folders},
            told=told,
        )

    def _own_names(self, place: Place) -> tuple[str, ...]:
        """Of a run with an adapter two: itself, and its base."""
        if place.kind != "run" or self._is_llama(place):
            return (place.name,)
        live = place.run is not None and (place.run.adapter / "adapter_config.json").is_file()
        base = BASE if place.name != BASE else f"{place.name}-{BASE}"
        return (place.name, base) if live else (place.name,)

    def _require_names(self, own: tuple[str, ...]) -> None:
        for one in self._adapters:
            if not _NAME.fullmatch(one.name):
                raise TunesmithError(
                    f"{one.name!r} is no name for an adapter",
                    where="--adapter",
                    fix="letters, digits, dots, dashes and underscores, at most 64",
                )
            if one.name in own:
                raise TunesmithError(
                    f"{one.name!r} is the model's own name", where="--adapter", fix="give the adapter another"
                )

    def _run_name(self, run: Run | None) -> str | None:
        """Its name under --runs-dir, else its path."""
        if run is None:
            return None
        known = (self._runs_dir / run.name).resolve() == run.path.resolve()
        return run.name if known else str(run.path.resolve())

    def _told(self, served: Served, opened: Opened) -> dict[str, Any]:
        """What /v1/models and the pages say of it."""
        return {
            "engine": served.engine,
            "base": opened.base.name if opened.base else None,
            "revision": opened.base.revision if opened.base else None,
            "adapter": served.adapter or None,
            "run": self._run_name(served.run),
            "quantize": None if opened.base is None else opened.quantize,
            "dtype": opened.dtype,
            "context": served.live.room,
            "created": served.created,
        }


def _served(opened: Opened, live: LiveGenerator) -> Served:
    decoding = opened.decoding
    return Served(
        name=opened.name,
        contract=opened.contract,
        live=live,
        engine=opened.engine,
        max_tokens=decoding.max_tokens,
        temperature=decoding.temperature,
        top_p=decoding.top_p,
        schema=opened.schema(),
        run=opened.run,
        created=opened.created(),
    )


def _of_adapter(adapter: Adapter, opened: Opened, own: Served) -> Served:
    """Another adapter over the same engine, decoded as its own run measured."""
    made = replace(own, name=adapter.name, adapter=adapter.name, contract=adapter.contract(opened))
    found = adapter.measured()
    if found is None:
        return replace(made, run=None, schema=None)
    decoding = found.decoding
    return replace(
        made,
        run=adapter.run,
        schema=found.schema,
        max_tokens=decoding.max_tokens,
        temperature=decoding.temperature,
        top_p=decoding.top_p,
    )


def _why(error: BaseException) -> str:
    if isinstance(error, TunesmithError):
        return error.what + (f" ({error.where})" if error.where else "")
    return f"{type(error).__name__}: {error}"
