"""Mistakes in quantised folders and GGUF files that the proofs have to find."""

# ruff: noqa: F401, F811  (fixtures)

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from test_export_artifacts import SMALL, base, new_run, qlora_recipe, recipe_for, run, write_adapter

from tunesmith.contract import Contract
from tunesmith.errors import ProofFailed
from tunesmith.export import artifact_gguf
from tunesmith.export.artifact_folder import QuantisedFolder
from tunesmith.export.export import export
from tunesmith.run import Run


def test_weights_of_another_folder_fail(
    base: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quant of the wrong base: the base's own weights in nf4, without the adapter."""
    from tunesmith.export import artifact_folder

    right = artifact_folder.write_quantized
    monkeypatch.setattr(
        artifact_folder, "write_quantized", lambda _, *rest, **more: right(base, *rest, **more)
    )
    with pytest.raises(ProofFailed, match="nf4_equals_quantised_in_memory"):
        export(recipe_for(base, quantized=["nf4"]), run)
    assert run.merged.exists()
    assert not (run.quantized / "nf4").exists()
    assert not (run.predictions / "nf4.jsonl").exists()


def test_the_trained_image_put_into_nf4_again_fails(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nearly each weight falls back on the number that the adapter moved it from."""
    run = new_run(base, tmp_path / "tiny")
    write_adapter(base, run.adapter, strength=SMALL)
    monkeypatch.setattr(QuantisedFolder, "source", property(lambda self: self.yard.source))
    with pytest.raises(ProofFailed, match="nf4_keeps_adapter"):
        export(qlora_recipe(base, quantized=["nf4"]), run)
    assert not (run.quantized / "nf4").exists()


def test_a_template_with_one_line_more_fails(base: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from tunesmith.export import artifact_folder

    right = artifact_folder.complete

    def complete(folder: Path, *given: Any) -> None:
        right(folder, *given)
        path = folder / "tokenizer_config.json"
        config = json.loads(path.read_text())
        config["chat_template"] = "\n\n" + config["chat_template"]
        path.write_text(json.dumps(config))

    monkeypatch.setattr(artifact_folder, "complete", complete)
    with pytest.raises(ProofFailed, match="nf4_renders_as_contract"):
        export(recipe_for(base, quantized=["nf4"]), run)


def test_a_wrong_stop_in_the_folder_fails(base: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from tunesmith.export import artifact_folder

    right = artifact_folder.complete

    def complete(folder: Path, *given: Any) -> None:
        right(folder, *given)
        path = folder / "generation_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": [3]}))

    monkeypatch.setattr(artifact_folder, "complete", complete)
    with pytest.raises(ProofFailed, match="nf4_renders_as_contract"):
        export(recipe_for(base, quantized=["nf4"]), run)


@pytest.mark.parametrize(
    ("place", "wrong"),
    [
        ("config.json", {"max_position_embeddings": 1024}),
        ("config.json", {"sliding_window": 64}),
        ("generation_config.json", {"do_sample": True, "temperature": 0.6}),
    ],
)
@pytest.mark.parametrize("kind", ["merged", "int8"])
def test_a_wrong_configuration_fails(
    base: Path, run: Run, monkeypatch: pytest.MonkeyPatch, place: str, wrong: dict[str, Any], kind: str
) -> None:
    """What no short row shows."""
    from tunesmith.export import artifact_folder, merged

    owner = merged if kind == "merged" else artifact_folder
    right = owner.complete

    def complete(folder: Path, *given: Any) -> None:
        right(folder, *given)
        path = folder / place
        path.write_text(json.dumps(json.loads(path.read_text()) | wrong))

    monkeypatch.setattr(owner, "complete", complete)
    with pytest.raises(ProofFailed, match=f"{kind}_config_equal"):
        export(recipe_for(base, quantized=["int8"]), run)


def edit_writer(monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], None]) -> None:
    """GGUFWriter with its keys changed before they are written."""
    import gguf

    right = gguf.GGUFWriter.write_header_to_file

    def write(self: Any, *given: Any, **more: Any) -> Any:
        change(self)
        return right(self, *given, **more)

    monkeypatch.setattr(gguf.GGUFWriter, "write_header_to_file", write)


def set_key(name: str, make: Callable[[Any], Any]) -> Callable[[Any], None]:
    def change(writer: Any) -> None:
        for part in writer.kv_data:
            if name in part:
                part[name].value = make(part[name].value)

    return change


def wrong_rope(monkeypatch: pytest.MonkeyPatch, base: Path) -> None:
    from tunesmith.export.gguf import tensors

    monkeypatch.setattr(tensors, "permuted_heads", lambda *_: 0)


def dropped_lora(monkeypatch: pytest.MonkeyPatch, base: Path) -> None:
    """The file is made of a merged folder in which one layer has no adapter."""
    right = artifact_gguf.write_gguf

    def write(folder: Path, out: Path, *rest: Any, **more: Any) -> None:
        from safetensors.torch import save_file

        other = out.parent / "other"
        shutil.copytree(folder, other)
        own, plain = load_file(other / "model.safetensors"), load_file(base / "model.safetensors")
        own |= {name: plain[name] for name in own if ".layers.1." in name}
        save_file(own, other / "model.safetensors")
        right(other, out, *rest, **more)

    monkeypatch.setattr(artifact_gguf, "write_gguf", write)


def wrong_base(monkeypatch: pytest.MonkeyPatch, base: Path) -> None:
    right = artifact_gguf.write_gguf
    monkeypatch.setattr(artifact_gguf, "write_gguf", lambda _, *rest, **more: right(base, *rest, **more))


def wrong_stop(monkeypatch: pytest.MonkeyPatch, base: Path) -> None:
    edit_writer(monkeypatch, set_key("tokenizer.ggml.eos_token_id", lambda _: 100))


def newline_more(monkeypatch: pytest.MonkeyPatch, base: Path) -> None:
    edit_writer(monkeypatch, set_key("tokenizer.chat_template", lambda text: "\n" + text))


def bos_twice(monkeypatch: pytest.MonkeyPatch, base: Path) -> None:
    """The template writes it already; a file that asks for it makes programs write another one."""
    edit_writer(monkeypatch, set_key("tokenizer.ggml.add_bos_token", lambda _: True))


def longer(monkeypatch: pytest.MonkeyPatch, base: Path) -> None:
    edit_writer(monkeypatch, set_key("llama.context_length", lambda length: 2 * length))


MISTAKES = {
    "rope": (wrong_rope, "computes_as_merged"),
    "layer without adapter": (dropped_lora, "computes_as_merged"),
    "wrong base": (wrong_base, "computes_as_merged"),
    "wrong stop": (wrong_stop, "stops_equal"),
    "newline": (newline_more, "tokens_equal"),
    "two BOS": (bos_twice, "tokens_equal"),
    "more positions": (longer, "positions_equal"),
}


@pytest.mark.parametrize("kind", ["F16", "Q4_K_M"])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_gguf_file_fails(
    base: Path, run: Run, monkeypatch: pytest.MonkeyPatch, llama_cpp: Any, mistake: str, kind: str
) -> None:
    """Of a quant the exact file that it is made of is proved first, so it fails there."""
    spoil, proof = MISTAKES[mistake]
    spoil(monkeypatch, base)
    name = "F16" if kind == "F16" else "source"
    with pytest.raises(ProofFailed, match=f"gguf_{name}_{proof}"):
        export(recipe_for(base, gguf=[kind]), run)
    assert run.merged.exists()
    assert not list(run.path.rglob("*.gguf"))


def test_a_quant_of_the_wrong_file_fails(
    base: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, llama_cpp: Any
) -> None:
    """llama.cpp is given another exact file than the one that was proved."""
    from tunesmith.export.gguf.write import write_gguf

    other = tmp_path / "base.gguf"
    write_gguf(base, other, "BF16", Contract.load(run.contract_folder))
    right = artifact_gguf.quantize_gguf
    monkeypatch.setattr(artifact_gguf, "quantize_gguf", lambda _, *rest: right(other, *rest))
    with pytest.raises(ProofFailed, match=r"gguf_Q4_K_M_(is_merged_quantised|keeps_adapter)"):
        export(recipe_for(base, gguf=["F16", "Q4_K_M"]), run)
    assert [path.name for path in run.gguf.glob("*.gguf")] == ["tiny-F16.gguf"]  # what passed stays


def test_a_quant_that_llama_cpp_reads_otherwise_fails(
    base: Path, run: Run, monkeypatch: pytest.MonkeyPatch, llama_cpp: Any
) -> None:
    """Its numbers are right and another ε of its norms is told: less than what four bits lose, more than arithmetic."""
    from gguf import GGUFReader

    right = artifact_gguf.quantize_gguf

    def quantise(source: Path, out: Path, *rest: Any) -> None:
        right(source, out, *rest)
        reader = GGUFReader(out, "r+")
        field = reader.fields["llama.attention.layer_norm_rms_epsilon"]
        field.parts[field.data[0]][0] *= 1e3
        reader.data.flush()

    monkeypatch.setattr(artifact_gguf, "quantize_gguf", quantise)
    with pytest.raises(ProofFailed, match="gguf_Q4_K_M_computes_as_stored"):
        export(recipe_for(base, gguf=["F16", "Q4_K_M"]), run)
    assert [path.name for path in run.gguf.glob("*.gguf")] == ["tiny-F16.gguf"]
