"""Models by name: one load for all names over a base, lazy, shared, told of, tried again; each name its own answers."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from tiny_project import make_project

from tunesmith.cli import main
from tunesmith.errors import AccessError, ModelError, SetupError, TunesmithError
from tunesmith.generate.protocol import Decoding, LiveRequest, TokenEvent
from tunesmith.generate.slots import SlotGenerator
from tunesmith.model import load as load_module
from tunesmith.model.tuned import load_tuned
from tunesmith.opened import model as opened_module
from tunesmith.recipe_file import load_recipe
from tunesmith.run import Run
from tunesmith.serve.models import ServedModels
from tunesmith.serve.protocol import Served, UnknownModel

PROMPTS = [list(range(60, 60 + n)) for n in (3, 9, 17)]
TOKENS = 12


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of one base, `tiny` and `other`; strong enough that base, tuned and other answer differently."""
    folder = tmp_path_factory.mktemp("served")
    strong = {"max_steps": 12, "evaluate_every": 12, "learning_rate": 0.05, "warmup": 0}
    for name, tune in (
        ("tiny", {}),
        ("other", {"rank": 2, "alpha": 16, "rslora": True, "target_modules": ["q_proj"]}),
    ):
        recipe = make_project(folder, rows=16, name=name, train=strong, tune=tune)
        assert main(["train", str(recipe), "--runs-dir", str(folder / "runs")]) == 0
    return folder / "runs"


def answer(served: Served) -> list[list[int]]:
    """Greedy answers to PROMPTS, asked side by side."""
    return written(served.live, [served.adapter] * len(PROMPTS))


def written(live: Any, adapters: Sequence[str]) -> list[list[int]]:
    ids: dict[int, list[int]] = {next(tickets): [] for _ in adapters}
    ended, left, failed = threading.Event(), set(ids), list[Exception]()

    def deliver(events: Sequence[TokenEvent]) -> None:
        for event in events:
            if event.token is not None:
                ids[event.ticket].append(event.token.id)
            if event.error is not None:
                failed.append(event.error)
            if event.end:
                left.discard(event.ticket)
        if not left:
            ended.set()

    deliverers[live] = deliver
    if live not in started:
        live.start(lambda events: deliverers[live](events))
        started.append(live)
    for ticket, adapter, prompt in zip(ids, adapters, PROMPTS, strict=True):
        live.submit(ticket, LiveRequest(prompt, TOKENS, frozenset(), adapter=adapter))
    assert ended.wait(60) and not failed
    return list(ids.values())


def of_run(served: Served) -> str | None:
    return served.run.name if served.run else None


deliverers: dict[Any, Callable[[Sequence[TokenEvent]], None]] = {}
started: list[Any] = []
tickets = count(1)


def alone(runs: Path, name: str, tuned: bool) -> list[list[int]]:
    """What predict and evaluate write."""
    recipe = load_recipe(runs / name / "recipe.yaml")
    model = load_tuned(recipe, runs / name / "adapter", opened_module_device())
    generator = SlotGenerator(model, slots=4)
    if tuned:
        made = generator.generate(PROMPTS, Decoding(TOKENS), frozenset())
        return [one.ids for one in sorted(made, key=lambda one: one.index)]
    from tunesmith.model.lora import adapters_off

    with adapters_off(model):
        made = generator.generate(PROMPTS, Decoding(TOKENS), frozenset())
        return [one.ids for one in sorted(made, key=lambda one: one.index)]


def opened_module_device() -> Any:
    from tunesmith.model.tuned import default_device

    return default_device()


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """How often weights are read."""
    loads: list[str] = []
    real = load_module.load_model

    def load(base: Any, **settings: Any) -> Any:
        loads.append(base.name)
        return real(base, **settings)

    monkeypatch.setattr(load_module, "load_model", load)
    return loads


async def all_of(models: ServedModels, *names: str) -> list[Served]:
    return list(await asyncio.gather(*(models.get(name) for name in names)))


def test_a_run_its_base_and_another_adapter(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = counted(monkeypatch)
    models = ServedModels("tiny", {"second": Path("other")}, "auto", runs, slots=8, context=64)
    assert models.names() == ("tiny", "base", "second") and not loads
    assert [one.facts["run"] for one in models.status()] == [
        "tiny",
        "tiny",
        "other",
    ]  # before anything is loaded
    assert [one.state for one in models.status()] == ["waiting"] * 3
    served = asyncio.run(all_of(models, "base", "tiny", "second", "tiny"))
    assert len(loads) == 1 and len({id(one.live) for one in served}) == 1
    assert [one.name for one in served] == ["base", "tiny", "second", "tiny"]
    by_name = {one.name: one for one in served}
    wanted = {
        "base": alone(runs, "tiny", tuned=False),
        "tiny": alone(runs, "tiny", tuned=True),
        "second": alone(runs, "other", tuned=True),
    }
    assert wanted["base"] != wanted["tiny"] != wanted["second"] != wanted["base"]
    for name, one in by_name.items():
        assert answer(one) == wanted[name]
    # all of them in one batch
    mixed = written(by_name["tiny"].live, [by_name[name].adapter for name in ("tiny", "base", "second")])
    assert mixed == [wanted["tiny"][0], wanted["base"][1], wanted["second"][2]]
    status = {one.name: one for one in models.status()}
    assert {one.state for one in status.values()} == {"ready"} and status["tiny"].done == 1
    assert status["tiny"].facts["run"] == "tiny" and status["second"].facts["run"] == "other"
    assert status["base"].facts["adapter"] is None and status["base"].facts["dtype"] == "bfloat16"
    assert [of_run(by_name[name]) for name in ("tiny", "base", "second")] == ["tiny", "tiny", "other"]
    assert by_name["tiny"].created > 1_700_000_000
    models.close()
    assert [one.state for one in models.status()] == ["waiting"] * 3


def test_mutant_base_with_the_adapter(runs: Path) -> None:
    """What the test above would say of a `base` that forgets to leave the adapter out."""
    models = ServedModels("tiny", {}, "auto", runs, slots=4, context=64)
    base = asyncio.run(models.get("base"))
    assert answer(replace(base, adapter="tiny")) != alone(runs, "tiny", tuned=False)
    models.close()


def test_one_load_for_all_who_wait(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads, go = list[int](), threading.Event()
    real = opened_module.Opened.live

    def slow(self: Any, **settings: Any) -> Any:
        loads.append(1)
        assert go.wait(60)
        return real(self, **settings)

    monkeypatch.setattr(opened_module.Opened, "live", slow)
    models = ServedModels(str(runs / "tiny"), {}, "transformers", Path("none"), slots=2, context=32)

    async def ask() -> None:
        asked = [asyncio.ensure_future(models.get(name)) for name in ("tiny", "base") * 10]
        while not loads:
            await asyncio.sleep(0.01)
        assert [one.state for one in models.status()] == ["loading", "loading"]
        asked[0].cancel()  # whoever leaves takes nothing from the others
        await asyncio.sleep(0.05)
        go.set()
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert isinstance(found[0], asyncio.CancelledError)
        assert len({id(one.live) for one in found[1:]}) == 1  # type: ignore[union-attr]

    asyncio.run(ask())
    assert loads == [1]
    models.close()


def test_a_failed_load_says_why_and_is_tried_again(runs: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "runs" / "tiny")
    shutil.copytree(runs / "tiny", run.path)
    weights = run.adapter / "adapter_model.safetensors"
    kept = weights.read_bytes()
    weights.write_bytes(kept[:1000])
    models = ServedModels("tiny", {}, "auto", tmp_path / "runs", slots=2, context=32)
    for _ in range(2):
        with pytest.raises(ModelError, match="cut short"):
            asyncio.run(models.get("tiny"))
    told = models.status()[0]
    assert told.state == "failed" and "cut short" in told.detail and str(weights) in told.detail
    weights.write_bytes(kept)
    assert asyncio.run(models.get("tiny")).name == "tiny"
    assert models.status()[0].state == "ready"
    models.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_engine_that_has_ended_is_loaded_anew(runs: Path) -> None:
    models = ServedModels("tiny", {}, "auto", runs, slots=2, context=32)
    first = asyncio.run(models.get("tiny"))
    assert asyncio.run(models.get("base")).live is first.live

    def deaf(events: Sequence[TokenEvent]) -> None:
        raise RuntimeError("nobody hears")

    first.live.start(deaf)
    first.live.submit(1, LiveRequest([5, 6], 3, frozenset()))
    end = time.monotonic() + 60
    while not first.live.closed:
        assert time.monotonic() < end
        time.sleep(0.01)

    async def both() -> list[Served]:
        return await asyncio.gather(models.get("tiny"), models.get("base"))

    again, base = asyncio.run(both())
    assert again.live is base.live is not first.live
    assert answer(again) and models.status()[0].state == "ready"
    models.close()


def test_closed_while_it_loads(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads, go, closed = threading.Event(), threading.Event(), list[str]()

    class Stub:
        def close(self) -> None:
            closed.append("closed")

        room = 8

    def slow(self: Any, **settings: Any) -> Any:
        loads.set()
        assert go.wait(60)
        return Stub()

    monkeypatch.setattr(opened_module.Opened, "live", slow)
    models = ServedModels("tiny", {}, "auto", runs)

    async def ask() -> None:
        asked = asyncio.ensure_future(models.get("tiny"))
        while not loads.is_set():
            await asyncio.sleep(0.01)
        models.close()
        go.set()
        await asked
        with pytest.raises(ModelError, match="ending"):
            await models.get("base")

    asyncio.run(ask())
    assert closed == ["closed"] and models.status()[0].state != "ready"


def test_names(runs: Path, tmp_path: Path) -> None:
    models = ServedModels("tiny", {}, "auto", runs)
    with pytest.raises(UnknownModel, match="no model 'tny'; did you mean 'tiny'"):
        asyncio.run(models.get("tny"))
    for name in ("../../etc/passwd", "tiny/../base", "", "TINY"):
        with pytest.raises(UnknownModel):
            asyncio.run(models.get(name))
    other = Path("other")
    refused: list[tuple[Callable[[], object], type[TunesmithError], str]] = [
        (lambda: ServedModels("tiny", {"tiny": other}, "auto", runs), TunesmithError, "the model's own name"),
        (lambda: ServedModels("tiny", {"base": other}, "auto", runs), TunesmithError, "the model's own name"),
        (
            lambda: ServedModels("tiny", {"../x": other}, "auto", runs),
            TunesmithError,
            "no name for an adapter",
        ),
        (
            lambda: ServedModels("tiny", {"a b": other}, "auto", runs),
            TunesmithError,
            "no name for an adapter",
        ),
        (lambda: ServedModels("tiny", {"x": Path("nothing")}, "auto", runs), AccessError, "no such adapter"),
        (lambda: ServedModels("tiny", {"x": tmp_path}, "auto", runs), ModelError, r"no adapter_config\.json"),
        (lambda: ServedModels("tiny", {}, "vlm", runs), SetupError, "did you mean 'vllm'"),
        (lambda: ServedModels("./nowhere", {}, "auto", runs), AccessError, "no such folder"),
        (lambda: ServedModels("nowhere.gguf", {}, "auto", runs), AccessError, "no such file"),
    ]
    for make, kind, words in refused:
        with pytest.raises(kind, match=words):
            make()


def test_an_adapter_of_another_base(runs: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    run, base = Run(tmp_path / "runs" / "tiny"), tmp_path / "base"
    shutil.copytree(runs / "tiny", run.path)
    shutil.copytree(runs.parent / "base", base)
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] * 1.01
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    models = ServedModels(str(base), {"x": run.path}, "auto", runs, slots=2, context=32)
    with pytest.raises(ModelError, match=r"another base than .*: the base of its run had other weights"):
        asyncio.run(models.get("x"))
    models.close()


def test_a_folder_with_adapters_over_it(runs: Path) -> None:
    base = runs.parent / "base"
    models = ServedModels(str(base), {"x": runs / "tiny" / "adapter"}, "auto", runs, slots=4, context=64)
    assert models.names() == ("base", "x")
    own, tuned = asyncio.run(all_of(models, "base", "x"))
    assert (own.max_tokens, own.run, own.adapter) == (512, None, "")
    assert answer(tuned) == alone(runs, "tiny", tuned=True) and answer(own) == alone(
        runs, "tiny", tuned=False
    )
    assert of_run(tuned) == "tiny" and tuned.max_tokens < 512
    models.close()


def test_a_run_named_base(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "tiny", tmp_path / "base")
    assert ServedModels("base", {}, "auto", tmp_path).names() == ("base", "base-base")
