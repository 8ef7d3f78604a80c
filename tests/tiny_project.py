"""A whole small project (random Llama, own tokenizer, ragged rows, recipe) and processes that train on it."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import signal
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunesmith.recipe import Recipe
    from tunesmith.run import Run

WORDS = (
    "tumour node margin stage grade biopsy lung colon left right cell small large no seen found with".split()
)
RECIPE: dict[str, dict[str, Any]] = {
    "tune": {"rank": 4, "alpha": 8, "dropout": 0.1},
    "train": {
        "epochs": 3,
        "batch": 8,
        "micro_batch": 4,
        "learning_rate": 0.01,
        "warmup": 4,
        "weight_decay": 0.01,
        "log_every": 3,
        "evaluate_every": 8,
        "save_every": 5,
    },
}


def make_project(folder: Path, rows: int = 75, name: str = "tiny", **sections: dict[str, Any]) -> Path:
    """Fills `folder` with base/, rows and recipe.yaml (JSON is YAML); returns the recipe's path."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "base").exists():
        _write_base(folder / "base")
        _write_rows(folder / "train.jsonl", rows, seed=1)
        _write_rows(folder / "validation.jsonl", 9, seed=2)
    data: dict[str, Any] = {name: str(folder / f"{name}.jsonl") for name in ("train", "validation")}
    data["max_length"] = 512
    data["checks"] = {"exact_leak": "ignore"}  # short rows of few words meet by chance
    recipe: dict[str, Any] = {
        "name": name,
        "model": {"base": str(folder / "base"), "dtype": "bfloat16"},
        "data": data,
    }
    for section, values in [*RECIPE.items(), *sections.items()]:
        recipe[section] = values if not isinstance(values, dict) else recipe.get(section, {}) | values
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps({key: _without_none(value) for key, value in recipe.items()}, indent=1))
    return path


def _without_none(value: Any) -> Any:
    return {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value


def _write_rows(path: Path, count: int, seed: int) -> None:
    draw = random.Random(seed)
    with path.open("w") as file:
        for _ in range(count):
            prompt = " ".join(draw.choices(WORDS, k=draw.randint(1, 6)))
            answer = " ".join(draw.choices(WORDS, k=draw.randint(1, 3)))
            file.write(json.dumps({"prompt": prompt, "completion": answer}) + "\n")


def _write_base(folder: Path) -> None:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM

    folder.mkdir()
    special = ["<|begin_of_text|>", "<|end_of_text|>"]
    vocabulary = {token: i for i, token in enumerate([*sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {"bos_token": special[0], "eos_token": special[1], "tokenizer_class": "PreTrainedTokenizerFast"}
        )
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=260,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=256,
        eos_token_id=257,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


def prepare_run(recipe: Path, runs: Path) -> tuple[Recipe, Run]:
    """The recipe and its run with stage prepare done, for calling `train(recipe, run)` in this process."""
    from tunesmith.data.prepare import prepare
    from tunesmith.recipe_file import load_recipe
    from tunesmith.run import Run

    loaded = load_recipe(recipe)
    run = Run(runs / loaded.name)
    if not run.data.exists():
        run.path.mkdir(parents=True)
        prepare(loaded, run)
    return loaded, run


def start_training(recipe: Path, runs: Path, mutant: str | None = None) -> BaseProcess:
    """`tunesmith train RECIPE` in a process of its own: forked from a server that has only imported things."""
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["tunesmith.train.train", "torch.utils.tensorboard", "bitsandbytes", "tunesmith.data.prepare"]
    )
    process = context.Process(target=_train, args=(str(recipe), str(runs), mutant))
    process.start()
    return process


HURT = """
import os
from tunesmith.train import checkpoint
from tunesmith.train.checkpoint import Checkpoints
from tunesmith.train.log import Log

moment, number = {moment!r}, {number}
publish, metrics = Checkpoints._publish, Log.metrics


def hurt(this):
    if this == moment:
        os.kill(os.getpid(), number)


def published(self, step, files, tensors):
    to_disk = checkpoint.write_file
    if moment == f"in the save of step {{step}}":
        checkpoint.write_file = lambda *words: (to_disk(*words), hurt(moment))[0]
    publish(self, step, files, tensors)
    hurt(f"after the save of step {{step}}")


def written(self, line):
    speed = metrics(self, line)
    hurt(f"at step {{line['step']}}")
    return speed


Checkpoints._publish, Log.metrics = published, written
"""


def hurts_itself(folder: Path, moment: str, number: int = signal.SIGKILL) -> dict[str, str]:
    """Environment in which `tunesmith train` sends itself a signal at this moment: whoever watches may look too late.

    Moments: "at step 3" (its line was logged), "in the save of step 5", "after the save of step 5".
    """
    place = folder / "hurt"
    place.mkdir(exist_ok=True)
    (place / "sitecustomize.py").write_text(HURT.format(moment=moment, number=int(number)))
    return {"PYTHONPATH": str(place)}


def train_to_end(recipe: Path, runs: Path, mutant: str | None = None) -> int | None:
    """The exit code of a training that nobody disturbs."""
    process = start_training(recipe, runs, mutant)
    process.join(600)
    return process.exitcode


def _train(recipe: str, runs: str, mutant: str | None) -> None:
    import sys

    from tunesmith.cli import main

    if mutant in MUTANTS:
        MUTANTS[mutant]()
    elif mutant:
        moment, number = mutant.split(": ")
        exec(HURT.format(moment=moment, number=int(signal.Signals[number])), {})
    with Path(runs).with_suffix(".log").open("a") as log:
        os.dup2(log.fileno(), 2)
        os.dup2(log.fileno(), 1)
        sys.exit(main(["train", recipe, "--runs-dir", runs]))


def _without_optimizer() -> None:
    from tunesmith.train.optimizer import Optimizer

    Optimizer.load = lambda self, saved: None  # type: ignore[method-assign]


def _without_cursor() -> None:
    from tunesmith.train.order import Order

    first: list[int] = []
    numbers = Order.numbers

    def restarted(self: Order, step: int) -> Any:
        """Rows from the first batch on, as a loader that was made anew would give them."""
        return numbers(self, step)

    def shifted(self: Order, step: int) -> Any:
        first.append(step)
        return restarted(self, step - first[0] + 1 if step >= first[0] else step)

    Order.numbers = shifted  # type: ignore[method-assign]


def _without_accumulators() -> None:
    from tunesmith.train.state import State

    read = State.from_json

    def forgetful(saved: Any) -> State:
        state = read(saved)
        state.loss_sum, state.loss_tokens = 0.0, 0
        return state

    State.from_json = forgetful  # type: ignore[method-assign, assignment]


MUTANTS = {
    "without optimiser state": _without_optimizer,
    "without cursor": _without_cursor,
    "without loss accumulators": _without_accumulators,
}


def metrics(run: Path) -> bytes:
    """metrics.jsonl, every byte."""
    return (run / "metrics.jsonl").read_bytes()


def adapter_sha256(run: Path) -> str:
    """Hash of the adapter's weights."""
    return hashlib.sha256((run / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()
