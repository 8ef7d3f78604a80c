"""A server before its model is there: fetched from S3 at the first request, told in bytes, tried again."""

# ruff: noqa: F401, F811  (fixtures)
from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from exported_run import make_exported_run
from s3_models import RUNS, aws, cached, folder, server, slow, upload

from tunesmith.contract import Contract
from tunesmith.errors import AccessError
from tunesmith.generate.protocol import LiveGenerator
from tunesmith.opened.model import Opened
from tunesmith.serve.models import ServedModels
from tunesmith.serve.protocol import ModelStatus


def test_a_run_is_served_from_s3(aws: Any, tmp_path: Path) -> None:
    """Its adapter live on the base; neither rows nor checkpoints come here."""
    run = make_exported_run(tmp_path / "project")
    run.write_json(run.report / "report.json", {"decoding": {"max_tokens": 77}})
    address = upload(aws, run.path, "team/tiny")
    models = ServedModels(address, {}, "auto", tmp_path / "runs", slots=2, context=64)
    assert models.names() == ("tiny",) and models.status()[0].state == "waiting" and not cached(tmp_path)
    served = asyncio.run(models.get("tiny"))
    assert models.names() == ("tiny", "base") and served.max_tokens == 77
    assert served.run is not None and served.run.name == "tiny" and served.run.path != run.path
    there = {path.relative_to(served.run.path).parts[0] for path in served.run.path.rglob("*")}
    assert "adapter" in there and not there & {"data", "checkpoints", "merged", "log.txt", "predictions"}
    assert served.contract.sha256 == Contract.load(run.contract_folder).sha256
    models.close()


def test_progress_is_told_while_it_loads(
    aws: Any, folder: Path, tmp_path: Path, slow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow.pause = 0.1
    address = upload(aws, folder)
    monkeypatch.setenv("AWS_ENDPOINT_URL", slow.address)
    models = ServedModels(address, {}, "auto", RUNS, slots=2, context=64)
    loading, live = threading.Event(), Opened.live

    def looked_at(*args: Any, **more: Any) -> LiveGenerator:
        """Small weights are loaded between two looks."""
        assert loading.wait(60)
        return live(*args, **more)

    monkeypatch.setattr(Opened, "live", looked_at)

    async def watch() -> list[ModelStatus]:
        asked, seen = asyncio.ensure_future(models.get("mine")), list[ModelStatus]()
        while not asked.done():
            seen += models.status()
            if seen[-1].detail.startswith("loading "):
                loading.set()
            await asyncio.sleep(0.02)
        await asked
        return seen

    seen = asyncio.run(watch())
    fetching = [one for one in seen if one.detail.startswith("fetching: ")]
    assert {one.state for one in seen} <= {"waiting", "loading", "ready"} and len(
        {one.done for one in fetching}
    ) > 3
    assert [one.done for one in fetching] == sorted(one.done for one in fetching) and "MB" in fetching[
        0
    ].detail
    told = [one.detail.partition(" ")[0] for one in seen]
    assert told.index("loading") > told.index("fetching:") and models.status()[0].state == "ready"
    models.close()


def test_a_failed_fetch_is_tried_again(aws: Any, folder: Path, tmp_path: Path) -> None:
    address = upload(aws, folder, without="tokenizer.json")
    models = ServedModels(address, {}, "auto", RUNS, slots=2, context=64)
    with pytest.raises(AccessError, match=r"tokenizer\.json is missing"):
        asyncio.run(models.get("mine"))
    assert models.status()[0].state == "failed" and "is missing" in models.status()[0].detail
    upload(aws, folder)
    assert asyncio.run(models.get("mine")).name == "mine"
    models.close()
