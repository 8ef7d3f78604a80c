"""A run on the starter as export leaves it: adapter, merged folder, GGUF file; trained a few steps, all in fp32."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tiny_project import make_project

from tunesmith.base import resolve
from tunesmith.cli import main
from tunesmith.contract import Contract
from tunesmith.model.merge import merge_weights, read_deltas
from tunesmith.recipe_file import load_recipe
from tunesmith.run import Run


def make_exported_run(folder: Path) -> Run:
    """`folder`/runs/tiny; its base is the starter."""
    recipe = make_project(
        folder,
        rows=16,
        model={"base": "starter", "dtype": "float32"},
        train={"max_steps": 8, "evaluate_every": 8, "learning_rate": 0.02, "warmup": 0},
    )
    assert main(["train", str(recipe), "--runs-dir", str(folder / "runs")]) == 0
    run = Run(folder / "runs" / "tiny")
    base = resolve(load_recipe(run.recipe_file).model)
    run.merged.mkdir()
    merge_weights(base, read_deltas(run.adapter), run.merged, dtype=torch.float32)
    config = json.loads((base.folder / "config.json").read_text()) | {"dtype": "float32"}
    (run.merged / "config.json").write_text(json.dumps(config))
    Contract.load(run.contract_folder).save(run.merged)
    return run


def write_run_gguf(run: Run, kind: str = "F32") -> Path:
    """gguf/tiny-KIND.gguf, by llama.cpp's rules."""
    from tunesmith.export.gguf.write import write_gguf

    run.gguf.mkdir(exist_ok=True)
    path = run.gguf / f"{run.name}-{kind}.gguf"
    write_gguf(run.merged, path, kind, Contract.load(run.contract_folder))
    return path
