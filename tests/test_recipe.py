"""The recipe file: every problem at once with its line, `--set`, YAML's traps, keys that are not available yet."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith.errors import AccessError, RecipeError
from tunesmith.recipe import Recipe
from tunesmith.recipe_file import NOT_YET, dump_recipe, load_recipe

GOOD = """\
name: good
model:
  base: starter
data:
  train: rows.jsonl
train:
  learning_rate: 1e-4
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


def problems(tmp_path: Path, text: str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(tmp_path, text), overrides)
    return str(caught.value)


def test_exponents_are_numbers_and_off_is_a_word(tmp_path: Path) -> None:
    recipe = load_recipe(
        write(tmp_path, GOOD + "  notify: null\n"), ["data.system=off", "train.weight_decay=1e-2"]
    )
    assert recipe.train.learning_rate == 1e-4
    assert recipe.train.weight_decay == 0.01
    assert recipe.data.system == "off"


def test_all_problems_at_once_with_their_lines(tmp_path: Path) -> None:
    text = GOOD + "  epochs: five\n  learning_rat: 2\n  batch: 2.5\nevaluate: {decoding: {tempreture: 1}}\n"
    said = problems(tmp_path, text, "tune.rnk=8", "train.warmup=x")
    assert "6 problems" in said
    assert "line 8  train.epochs: should be a valid number, not 'five'" in said
    assert "line 9  train.learning_rat: unknown key; did you mean learning_rate?" in said
    assert "line 10  train.batch: should be a valid integer" in said
    assert "line 11  evaluate.decoding.tempreture: unknown key; did you mean temperature?" in said
    assert "--set  tune.rnk: unknown key; did you mean rank?" in said
    assert "--set  train.warmup: should be a valid number, not 'x'" in said


def test_duplicate_key_is_refused(tmp_path: Path) -> None:
    said = problems(tmp_path, GOOD + "  learning_rate: 2e-4\n")
    assert 'duplicate key "learning_rate"' in said and "line 8" in said


def test_a_missing_section_and_a_missing_key(tmp_path: Path) -> None:
    said = problems(tmp_path, "name: x\nmodel: {revision: main}\n")
    assert "model.base: is required" in said and "data: is required" in said


def test_sections_have_to_agree(tmp_path: Path) -> None:
    assert "train.patience: needs data.validation" in problems(tmp_path, GOOD, "train.patience=3")
    assert "quantised weights" in problems(tmp_path, GOOD, "tune.method=full", "model.quantize=nf4")


def test_infinity_is_no_setting(tmp_path: Path) -> None:
    for key in ("train.learning_rate", "train.epochs", "train.warmup", "tune.alpha", "train.weight_decay"):
        assert f"{key}: should be a finite number" in problems(tmp_path, GOOD, f"{key}=.inf").replace(
            "Input ", ""
        )


def test_set_has_the_types_of_the_file(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD), ["tune.target_modules=[q_proj, v_proj]", "train.max_steps=7"])
    assert recipe.tune.target_modules == ("q_proj", "v_proj")
    assert recipe.train.max_steps == 7
    assert "write section.key=value" in problems(tmp_path, GOOD, "train.max_steps")


def test_no_key_is_silently_ignored(tmp_path: Path) -> None:
    """Each key that can't be used yet says so, at its line."""
    other = {
        "data.columns": "{a: b}",
        "data.split.group": "x",
        "data.overlong": "trim_context",
        "tune.bias": "all",
    }
    other |= {
        "train.engine": "fused",
        "train.parallel": "fsdp",
        "train.trackers": "[wandb]",
        "targets": "{a: {kind: local}}",
    }
    other |= {
        "data.checks": "{phi: warn}",
        "export.gguf": "[F16]",
        "export.quantized": "[nf4]",
        "export.ollama": "{num_ctx: 1}",
    }
    other |= {"export.max_loss": "0.1", "evaluate.prompts": "[a]", "evaluate.metrics": "[a:b]"}
    for key in NOT_YET:
        value = other.get(key, "true" if NOT_YET[key] == (False,) else "x")
        assert f"{key}: " in (said := problems(tmp_path, GOOD, f"{key}={value}")), key
        assert "is not available yet in this version" in said


def test_dump_reads_back(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD), ["tune.target_modules=[q_proj]", "seed=3"])
    again = load_recipe(write(tmp_path, dump_recipe(recipe)))
    assert again == recipe and again.hash() == recipe.hash()


def test_recipes_that_ship_are_sound() -> None:
    for path in sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml")):
        assert load_recipe(path).name == path.stem


def test_every_key_is_documented() -> None:
    schema = Recipe.model_json_schema(by_alias=True)
    for name, section in [("Recipe", schema), *schema["$defs"].items()]:
        for key, field in section["properties"].items():
            assert field.get("description") or "$ref" in field, f"{name}.{key} has no description"


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(AccessError, match="there is no recipe"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(AccessError, match="is a folder"):
        load_recipe(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    with pytest.raises(RecipeError, match="not UTF-8"):
        load_recipe(tmp_path / "latin.yaml")
    with pytest.raises(RecipeError, match="not YAML"):
        load_recipe(write(tmp_path, "name: [x\n"))
    with pytest.raises(RecipeError, match="holds no recipe"):
        load_recipe(write(tmp_path, ""))


def test_control_characters_are_no_bug(tmp_path: Path) -> None:
    assert "is not YAML: unacceptable character" in problems(tmp_path, GOOD + "seed: 1\x07\n")
    assert "unacceptable character" in problems(tmp_path, GOOD, "seed=\x07")


def test_both_keys_of_a_quarrel_are_named(tmp_path: Path) -> None:
    text = GOOD.replace("train: rows.jsonl", "train: rows.jsonl\n  split: {validation: 0.1}")
    said = problems(tmp_path, text, "data.validation=ok.jsonl")
    assert "--set  data.validation and data.split.validation: give one of them" in said


def test_problems_are_told_in_words_of_the_recipe(tmp_path: Path) -> None:
    """One problem each: nothing of how the recipe is read."""
    for given, told in {
        "data.train=[{path: a, weight: 0}]": "data.train.0.weight: should be greater than 0, not 0",
        "data.train=[{path: a, hub: b}]": "data.train.0: a source has either a path or a hub id",
        "data.train=[]": "data.train: should be text or a list of at least 1, not []",
        "data.split=0.1": "data.split: should be a section with keys, not 0.1",
        "data.train=*.jsonl": "a value that begins with * has to stand in quotes: --set 'data.train=\"*.jsonl\"'",
        "name=a b": "name: should be letters, digits",
    }.items():
        said = problems(tmp_path, GOOD, given)
        assert told in said and "has 1 problem:" in said, said
