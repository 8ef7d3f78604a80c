"""Several ranks give what one process gives: real processes that meet through gloo, on a tiny Llama."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_project import _train, adapter_sha256, make_project, metrics, prepare_run

from tunesmith.errors import NotFinite, ProofFailed, SetupError
from tunesmith.recipe import Recipe
from tunesmith.rows import Rows
from tunesmith.run import Run
from tunesmith.train import launch
from tunesmith.train.order import Order
from tunesmith.train.parallel import PeerLost, Ranks, shares
from tunesmith.train.train import train

FEW = {"max_steps": 6, "log_every": 1, "evaluate_every": 3, "save_every": 3, "keep": 9}
linux = pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("project")


def prepared(
    project: Path, name: str, dtype: str = "float32", tune: dict[str, Any] | None = None, **settings: Any
) -> tuple[Recipe, Run]:
    sections = {"model": {"dtype": "float32"}, "tune": tune or {}, "train": FEW | settings}
    recipe, run = prepare_run(make_project(project, name=name, **sections), project / "runs")
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"dtype": dtype})}), run


# ---- ranks in processes of this test


def together(recipe: Recipe, run: Run, size: int, mutant: str | None = None) -> list[BaseException | None]:
    """Trains with `size` ranks; what each ended with. The processes are forked from one that only imported things."""
    import torch.distributed as dist

    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tunesmith.train.rank", "torch.utils.tensorboard", "bitsandbytes"])
    results = context.Queue()
    work = [
        context.Process(target=_work, args=(recipe, run, rank, size, store.port, mutant, results))
        for rank in range(size)
    ]
    for process in work:
        process.start()
    ended = dict(results.get(timeout=120) for _ in work)
    for process in work:
        process.join(10)
    return [ended[rank] for rank in range(size)]


def _work(
    recipe: Recipe, run: Run, rank: int, size: int, port: int, mutant: str | None, results: Any
) -> None:
    from tunesmith.train.rank import work

    if mutant:
        MUTANTS[mutant](rank, size)
    try:
        work(recipe, run, rank, size, port)
    except Exception as error:
        results.put((rank, error))
    else:
        results.put((rank, None))
    results.close()
    results.join_thread()
    os._exit(0)


def _mean_of_means(rank: int, size: int) -> None:
    """Each rank divides by its own tokens, and the mean is taken: what most data parallel code does."""
    from tunesmith.train.step import Stepper

    gradients = Stepper._gradients

    def own(self: Stepper, step: int, batches: Any, learned: int, losses: Any) -> Any:
        return gradients(self, step, batches, size * sum(one.learned_tokens for one in batches), losses)

    Stepper._gradients = own  # type: ignore[method-assign]


def _averaged(rank: int, size: int) -> None:
    """The mean of the gradients instead of their sum."""
    add = Ranks.add

    def mean(self: Ranks, *tensors: torch.Tensor) -> None:
        add(self, *tensors)
        for one in tensors:
            if one.numel() > 1000:
                one.div_(size)

    Ranks.add = mean  # type: ignore[method-assign]


def _left_out(rank: int, size: int) -> None:
    """One rank's share goes missing."""
    from tunesmith.train import step

    step.shares = lambda lengths, ranks: [*shares(lengths, ranks)[:-1], []]  # type: ignore[attr-defined]


def _twice(rank: int, size: int) -> None:
    """A row goes to two ranks."""
    from tunesmith.train import step

    step.shares = lambda lengths, ranks: [[*shares(lengths, ranks)[0], 0], *shares(lengths, ranks)[1:]]  # type: ignore[attr-defined]


def _not_summed(rank: int, size: int) -> None:
    """Each rank goes on with its own gradient."""
    add = Ranks.add

    def without(self: Ranks, *tensors: torch.Tensor) -> None:
        add(self, *(one for one in tensors if one.numel() < 1000))

    Ranks.add = without  # type: ignore[method-assign]


def _one_bit(rank: int, size: int) -> None:
    """One rank's weights differ in the last bit of one number."""
    from tunesmith.train.optimizer import Optimizer

    step = Optimizer.step

    def wrong(self: Optimizer, rate: float) -> None:
        step(self, rate)
        if rank:
            part = self.parts[0][0].data.view(torch.int32)
            part[0] ^= 1

    Optimizer.step = wrong  # type: ignore[method-assign]


def _nan_on_rank_1(rank: int, size: int) -> None:
    """Not a fault of ours: the loss of rank 1's second micro-batch of step 4 is not a number."""
    from tunesmith.engine.reference import ReferenceEngine

    step, seen = ReferenceEngine.step, []

    def spoilt(self: ReferenceEngine, batch: Any, scale: float) -> Any:
        sums = step(self, batch, scale)
        seen.extend([batch] if rank == 1 and batch.step == 4 else [])
        return sums._replace(loss=sums.loss * float("nan")) if len(seen) == 2 else sums

    ReferenceEngine.step = spoilt  # type: ignore[method-assign]


def _hangs(rank: int, size: int) -> None:
    """Rank 1 says nothing any more from step 4 on."""
    from datetime import timedelta

    from tunesmith.train import parallel
    from tunesmith.train.step import Stepper

    parallel._PATIENCE = timedelta(seconds=2)
    step = Stepper.step

    def hanging(self: Stepper) -> None:
        if rank and self.state.step == 3:
            time.sleep(6)
        step(self)

    Stepper.step = hanging  # type: ignore[method-assign]


def _large_scale(rank: int, size: int) -> None:
    from tunesmith.train import scaling

    scaling.FIRST = 2.0**34


MUTANTS: dict[str, Callable[[int, int], None]] = {
    "mean of means": _mean_of_means,
    "averaged": _averaged,
    "left out": _left_out,
    "twice": _twice,
    "not summed": _not_summed,
    "one bit": _one_bit,
    "nan on rank 1": _nan_on_rank_1,
    "large scale": _large_scale,
    "hangs": _hangs,
}


def lines(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in metrics(run.path).splitlines()]


def distance(run: Run, other: Run) -> float:
    """The largest relative difference of a loss, a validation loss or a gradient norm, and of the last weights."""
    found = []
    for ours, theirs in zip(lines(run), lines(other), strict=True):
        assert (ours["tokens"], ours["learned_tokens"]) == (theirs["tokens"], theirs["learned_tokens"])
        figures = [key for key in ("loss", "validation_loss", "gradient_norm") if theirs[key] is not None]
        found += [abs(ours[key] / theirs[key] - 1) for key in figures]
    weights = [load_file(one.checkpoints / "step-00000006" / "weights.safetensors") for one in (run, other)]
    flat = [torch.cat([tensor.flatten().double() for _, tensor in sorted(one.items())]) for one in weights]
    return max(*found, float((flat[0] - flat[1]).norm() / flat[1].norm()))


@pytest.fixture(scope="module")
def alone(project: Path) -> Callable[[str], Run]:
    """The same run in one process."""

    def make(dtype: str = "float64", **settings: Any) -> Run:
        recipe, run = prepared(
            project, "-".join(["alone", dtype, *map(str, settings.values())]), dtype, **settings
        )
        if not run.metrics_file.exists():
            train(recipe, run)
        return run

    return make


def test_a_share_has_every_row_once_and_about_the_same_tokens() -> None:
    draw = random.Random(4)
    for _ in range(300):
        lengths = [draw.randint(1, 4000) for _ in range(draw.randint(1, 40))]
        ranks = draw.randint(1, 9)
        made = shares(lengths, ranks)
        assert len(made) == ranks and sorted(i for share in made for i in share) == list(range(len(lengths)))
        loads = [sum(lengths[i] for i in share) for share in made]
        assert max(loads) - min(loads) <= max(lengths)
        assert made == shares(list(lengths), ranks)
    assert shares([7] * 16, 2) == [list(range(0, 16, 2)), list(range(1, 16, 2))]
    assert shares([5, 9], 3) == [[1], [0], []]


def test_two_ranks_equal_one_process(project: Path, alone: Callable[..., Run]) -> None:
    """In fp64, where nothing but the order of sums is left: 1e-12, against 1e-3 and more for each mutant below."""
    recipe, run = prepared(project, "two", "float64")
    assert together(recipe, run, 2) == [None, None]
    assert distance(run, alone()) < 1e-11
    (proof,) = (one for one in run.proofs() if one["name"] == "ranks_agree")
    assert proof["passed"] and proof["figure"] == 0


def test_two_ranks_equal_one_process_in_fp32(project: Path, alone: Callable[..., Run]) -> None:
    recipe, run = prepared(project, "two-fp32")
    assert together(recipe, run, 2) == [None, None]
    assert distance(run, alone("float32")) < 1e-5


def test_more_ranks_than_rows_in_a_step(project: Path, alone: Callable[..., Run]) -> None:
    recipe, run = prepared(project, "three", "float64", batch=2)
    assert together(recipe, run, 3) == [None] * 3
    assert distance(run, alone("float64", batch=2)) < 1e-11


@pytest.mark.parametrize("mutant", ["mean of means", "averaged", "left out", "twice"])
def test_a_wrong_sum_shows(mutant: str, project: Path, alone: Callable[..., Run]) -> None:
    recipe, run = prepared(project, mutant.replace(" ", "-"), "float64")
    assert together(recipe, run, 2, mutant) == [None, None]
    assert distance(run, alone()) > 1e-4


@pytest.mark.parametrize("mutant", ["not summed", "one bit"])
def test_ranks_that_drift_apart_are_found_at_the_next_checkpoint(mutant: str, project: Path) -> None:
    recipe, run = prepared(project, mutant.replace(" ", "-"))
    first = together(recipe, run, 2, mutant)[0]
    assert isinstance(first, ProofFailed) and "ranks_agree" in first.what
    assert not list(run.checkpoints.glob("step-*"))


def test_a_loss_that_is_not_a_number_is_told_alike_by_all(project: Path) -> None:
    """Whoever's micro-batch it was: its rows are named, and no other's."""
    recipe, run = prepared(project, "nan", micro_batch=2)
    first, second = together(recipe, run, 2, "nan on rank 1")
    assert isinstance(first, NotFinite) and str(first) == str(second)
    rows = Rows.open(run.data, "train")
    order = Order(len(rows), batch=8, seed=recipe.seed, epochs=3, max_steps=6)
    lengths = rows.lengths[order.numbers(4)].tolist()
    own = order.numbers(4)[shares(lengths, 2)[1]][2:4]
    named = ", ".join(f"{rows.example(n).id} ({rows.lengths[n]} tokens)" for n in own)
    assert "the loss of step 4 is not finite" in str(first) and first.where == f"rows {named}"


def test_nobody_waits_for_ever(project: Path) -> None:
    recipe, run = prepared(project, "hangs")
    begin = time.monotonic()
    first = together(recipe, run, 2, "hangs")[0]
    assert isinstance(first, PeerLost) and first.exit_code == 75 and time.monotonic() - begin < 60
    assert newest(run.path) == 3


def test_an_overflow_in_float16_is_one_for_all_ranks(project: Path, alone: Callable[..., Run]) -> None:
    """A rank that did a step again by itself would wait for the others for ever, and end up with other weights."""
    recipe, run = prepared(project, "fp16", "float16")
    assert together(recipe, run, 2, "large scale") == [None, None]
    saved = json.loads((run.checkpoints / "step-00000006" / "state.json").read_text())
    assert 1.0 <= saved["loss_scale"] < 2.0**34 and saved["step"] == 6
    assert [one["passed"] for one in run.proofs() if one["name"] == "ranks_agree"] == [True]
    assert lines(run)[-1]["loss"] == pytest.approx(lines(alone("float32"))[-1]["loss"], rel=5e-3)


def test_the_validation_loss_is_the_same_bits_for_every_number_of_ranks(
    project: Path, alone: Callable[..., Run]
) -> None:
    """With a rate that moves no weight; nine rows, four at a time: the last round has ranks without rows."""
    adapter = str(alone("float32").adapter)
    losses = set()
    for size in (1, 2, 3):
        recipe, run = prepared(
            project, f"still-{size}", tune={"from_adapter": adapter}, learning_rate=1e-30, max_steps=3
        )
        if size == 1:
            train(recipe, run)
        else:
            assert together(recipe, run, size) == [None] * size
        losses.add(lines(run)[-1]["validation_loss"])
    assert len(losses) == 1


def test_a_checkpoint_serves_any_number_of_ranks(project: Path, alone: Callable[..., Run]) -> None:
    recipe, run = prepared(project, "fewer")
    assert together(recipe, run, 2) == [None, None]
    shutil.rmtree(run.checkpoints / "step-00000006")
    shutil.rmtree(run.adapter)
    train(recipe, run)
    saved = json.loads((run.checkpoints / "step-00000006" / "state.json").read_text())
    assert saved["resumes"][0]["step"] == 3 and "ranks was 2, is 1" in saved["resumes"][0]["reasons"]
    assert distance(run, alone("float32")) < 1e-5


# ---- as a user starts them


def command(project: Path, name: str, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> list[str]:
    monkeypatch.setenv(launch.COUNT, "2")
    recipe = make_project(
        project, name=name, model={"dtype": "float32"}, train={"parallel": "ddp", **settings}
    )
    return ["train", str(recipe), "--runs-dir", str(project / "runs")]


def start(recipe: Path, runs: Path) -> BaseProcess:
    """`tunesmith train RECIPE` as `start_training` starts it, on two ranks."""
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=_with_two_ranks, args=(str(recipe), str(runs)))
    process.start()
    return process


def _with_two_ranks(recipe: str, runs: str) -> None:
    os.environ[launch.COUNT] = "2"
    _train(recipe, runs, None)


def ranks_of(run: Path) -> dict[int, int]:
    """Process ids by rank."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_text().split("\0")
        except OSError:
            continue
        if "tunesmith.train.rank" in words and str(run) in words:
            found[int(words[-4])] = int(path.parent.name)
    return found


def until(happened: Callable[[], Any], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.01)


@linux
def test_stopped_a_rank_killed_all_killed_and_resumed(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"epochs": 16, "save_every": 20, "evaluate_every": 40}
    whole = prepare_run(Path(command(project, "whole", monkeypatch, **settings)[1]), project / "runs")
    assert together(*whole, 2) == [None, None]
    recipe = Path(command(project, "hurt", monkeypatch, **settings)[1])
    run, runs = project / "runs" / "hurt", project / "runs"

    def started(steps: int) -> Any:
        process = start(recipe, runs)
        until(lambda: len(list((run / "checkpoints").glob("step-*"))) and newest(run) >= steps)
        assert process.pid is not None
        return process

    process = started(20)
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    state = json.loads((run / "state.json").read_text())
    assert process.exitcode == 75 and state["phase"] == "stopped" and state["step"] == newest(run) < 160
    assert (run / "log.txt").read_text().count("SIGTERM: finishing this step") == 1
    assert (run / "log.txt").read_text().count("train.parallel: ddp: 2 ranks") == 1

    process = started(newest(run) + 1)
    os.kill(ranks_of(run)[1], signal.SIGKILL)
    begin = time.monotonic()
    process.join(60)
    assert process.exitcode == 75 and time.monotonic() - begin < 15 and not ranks_of(run)
    assert (
        "rank 1 of 2 was ended by SIGKILL" in json.loads((run / "state.json").read_text())["ended"]["error"]
    )

    process = started(newest(run) + 1)
    process.kill()  # the ranks see their parent go: the run's lock went with it
    until(lambda: not ranks_of(run), 10)
    process = start(recipe, runs)
    process.join(60)
    assert process.exitcode == 0
    saved = json.loads((run / "checkpoints" / f"step-{newest(run):08d}" / "state.json").read_text())
    assert [resume["exact"] for resume in saved["resumes"]] == [True] * 3
    assert metrics(run) == metrics(runs / "whole") and adapter_sha256(run) == adapter_sha256(runs / "whole")


def newest(run: Path) -> int:
    return max(int(path.name[5:]) for path in (run / "checkpoints").glob("step-*"))


SPOILT = """
import sys
import torch
from tunesmith.engine.reference import ReferenceEngine

step = ReferenceEngine.step


def spoilt(self, batch, scale):
    if batch.step >= 12 and sys.argv[3:4] == ["1"]:
        raise {error}
    return step(self, batch, scale)


ReferenceEngine.step = spoilt
"""


def test_a_rank_without_memory_is_told_once_and_resumable(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from tunesmith.cli import main

    (tmp_path / "sitecustomize.py").write_text(SPOILT.format(error="torch.OutOfMemoryError('none left')"))
    arguments = command(project, "memory", monkeypatch)
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        assert main(arguments) == 75
    heard = capfd.readouterr().err
    assert heard.count("out of memory") == 1 and "where: rank 1, step 12, micro-batch 1 of 1" in heard
    assert "Traceback" not in heard
    assert newest(project / "runs" / "memory") == 10


def test_a_bug_in_a_rank_keeps_its_traceback(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunesmith.cli import main

    (tmp_path / "sitecustomize.py").write_text(SPOILT.format(error="TypeError('a bug')"))
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RuntimeError, match=r"(?s)rank 1 of 2 failed:.*in spoilt.*TypeError: a bug"):
        main(command(project, "bug", monkeypatch))


def test_one_device_trains_alone(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe, run = prepared(project, "single", parallel="ddp")
    if not torch.cuda.is_available():
        monkeypatch.delenv(launch.COUNT, raising=False)
        launch.train(recipe, run)
        assert "there is one device here, so it trains alone" in capfd.readouterr().err
    for wrong in ("0", "two", "100000"):
        monkeypatch.setenv(launch.COUNT, wrong)
        with pytest.raises(SetupError, match=f"{launch.COUNT}={wrong}"):
            launch.count()
    assert math.isfinite(lines(run)[-1]["loss"])
