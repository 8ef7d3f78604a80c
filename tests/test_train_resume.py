"""Killed anywhere and resumed: the same bytes as if nothing had happened. Real processes, real SIGKILLs."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_project import MUTANTS, adapter_sha256, make_project, metrics, start_training, train_to_end

KINDS = {"bf16": {"quantize": "none"}, "nf4": {"quantize": "nf4"}}


def ends(recipe: Path, runs: Path, moment: str, number: signal.Signals = signal.SIGKILL) -> int | None:
    """Exit code of a training that gets a signal at this moment."""
    process = start_training(recipe, runs, f"{moment}: {number.name}")
    process.join(600)
    return process.exitcode


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("project")


@pytest.fixture(scope="module")
def whole(project: Path) -> Callable[[str], Path]:
    """The run of a kind that nobody disturbed."""

    def run(kind: str) -> Path:
        folder = project / "runs" / f"whole-{kind}"
        if not folder.exists():
            recipe = make_project(project, name=folder.name, model=KINDS[kind])
            assert train_to_end(recipe, project / "runs") == 0
        return folder

    return run


def assert_same(run: Path, other: Path) -> None:
    assert metrics(run) == metrics(other)
    assert adapter_sha256(run) == adapter_sha256(other)


@pytest.mark.parametrize("kind", KINDS)
def test_killed_and_resumed_equals_uninterrupted(
    kind: str, project: Path, whole: Callable[[str], Path]
) -> None:
    recipe = make_project(project, name=f"killed-{kind}", model=KINDS[kind])
    run = project / "runs" / recipe.stem
    checkpoints = run / "checkpoints"
    after_one = 0
    for moment in (
        "in the save of step 5",
        "after the save of step 5",
        "at step 12",
        "in the save of step 15",
    ):
        assert ends(recipe, run.parent, moment) == -signal.SIGKILL
        assert not moment.startswith("in ") or list(checkpoints.glob(".step-*.tmp"))
        after_one += bool(list(checkpoints.glob("step-*/MANIFEST.json")))
    assert after_one == 3
    assert train_to_end(recipe, run.parent) == 0
    assert_same(run, whole(kind))
    assert not list(checkpoints.glob(".*"))
    assert (run / "log.txt").read_text().count("(exact: yes)") == after_one


def test_a_cold_start_gives_another_adapter(project: Path, whole: Callable[[str], Path]) -> None:
    recipe = make_project(project, name="cold", seed=1)
    assert train_to_end(recipe, project / "runs") == 0
    assert adapter_sha256(project / "runs" / "cold") != adapter_sha256(whole("bf16"))


@pytest.mark.parametrize("mutant", MUTANTS)
def test_resuming_without_a_part_of_the_state_shows(
    mutant: str, project: Path, whole: Callable[[str], Path]
) -> None:
    """Each mutant forgets one thing on resume, and the comparison of the test above has to see it."""
    recipe = make_project(project, name=mutant.replace(" ", "-"))
    run = project / "runs" / recipe.stem
    assert ends(recipe, run.parent, "after the save of step 5") == -signal.SIGKILL
    assert train_to_end(recipe, run.parent, mutant) == 0
    assert metrics(run) != metrics(whole("bf16"))
    only_the_lines = mutant == "without loss accumulators"
    assert (adapter_sha256(run) == adapter_sha256(whole("bf16"))) == only_the_lines


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_checkpoints_and_leaves_with_75(
    number: signal.Signals, project: Path, whole: Callable[[str], Path]
) -> None:
    recipe = make_project(project, name=number.name.lower())
    run = project / "runs" / recipe.stem
    assert ends(recipe, run.parent, "at step 3", number) == 75
    state = json.loads((run / "state.json").read_text())
    latest = (run / "checkpoints" / "LATEST").read_text().strip()
    assert state["phase"] == "stopped" and latest == f"step-{state['step']:08d}" and state["step"] < 30
    assert train_to_end(recipe, run.parent) == 0
    assert_same(run, whole("bf16"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_random_moments(kind: str, tmp_path: Path) -> None:
    sections = {"model": KINDS[kind], "train": {"epochs": 12}}
    whole, killed = (make_project(tmp_path, name=name, **sections) for name in ("whole", "killed"))
    assert train_to_end(whole, tmp_path / "runs") == 0
    draw = random.Random(os.getpid())
    for _ in range(12):
        process = start_training(killed, tmp_path / "runs")
        time.sleep(draw.uniform(0.5, 6.0))
        process.kill()
        process.join()
    assert train_to_end(killed, tmp_path / "runs") == 0
    assert_same(tmp_path / "runs" / "killed", tmp_path / "runs" / "whole")
