"""The model card: true to the run, silent about this machine and its rows, with what the base's licence asks for."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import ModelCard
from tiny_project import make_project
from tiny_run import recipe

from tunesmith.base import Base
from tunesmith.cli import main
from tunesmith.export.card import sections
from tunesmith.export.card.facts import Facts
from tunesmith.export.card.licence import Licence, hand_on, licence_of, named
from tunesmith.export.card.usage import usage
from tunesmith.proof import Proof
from tunesmith.recipe import Recipe
from tunesmith.run import Run

CARDS = ("adapter", "merged")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("secretplace")
    recipe = make_project(folder, rows=32, train={"epochs": 12, "evaluate_every": 24})
    assert main(["run", str(recipe), "--runs-dir", str(folder / "runs")]) == 0
    return folder / "runs" / "tiny"


def read(folder: Path) -> tuple[dict[str, Any], str]:
    """Metadata and text, as the hub's library reads them."""
    found = ModelCard((folder / "README.md").read_text("utf-8"), ignore_metadata_errors=False)
    return found.data.to_dict(), found.text


@pytest.mark.parametrize("kind", CARDS)
def test_scores_and_proofs_are_those_of_the_run(run: Path, kind: str) -> None:
    data, text = read(run / kind)
    report = json.loads((run / "report" / "report.json").read_text())
    head = report["headline"]
    (result,) = data["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == pytest.approx(head["tuned"], abs=1e-6)
    assert f"base {head['base']:.3f}, tuned {head['tuned']:.3f}" in text
    for name, score in report["scores"].items():
        one = score[head["metric"]]
        assert f"{one['value']:.3f} ({one['low']:.3f} to {one['high']:.3f})" in text, name
    for proof in json.loads((run / "proofs.json").read_text())["proofs"]:
        assert re.search(rf"\| holds \| {proof['name']} \|", text) is not None
    assert data["library_name"] == {"adapter": "peft", "merged": "transformers"}[kind]
    assert report["data"]["train_sha256"] in text


@pytest.mark.parametrize("kind", CARDS)
def test_a_card_keeps_rows_and_folders_to_itself(run: Path, kind: str) -> None:
    _, text = read(run / kind)
    assert "secretplace" not in text and str(Path.home()) not in text
    rows = [json.loads(line) for line in (run / "predictions" / "tuned.jsonl").read_text().splitlines()]
    assert rows and not [row["id"] for row in rows if row["prompt"] in text]


@pytest.mark.parametrize("kind", CARDS)
def test_checksums_cover_the_card(run: Path, kind: str) -> None:
    lines = (run / kind / "SHA256SUMS").read_text().splitlines()
    sums = {name: digest for digest, name in (line.split("  ") for line in lines)}
    files = {path.name for path in (run / kind).iterdir() if path.is_file()} - {"SHA256SUMS"}
    assert set(sums) == files and "README.md" in files
    for name, digest in sums.items():
        assert hashlib.sha256((run / kind / name).read_bytes()).hexdigest() == digest, name


@pytest.mark.parametrize("kind", CARDS)
def test_the_lines_of_use_work(run: Path, kind: str) -> None:
    """As they stand on the card, but for the names of the folders."""
    _, text = read(run / kind)
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    recipe = (run / "recipe.yaml").read_text()
    base = re.search(r"base: (\S+)", recipe)
    assert base is not None
    code = code.replace('"BASE"', f'"{base[1]}"').replace("FOLDER", str(run / kind)).replace("…", "tumour")
    said: list[str] = []
    exec(code, {"print": said.append})
    assert len(said) == 1


def test_a_redone_export_writes_the_same_card(run: Path) -> None:
    before = (run / "merged" / "README.md").read_bytes()
    assert main(["export", "tiny", "--runs-dir", str(run.parent)]) == 0
    assert (run / "merged" / "README.md").read_bytes() == before


def test_a_card_names_no_folder_of_a_list_and_no_row(tmp_path: Path) -> None:
    """A list's items are paths too; a failed proof names the first row, whose id may be a patient's."""
    secret = "/home/bob"
    data = {
        "train": [{"path": f"{secret}/a b.jsonl"}],
        "test": "../../bob/t.jsonl",
        "processor": f"{secret}/o.py:f",
    }
    given = recipe(data=data, evaluate={"metrics": [f"{secret}/m.py:acc"], "prompts": [f"{secret}/p.txt"]})
    facts: Any = SimpleNamespace(recipe=given, run=Run(tmp_path))
    text = Facts.recipe_text.__get__(facts)
    assert "bob" not in text and "a b.jsonl" in text and "m.py:acc" in text
    Run(tmp_path).prove(Proof("sound", True, 0, 0, "rows (the first: Bob (born 1950))"))
    assert "Bob" not in sections.proofs(facts)


def test_a_killed_export_leaves_no_card_of_another(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor a checksum of what has changed."""
    from tunesmith.export import export as stage

    monkeypatch.setattr(stage, "export", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    main(["export", "tiny", "--runs-dir", str(run.parent)])
    monkeypatch.undo()
    for kind in CARDS:
        assert not (run / kind / "README.md").exists()
        sums = (run / kind / "SHA256SUMS").read_text()
        assert "README.md" not in sums and "safetensors" in sums
    assert main(["export", "tiny", "--runs-dir", str(run.parent)]) == 0
    assert "README.md" in (run / "merged" / "SHA256SUMS").read_text()


def test_a_failed_proof_is_told_on_the_cards_of_what_stays(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunesmith.export import export as stage

    def failed(recipe: Recipe, of: Run) -> None:
        of.prove(Proof("nf4_keeps_score", False, 1, 0, "lost"))

    monkeypatch.setattr(stage, "export", failed)
    assert main(["export", "tiny", "--runs-dir", str(run.parent)]) == 3
    assert "| **fails** | nf4_keeps_score |" in (run / "merged" / "README.md").read_text()
    monkeypatch.undo()
    assert main(["export", "tiny", "--runs-dir", str(run.parent)]) == 0


# ---- licences


def base(folder: Path, name: str = "someone/model", **files: str) -> Base:
    for file, text in files.items():
        (folder / file.replace("_md", ".md")).write_text(text, encoding="latin-1")
    return Base(name, folder, None, {}, folder)


LLAMA = "LLAMA 3.1 COMMUNITY LICENSE AGREEMENT\nLlama 3.1 Version Release Date: July 23, 2024\n"


@pytest.mark.parametrize(
    "files, known",
    [
        ({"README_md": "---\nlicense: llama3.1\n---\n# Model"}, "llama3.1"),
        ({"LICENSE": LLAMA}, "llama3.1"),
        ({"README_md": "---\nlicense: other\nlicense_name: x\n---\n", "LICENSE": LLAMA}, "llama3.1"),
        ({"LICENSE": "META LLAMA 3 COMMUNITY LICENSE AGREEMENT"}, "llama3"),
        ({"LICENSE": "LLAMA 2 COMMUNITY LICENSE AGREEMENT\t\nLlama 2 Version Release Date"}, "llama2"),
        (
            {"LICENSE": "Qwen RESEARCH LICENSE AGREEMENT\n\nQwen RESEARCH LICENSE AGREEMENT Release Date"},
            "other",
        ),
        ({"LICENSE": "                 Apache License\n           Version 2.0, January 2004"}, "apache-2.0"),
        ({"LICENSE": "MIT License\n\nCopyright (c) José"}, "mit"),
        ({"README_md": "---\nlicense: [broken\n---\n"}, ""),
        ({"README_md": "no metadata: llama3.1"}, ""),
        ({}, ""),
    ],
)
def test_licences_are_known_by_what_the_base_says(tmp_path: Path, files: dict[str, str], known: str) -> None:
    assert licence_of(base(tmp_path, **files)).id == known


def test_what_llamas_licence_asks_for(tmp_path: Path) -> None:
    source = tmp_path / "base"
    out = tmp_path / "out"
    source.mkdir(), out.mkdir()
    licence = licence_of(base(source, LICENSE=LLAMA, USE_POLICY_md="be good"))
    assert licence.built_with == "Built with Llama"
    assert named("cancer", licence) == "Llama-cancer" and named("llama-3-cancer", licence) == "llama-3-cancer"
    hand_on(licence, out)
    assert (out / "LICENSE").read_text() == LLAMA and (out / "USE_POLICY.md").is_file()
    notice = (out / "NOTICE").read_text()
    assert notice.startswith(
        "Llama 3.1 is licensed under the Llama 3.1 Community License, Copyright © Meta Platforms, Inc."
    )
    assert named("cancer", Licence("mit")) == "cancer"


def test_a_licence_file_of_the_base_is_not_written_over(tmp_path: Path) -> None:
    source = tmp_path / "base"
    out = tmp_path / "out"
    source.mkdir(), out.mkdir()
    hand_on(licence_of(base(source, LICENSE=LLAMA, NOTICE="theirs")), out)
    assert (out / "NOTICE").read_text() == "theirs"


QWEN = """Qwen RESEARCH LICENSE AGREEMENT
c. You shall retain in all copies of the Materials the following attribution notices within a "Notice" text file:
"Qwen is licensed under the Qwen RESEARCH LICENSE AGREEMENT, Copyright (c) 2026
Somebody Ltd. All Rights Reserved."
"""


@pytest.mark.parametrize(
    ("files", "built", "notice"),
    [
        (
            {"README_md": "---\nlicense: other\nlicense_name: qwen\nlicense_link: x\n---\n"},
            "Built with Qwen",
            "Qwen is licensed under the Qwen LICENSE AGREEMENT, Copyright (c) Alibaba Cloud. All Rights Reserved.",
        ),
        (
            {"LICENSE": QWEN},
            "Built with Qwen",
            "Qwen is licensed under the Qwen RESEARCH LICENSE AGREEMENT, Copyright (c) 2026 Somebody Ltd. "
            "All Rights Reserved.",
        ),
        (
            {"README_md": "---\nlicense: llama2\n---\n"},
            "",
            "Llama 2 is licensed under the LLAMA 2 Community License, Copyright (c) Meta Platforms, Inc. "
            "All Rights Reserved.",
        ),
    ],
)
def test_what_qwens_and_llama_2s_licences_ask_for(
    tmp_path: Path, files: dict[str, str], built: str, notice: str
) -> None:
    source, out = tmp_path / "base", tmp_path / "out"
    source.mkdir(), out.mkdir()
    licence = licence_of(base(source, **files))
    hand_on(licence, out)
    assert licence.built_with == built and (out / "NOTICE").read_text() == f"{notice}\n"
    text = sections.licence(SimpleNamespace(licence=licence, base_name="x"))  # type: ignore[arg-type]
    assert notice in text and "name that begins" not in text
    assert named("cancer", licence) == "cancer"


def gguf_card(window: int | None, files: list[str], folder: Path) -> str:
    """The lines of use of a model of 4,096 positions."""
    config = {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "max_position_embeddings": 4096,
              "sliding_window": window}  # fmt: skip
    facts = SimpleNamespace(
        base=Base("x", folder, None, config, folder), recipe=recipe(), max_tokens=8, rows={},
        contract=SimpleNamespace(system=None),
    )  # fmt: skip
    return usage(facts, "gguf", files)  # type: ignore[arg-type]


def test_a_gguf_card_keeps_to_the_models_window(tmp_path: Path) -> None:
    text = gguf_card(512, ["tiny-F16.gguf"], tmp_path)
    assert "n_ctx=512," in text and "-c 512`" in text and "looks back over 512 tokens" in text
    text = gguf_card(None, ["tiny-F16.gguf"], tmp_path)
    assert "n_ctx=3072," in text and "looks back" not in text


def test_a_gguf_card_tells_how_the_adapter_alone_is_used(tmp_path: Path) -> None:
    name = recipe().name
    text = gguf_card(None, [f"{name}-adapter.gguf"], tmp_path)
    assert f'Llama("BASE.gguf", lora_path="{name}-adapter.gguf"' in text
    assert f"-m BASE.gguf --lora {name}-adapter.gguf" in text and "FILE.gguf" not in text
    text = gguf_card(None, [f"{name}-adapter.gguf", f"{name}-F16.gguf"], tmp_path)
    assert f'Llama("{name}-F16.gguf", n_ctx' in text
    assert f"tunesmith serve BASE.gguf --adapter {name}={name}-adapter.gguf" in text


def test_an_adapters_card_names_files_that_are_there(run: Path) -> None:
    _, text = read(run / "adapter")
    named_files = set(re.findall(r"FOLDER/([\w.-]+)", text))
    assert not named_files - {path.name for path in (run / "adapter").iterdir()}
    assert "--tokenizer FOLDER" in text  # whose configuration holds the template
