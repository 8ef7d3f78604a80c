"""What MODEL means, and what is refused: wherever it lies, it opens with its Contract and what its run measured."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from exported_run import make_exported_run, write_run_gguf

from tunesmith import starter
from tunesmith.base import resolve
from tunesmith.contract import Contract
from tunesmith.errors import AccessError, ModelError, RunChanged, SetupError, TunesmithError
from tunesmith.opened.adapter_base import require_own_base
from tunesmith.opened.adapters import find_adapter
from tunesmith.opened.model import LONGEST, Opened, open_model
from tunesmith.opened.place import find_model
from tunesmith.recipe import Model
from tunesmith.run import Run
from tunesmith.view.scored import run_decoding


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_exported_run(tmp_path_factory.mktemp("exported"))


@pytest.fixture
def run(exported: Run, tmp_path: Path) -> Run:
    """A copy to be spoiled."""
    shutil.copytree(exported.path, tmp_path / "runs" / "tiny")
    return Run(tmp_path / "runs" / "tiny")


def opened(asked: object, runs: Path = Path("no-runs"), engine: str = "auto") -> Opened:
    place = find_model(str(asked), runs)
    assert place is not None
    return open_model(place, engine, runs)


def test_all_ways_to_name_a_run(exported: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = exported.path.parent
    for asked in (exported.path, "tiny", "latest", exported.adapter):
        found = opened(asked, runs)
        assert (found.name, found.engine, found.adapter) == (
            "tiny",
            "transformers",
            exported.path / "adapter",
        )
        assert found.contract.sha256 == Contract.load(exported.contract_folder).sha256
        assert found.recipe is not None and found.decoding == run_decoding(found.recipe, exported)
        assert (found.quantize, found.dtype) == ("none", "float32")
    monkeypatch.chdir(exported.path)
    assert opened(".", runs).name == "tiny" and opened("merged", runs).name == "tiny-merged"


def test_a_merged_folder_answers_as_its_run(exported: Run) -> None:
    found, of_run = opened(exported.merged), opened(exported.path)
    assert (found.name, found.adapter, found.run and found.run.name) == ("tiny-merged", None, "tiny")
    assert found.decoding == of_run.decoding and found.decoding.max_tokens != LONGEST
    assert found.contract.sha256 == of_run.contract.sha256 and found.dtype == "float32"


def test_a_context_beyond_the_model_is_refused(exported: Run) -> None:
    found = opened(exported.path / "merged")
    most = found.context()
    with pytest.raises(TunesmithError, match=f"{most:,} positions"):
        found.live(slots=1, context=most + 1, adapters={})
    found.live(slots=1, context=most, adapters={}).close()


def test_a_folder_of_no_run(exported: Run, tmp_path: Path) -> None:
    shutil.copytree(exported.merged, tmp_path / "copied")
    found = opened(tmp_path / "copied")
    assert (found.name, found.run, found.decoding.max_tokens) == ("copied", None, LONGEST)
    assert found.contract.sha256 == opened(exported.merged).contract.sha256
    base = opened("starter")
    assert base.base is not None and base.base.folder == starter.base_folder() and base.name == "starter"


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_quantised_folder_of_a_run(kind: Any, run: Run) -> None:
    """Loaded as it is stored, never quantised again."""
    import torch

    from tunesmith.export.quantized import quantization_config, write_quantized
    from tunesmith.model.weights import Int8, Nf4

    folder = run.quantized / kind
    folder.mkdir(parents=True)
    write_quantized(run.merged, folder, kind, dtype=torch.bfloat16)
    config = json.loads((run.merged / "config.json").read_text())
    config |= {"dtype": "bfloat16", "quantization_config": quantization_config(kind, torch.bfloat16)}
    (folder / "config.json").write_text(json.dumps(config))
    Contract.load(run.contract_folder).save(folder)
    found = opened(folder)
    assert (found.name, found.quantize, found.run and found.run.name) == (f"tiny-{kind}", kind, "tiny")
    assert found.decoding == opened(run.path).decoding
    weight = found.load().get_submodule("model.layers.0.self_attn.q_proj").weight
    assert isinstance(weight, Nf4 if kind == "nf4" else Int8)


def test_a_gguf_file_of_a_run(run: Run, llama_cpp: Any) -> None:
    file = write_run_gguf(run)
    for asked, engine in ((file, "auto"), (run.path, "llama.cpp")):
        found = opened(asked, engine=engine)
        assert (found.name, found.engine, found.base) == ("tiny-F32", "llama.cpp", None)
        assert found.contract.sha256 == Contract.load(run.contract_folder).sha256
        assert found.decoding == opened(run.path).decoding
    shutil.copy(file, run.gguf / "tiny-F16.gguf")
    with pytest.raises(ModelError, match=r"several GGUF files: tiny-F16\.gguf, tiny-F32\.gguf"):
        opened(run.path, engine="llama.cpp")
    with pytest.raises(ModelError, match="holds GGUF files"):
        opened(run.gguf)


def test_a_gguf_file_of_another_base(run: Run, tmp_path: Path, llama_cpp: Any) -> None:
    """Put into a run's folder, where its Contract would be taken for it."""
    from tunesmith.export.gguf.write import write_gguf

    other = tmp_path / "other"
    shutil.copytree(run.merged, other)
    tokenizer = other / "tokenizer.json"
    vocabulary = json.loads(tokenizer.read_text())
    first, second = list(vocabulary["model"]["vocab"])[300:302]
    ids = vocabulary["model"]["vocab"]
    ids[first], ids[second] = ids[second], ids[first]
    tokenizer.write_text(json.dumps(vocabulary, ensure_ascii=False))
    (other / "contract.json").unlink()
    run.gguf.mkdir()
    write_gguf(other, run.gguf / "tiny-F16.gguf", "F16", Contract.make(other))
    with pytest.raises(ModelError, match="not the one of its run: id 30"):
        opened(run.gguf / "tiny-F16.gguf")


def _other_tokenizer(run: Run) -> Path:
    tokenizer = run.merged / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"the"', '"thy"'))
    return run.merged


def _own_tokenizer_lost(run: Run) -> Path:
    (run.merged / "tokenizer.json").unlink()
    return run.merged


def _contract_lost(run: Run) -> Path:
    (run.merged / "contract.json").unlink()
    return run.merged


def _smaller_model(run: Run) -> Path:
    config = json.loads((run.merged / "config.json").read_text())
    (run.merged / "config.json").write_text(json.dumps(config | {"vocab_size": 700}))
    return run.merged


def _pickle(run: Run) -> Path:
    (run.merged / "model.safetensors").rename(run.merged / "pytorch_model.bin")
    return run.merged


def _own_code(run: Run) -> Path:
    config = json.loads((run.merged / "config.json").read_text())
    (run.merged / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "x.Y"}}))
    return run.merged


def _half(run: Run) -> Path:
    weights = run.merged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    return run.merged


def _shard_elsewhere(run: Run) -> Path:
    index = {"weight_map": {"model.norm.weight": "../../../secret.safetensors"}}
    (run.merged / "model.safetensors.index.json").write_text(json.dumps(index))
    return run.merged


def _untrained(run: Run) -> Path:
    shutil.rmtree(run.adapter)
    return run.path


def _base_changed(run: Run) -> Path:
    lock = json.loads(run.lock_file.read_text())
    lock["rows"]["base"] = "0" * 64
    run.lock_file.write_text(json.dumps(lock))
    return run.path


def _adapter_alone(run: Run) -> Path:
    return Path(shutil.copytree(run.adapter, run.path.parents[1] / "alone"))


def _empty(run: Run) -> Path:
    folder = run.path.parents[1] / "empty"
    folder.mkdir()
    return folder


def _text(run: Run) -> Path:
    return run.recipe_file


def _half_gguf(run: Run) -> Path:
    path = write_run_gguf(run, "Q8_0")
    path.write_bytes(path.read_bytes()[:-1000])
    return path


def _no_gguf(run: Run) -> Path:
    path = run.path / "model.gguf"
    path.write_bytes(b"GGML" * 100)
    return path


REFUSED: dict[Callable[[Run], Path], tuple[type[Exception], str]] = {
    _other_tokenizer: (ModelError, "the tokenizer is not the one that this contract was made with"),
    _own_tokenizer_lost: (ModelError, r"no tokenizer\.json"),
    _contract_lost: (ModelError, r"lost its contract\.json"),
    _smaller_model: (ModelError, "the model only 700"),
    _pickle: (ModelError, r"a pickle \(pytorch_model\.bin\)"),
    _own_code: (ModelError, "brings its own Python code"),
    _half: (ModelError, "cut short"),
    _shard_elsewhere: (ModelError, r"missing: \.\./\.\./\.\./secret"),
    _untrained: (ModelError, "no adapter yet"),
    _base_changed: (ModelError, "another base than starter: the base of its run had other weights"),
    _adapter_alone: (ModelError, "an adapter without its base"),
    _empty: (ModelError, "no model"),
    _text: (ModelError, "this file is no model"),
    _half_gguf: (ModelError, "not whole"),
    _no_gguf: (ModelError, "no GGUF file"),
}


@pytest.mark.parametrize("spoil", REFUSED, ids=lambda one: one.__name__.strip("_"))
def test_refused(spoil: Callable[[Run], Path], run: Run, llama_cpp: Any) -> None:
    kind, words = REFUSED[spoil]
    asked = spoil(run)
    with pytest.raises(kind, match=words) as caught:
        opened(asked)
    assert caught.value.where and caught.value.fix  # type: ignore[attr-defined]


def test_what_to_type_where_the_tokenizer_is_another(run: Run) -> None:
    """Never to train anew: an exported folder is made again, a run's own file lies beside its adapter too."""
    _other_tokenizer(run)
    with pytest.raises(ModelError) as caught:
        opened(run.merged)
    assert "export RUN" in str(caught.value.fix)
    own = run.path / "tokenizer" / "tokenizer.json"
    for spoil in (lambda: own.write_text(own.read_text() + " "), own.unlink):
        spoil()
        with pytest.raises(ModelError) as caught:
            opened(run.path)
        assert str(caught.value.fix).startswith("cp ") and os.system(str(caught.value.fix)) == 0
        assert opened(run.path).name == "tiny"
    own.unlink()
    (run.adapter / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="prepare RECIPE --fork"):
        opened(run.path)


def test_an_edited_recipe_is_refused(run: Run) -> None:
    run.recipe_file.write_text(run.recipe_file.read_text().replace("dtype: float32", "dtype: bfloat16"))
    for asked in (run.path, run.merged):
        with pytest.raises(RunChanged, match=r"model\.dtype: was float32, is bfloat16"):
            opened(asked)


def test_names_of_nothing(exported: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    runs = exported.path.parent
    for asked, words in {
        "./tyny": "no such folder or file",
        "/nowhere/at/all": "no such folder or file",
        "a/b/c": "no such folder or file",
        "mine.gguf": "no such file",
        "tyny": "there is no run tyny under .*; did you mean the run 'tiny'",
        "quiteother": "there is no run quiteother under .*; as a model of the hub: .*can't be reached",
        "somebody/something": "can't be reached",
    }.items():
        with pytest.raises(AccessError, match=words):
            opened(asked, runs)
    with pytest.raises(SetupError, match="did you mean 'transformers'"):
        opened("tiny", runs, "transformer")
    with pytest.raises(ModelError, match=r"llama\.cpp answers from GGUF files"):
        opened("starter", runs, "llama.cpp")


# ---- whose adapter it is


def config_of(folder: Path, **changed: Any) -> Path:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    return folder


def test_an_adapter_tells_its_base(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, copied = resolve(Model(base="starter")), tmp_path / "copied"
    shutil.copytree(run.adapter, copied)
    require_own_base(run.adapter, base)  # by the lock
    require_own_base(copied, base)  # by its name
    local = tmp_path / "local-base"
    shutil.copytree(starter.base_folder(), local)
    require_own_base(copied, resolve(Model(base=str(local))))  # another name, the same weights
    assert not capsys.readouterr().err
    require_own_base(
        config_of(copied, base_model_name_or_path="org/local-base"), resolve(Model(base=str(local)))
    )
    assert not capsys.readouterr().err  # a copy of a hub model
    require_own_base(
        config_of(copied, base_model_name_or_path="org/another"), resolve(Model(base=str(local)))
    )
    assert "nobody can tell" in capsys.readouterr().err
    with pytest.raises(ModelError, match="trained on org/another"):
        require_own_base(copied, base)
    weights = bytearray((local / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (local / "model.safetensors").write_bytes(weights)
    with pytest.raises(ModelError, match="trained on starter"):
        require_own_base(
            config_of(copied, base_model_name_or_path="starter"), resolve(Model(base=str(local)))
        )


def test_adapters_as_they_are_named(run: Run, tmp_path: Path) -> None:
    runs = run.path.parent
    for path in (run.path, Path("tiny"), run.adapter):
        found = find_adapter("x", path, runs)
        assert (found.path.name, found.run and found.run.name, found.is_gguf) == ("adapter", "tiny", False)
    pickle = tmp_path / "adapter_model.bin"
    pickle.write_bytes(b"\x80\x04")
    with pytest.raises(ModelError, match="a pickle, which can run code"):
        find_adapter("x", pickle, runs)
    (run.adapter / "adapter_model.safetensors").rename(run.adapter / "adapter_model.bin")
    with pytest.raises(ModelError, match="a pickle"):
        find_adapter("x", run.path, runs).folder(opened(run.merged))


def test_an_adapter_of_another_tokenizer(run: Run, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(run.adapter, tmp_path / "copied"))
    tokenizer = json.loads((copied / "tokenizer.json").read_text())
    ids = tokenizer["model"]["vocab"]
    first, second = list(ids)[300:302]
    ids[first], ids[second] = ids[second], ids[first]
    (copied / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False))
    Contract.make(copied).save(copied)
    found = find_adapter("x", copied, tmp_path)
    with pytest.raises(ModelError, match="another tokenizer"):
        found.contract(opened(run.merged))


def test_an_adapter_trained_on_another_form_is_told(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    lock = json.loads(run.lock_file.read_text())
    lock["recipe"]["model.quantize"] = "nf4"
    run.lock_file.write_text(json.dumps(lock))
    find_adapter("x", run.path, run.path.parent).folder(opened("starter"))
    assert "with quantize: nf4, and is served on none" in capsys.readouterr().err
