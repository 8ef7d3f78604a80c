"""Ranks in processes of a test, forked from one that has only imported things; and what can be wrong with them."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tiny_project import make_project, metrics, prepare_run

from tunesmith.engine.plan import evenly
from tunesmith.recipe import Recipe
from tunesmith.run import Run
from tunesmith.train.parallel import Ranks

FEW = {"max_steps": 6, "log_every": 1, "evaluate_every": 3, "save_every": 3, "keep": 9}


def prepared(
    project: Path, name: str, dtype: str = "float32", tune: dict[str, Any] | None = None, **settings: Any
) -> tuple[Recipe, Run]:
    sections = {"model": {"dtype": "float32"}, "tune": tune or {}, "train": FEW | settings}
    recipe, run = prepare_run(make_project(project, name=name, **sections), project / "runs")
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"dtype": dtype})}), run


def lines(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in metrics(run.path).splitlines()]


def newest(run: Path) -> int:
    return max(int(path.name[5:]) for path in (run / "checkpoints").glob("step-*"))


def together(recipe: Recipe, run: Run, size: int, mutant: str | None = None) -> list[BaseException | None]:
    """Trains with `size` ranks; what each ended with. The processes are forked from one that only imported things."""
    import torch.distributed as dist

    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tunesmith.train.train", "torch.utils.tensorboard", "bitsandbytes"])
    results = context.Queue()
    work = [
        context.Process(target=_work, args=(recipe, run, rank, size, store.port, mutant, results))
        for rank in range(size)
    ]
    for process in work:
        process.start()
    ended = dict(results.get(timeout=600) for _ in work)
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

    step.evenly = lambda lengths, ranks: [*evenly(lengths, ranks)[:-1], []]  # type: ignore[attr-defined]


def _twice(rank: int, size: int) -> None:
    """A row goes to two ranks."""
    from tunesmith.train import step

    step.evenly = lambda lengths, ranks: [[*evenly(lengths, ranks)[0], 0], *evenly(lengths, ranks)[1:]]  # type: ignore[attr-defined]


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

    parallel._PATIENCE = timedelta(seconds=10)
    step = Stepper.step

    def hanging(self: Stepper) -> None:
        if rank and self.state.step == 3:
            time.sleep(25)
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
