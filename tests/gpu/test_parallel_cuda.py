"""Two GPUs equal one, through NCCL: `python -m pytest tests/gpu/test_parallel_cuda.py` on a machine that has two."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_project import make_project, metrics, prepare_run

from tunesmith.train import launch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]


@pytest.mark.parametrize("model", [{"dtype": "float32"}, {"dtype": "bfloat16", "quantize": "nf4"}])
def test_two_gpus_equal_one(model: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for count in ("1", "2"):
        monkeypatch.setenv(launch.COUNT, count)
        sections = {"model": model, "train": {"parallel": "ddp", "max_steps": 9, "log_every": 1}}
        recipe, run = prepare_run(make_project(tmp_path, name=f"on-{count}", **sections), tmp_path / "runs")
        launch.train(recipe, run)
        found.append([json.loads(line) for line in metrics(run.path).splitlines()])
        assert [one["passed"] for one in run.proofs() if one["name"] == "ranks_agree"] == [True] * (
            count == "2"
        )
    limit = 1e-4 if model["dtype"] == "float32" else 0.02
    for one, two in zip(*found, strict=True):
        assert one["tokens"] == two["tokens"] and one["learned_tokens"] == two["learned_tokens"]
        assert two["loss"] == pytest.approx(one["loss"], rel=limit)
        assert two["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=10 * limit)
