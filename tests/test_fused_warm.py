"""The small model that kernels are compiled on: of the base's kind and widths, and nothing else is touched by it."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from test_load import base_of
from tiny_models import KINDS, write_tiny

from tunesmith.engine.fused import FusedEngine
from tunesmith.engine.fused_fits import why_not
from tunesmith.engine.fused_warm import small_model, take_steps, wanted, warm_up
from tunesmith.model.load import load_model
from tunesmith.model.lora import adapters, add_lora
from tunesmith.recipe import Recipe

CPU = torch.device("cpu")


def recipe_for(base: Path, how: str) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "warm",
            "model": {"base": str(base), "quantize": how},
            "data": {"train": "starter"},
            "tune": {"rank": 4, "dropout": 0.1},
        }
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["none", "nf4"])
def test_it_trains_on_the_fused_engine_and_has_the_bases_widths(kind: str, how: str, tmp_path: Path) -> None:
    write_tiny(tmp_path, kind)
    recipe, base = recipe_for(tmp_path, how), base_of(tmp_path)
    drawn, kind_before = torch.random.get_rng_state(), torch.get_default_dtype()
    small = small_model(recipe, base, CPU)
    assert torch.equal(torch.random.get_rng_state(), drawn) and torch.get_default_dtype() == kind_before
    real = load_model(base, dtype="bfloat16", quantize=how)
    add_lora(real, recipe.tune, recipe.seed)
    assert why_not(recipe, small) is None
    told = {name: (tensor.shape, tensor.dtype) for name, tensor in real.state_dict().items()}
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in small.state_dict().items()} == told
    engine = FusedEngine(small, recipe)
    take_steps(engine)
    gradient = engine.parameters.grad
    assert bool(torch.isfinite(gradient).all()) and bool(gradient.any())
    assert len(adapters(small)) == len(adapters(real))


def test_a_wide_vocabulary_shrinks_and_stays_as_divisible(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    base = base_of(tmp_path)
    for wide, small in ((96, 96), (128256, 8192), (151_669, 8197)):
        base.config["vocab_size"] = wide
        model = small_model(recipe_for(tmp_path, "none"), base, CPU)
        assert model.get_input_embeddings().weight.shape == (small, 64)
        assert wide % 16 == small % 16


def test_targets_of_single_layers_need_not_be_among_the_two(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    recipe, base = recipe_for(tmp_path, "none"), base_of(tmp_path)
    targets = ["model.layers.20.self_attn.q_proj", "down_proj"]
    recipe = recipe.model_copy(update={"tune": recipe.tune.model_copy(update={"target_modules": targets})})
    found = {adapter.name.rpartition(".")[2] for adapter in adapters(small_model(recipe, base, CPU))}
    assert found == {"q_proj", "down_proj"}


def test_a_cpu_has_nothing_to_compile(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    before = threading.active_count()
    with warm_up(recipe_for(tmp_path, "nf4"), base_of(tmp_path), CPU):
        assert threading.active_count() == before


def test_only_for_what_the_fused_engine_may_train(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    base, recipe = base_of(tmp_path), recipe_for(tmp_path, "nf4")
    assert wanted(recipe, base)
    for section, key, value in (("train", "engine", "reference"), ("tune", "method", "full")):
        other = getattr(recipe, section).model_copy(update={key: value})
        assert not wanted(recipe.model_copy(update={section: other}), base)
    for kinds in (["Gemma3ForConditionalGeneration"], [], None):
        base.config["architectures"] = kinds
        assert not wanted(recipe, base)
