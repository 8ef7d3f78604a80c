"""The self-test's proofs in order, on one base and eight of the recipe's rows, in a folder that is thrown away."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from tunesmith.base import Base, resolve
from tunesmith.contract import Contract, Encoded
from tunesmith.data.prepare import prepare
from tunesmith.engine.protocol import Engine
from tunesmith.export.measure import folder_model, logits, merged_in_memory, proof_rows
from tunesmith.export.proofs import merged_equals_fp32_merge
from tunesmith.model.merge import Source, merge_weights, merged_type, read_deltas, stored_types
from tunesmith.proof import Proof
from tunesmith.recipe import Recipe
from tunesmith.rows import Rows, write_rows
from tunesmith.run import Run
from tunesmith.selftest import golden, lesson
from tunesmith.selftest.packing import packed_trains_as_unpacked
from tunesmith.train import adapter, environment, proofs
from tunesmith.train.build import build_model, choose_engine
from tunesmith.train.faults import room

_MERGE = ("merged_equals_fp32_merge",)
_SEVERAL = ("packed_equals_unpacked", "packed_loss", "packed_gradient", "accumulation_exact")
MERGED_BELOW = 1 << 29  # numbers in a base that is merged as well: seconds, and 1 GiB on disk


class LeftOut(NamedTuple):
    """Proofs that are not made here."""

    names: tuple[str, ...]
    why: str


def prove(recipe: Recipe, folder: Path) -> Iterator[Proof | LeftOut]:
    """Each proof as it is made. Raises what a run would raise: rows, access, memory, a loss that is no number."""
    run = Run(folder / recipe.name)
    run.path.mkdir()
    prepare(recipe, run)
    contract, base = Contract.load(run.contract_folder), resolve(recipe.model)
    yield golden.tokenizer_agrees(contract, base.tokenizer_folder)
    yield golden.saved_tokenizer_agrees(contract)
    rows = eight_rows(run)
    # what is dropped can't be repeated by heart; nothing else of the recipe changes
    plain = recipe.model_copy(update={"tune": recipe.tune.model_copy(update={"dropout": 0.0})})
    with room(lambda: "the self-test", resumable=lambda: False):
        device = environment.choose_device()
        environment.set_up(deterministic=recipe.train.deterministic, threads=None)
        environment.hold_to(recipe.train.memory, device)
        try:
            model = build_model(plain, base, device)
            yield from _trained(plain, run, base, model, choose_engine(plain, model), contract, rows)
            small = sum(stored_types(base).values()) < MERGED_BELOW
            if recipe.tune.method == "lora" and small:
                del model
                gc.collect()
                yield merged_reloads(plain, run, base, rows, device)
            elif recipe.tune.method == "lora":
                yield LeftOut(_MERGE, "export makes it; it takes minutes on a base of this size")
            else:
                yield LeftOut(_MERGE, "tune.method: full has no adapter to merge")
        finally:
            environment.release(device)


def eight_rows(run: Run) -> Rows:
    """Eight of the run's training rows as a split of their own."""
    train = Rows.open(run.data, "train")
    picked = [
        (train.example(n), (train.ids(n).tolist(), train.learned(n).tolist())) for n in lesson.pick(train)
    ]
    write_rows(run.data, "eight", ((example, Encoded(*pair)) for example, pair in picked))
    return Rows.open(run.data, "eight")


def _trained(
    recipe: Recipe,
    run: Run,
    base: Base,
    model: PreTrainedModel,
    engine: Engine,
    contract: Contract,
    rows: Rows,
) -> Iterator[Proof | LeftOut]:
    dtype: torch.dtype = getattr(torch, recipe.model.dtype)
    plan = engine.plan(rows.lengths)
    engine.use(plan)
    numbers = proofs.sample(rows, range(len(rows)))
    if len(numbers) > 1:
        yield proofs.packed_equals_unpacked(engine, rows, numbers, dtype)
        yield from packed_trains_as_unpacked(engine, rows, numbers, dtype)
        yield proofs.accumulation_is_exact(engine, rows, numbers, dtype)
    else:
        yield LeftOut(_SEVERAL, "they need two rows, and there is one")
    yield lesson.learned_by_heart(recipe, model, engine, plan, rows)
    adapter.write_adapter(recipe, run, base, model, engine.parameters, {})
    if recipe.tune.method == "lora":
        yield proofs.adapter_has_effect(engine, model, rows, numbers)
    else:
        yield LeftOut(("adapter_has_effect",), "tune.method: full has no adapter")
    yield proofs.adapter_reloads(
        engine, rows, numbers, lambda: adapter.read_adapter(run, model, engine.parameters)
    )
    wanted = lesson.golds(contract, rows)
    if wanted:
        # the generator reads the model where it lies
        engine.use(replace(plan, images=0, outer_on_host=False))
        yield from lesson.answers_repeat(model, contract, wanted)
    else:
        yield LeftOut(("answers_stop", "answers_repeat"), "plain text has no answers")


def merged_reloads(recipe: Recipe, run: Run, base: Base, rows: Rows, device: torch.device) -> Proof:
    """The adapter merged into files and loaded again, against the same merge in memory: export's own proof."""
    trained_in: torch.dtype = getattr(torch, recipe.model.dtype)
    dtype, quantize = merged_type(base, trained_in), recipe.model.quantize
    source: Source = "original" if quantize == "none" else "dequantized"
    run.merged.mkdir()
    merge_weights(
        base,
        read_deltas(run.adapter),
        run.merged,
        dtype=dtype,
        source=source,
        quantize=quantize,
        trained_in=trained_in,
        device=device,
    )
    (run.merged / "config.json").write_text(json.dumps(unquantized(base.config)), "utf-8")
    compared = proof_rows(rows, range(len(rows)))
    reloaded = logits(folder_model(run.merged, trained_in, device), compared)
    in_memory = merged_in_memory(
        base,
        run.adapter,
        dtype=dtype,
        source=source,
        quantize=quantize,
        trained_in=trained_in,
        device=device,
    )
    return merged_equals_fp32_merge(
        reloaded, logits(in_memory, compared), logits(in_memory, compared, singly=True)
    )


def unquantized(config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json of a merged folder: its weights are dense."""
    return {key: value for key, value in config.items() if key != "quantization_config"}
