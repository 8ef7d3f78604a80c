"""Ollama's Modelfile: the same prompt as the Contract's, by Go's own template engine; other templates are refused."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tunesmith.contract import Contract
from tunesmith.errors import ModelError
from tunesmith.example import Message
from tunesmith.export.modelfile import (
    Pieces,
    modelfile,
    pieces_of,
    template_equals_contract,
    write_modelfiles,
)
from tunesmith.recipe import Ollama, Recipe
from tunesmith.run import Run
from tunesmith.starter import base_folder

TALKS = [
    [Message("user", "Was?\n{{ .X }} \"\"\" \\n 'q'")],
    [Message("system", "Kurz."), Message("user", "ಕನ್ನಡ 🧑‍⚕️"), Message("assistant", "<b>&</b>"), Message("user", "z")],
    [Message("user", "a"), Message("assistant", "b"), Message("user", "c"), Message("assistant", "d"),
     Message("user", "e")],
]  # fmt: skip


# what Mistral's and Llama 2's own templates do: an answer has spaces of its own around it
SPACED = "{% for m in messages %}{% if m.role == 'assistant' %}{{ ' ' + m.content + ' ' + eos_token }}{% else %}{{ '[' + m.role + '] ' + m.content + ' [/]' }}{% endif %}{% endfor %}"  # noqa: E501
# what Qwen 3's does: thoughts before the last answer alone, in a prompt where it is told not to think
THINKS = "{% for m in messages %}{{ m.role + ':\n' }}{% if m.role == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{{ m.content + eos_token + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant:\n' }}{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"  # noqa: E501
OWN = {"spaced": SPACED, "thinks": THINKS}
TEMPLATES = ["auto", "llama3", "plain", *OWN]


def contract(template: str = "auto", system: str | None = None, folder: Path | None = None) -> Contract:
    if template in OWN:
        assert folder is not None
        (folder / "own.jinja").write_text(OWN[template])
        template = str(folder / "own.jinja")
    return Contract.make(base_folder(), template=template, system=system)


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_template_is_the_contracts(tmp_path: Path, template: str) -> None:
    proof = template_equals_contract(contract(template, folder=tmp_path))
    assert proof.passed and proof.figure == 0, proof.line()


@pytest.mark.parametrize("name", [*Pieces.__dataclass_fields__])
def test_a_line_break_more_fails(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    import tunesmith.export.modelfile as module

    made = pieces_of(contract())
    wrong = Pieces(
        **{one: getattr(made, one) + ("\n" if one == name else "") for one in made.__dataclass_fields__}
    )
    monkeypatch.setattr(module, "pieces_of", lambda given: wrong)
    assert not template_equals_contract(contract()).passed


BY_PLACE = "{% for m in messages %}{{ m.role }} {{ loop.index }}: {{ m.content }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"  # noqa: E501


def test_a_template_that_counts_its_turns_fails(tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_text(BY_PLACE)
    assert not template_equals_contract(contract(str(tmp_path / "t.jinja"))).passed


def test_a_template_that_changes_texts_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_text(
        BY_PLACE.replace(" {{ loop.index }}", "").replace("m.content }", "m.content | upper }")
    )
    with pytest.raises(ModelError, match=r"changes its text|leaves the assistant's turn out"):
        pieces_of(contract(str(tmp_path / "t.jinja")))


def test_what_else_a_modelfile_says() -> None:
    text = modelfile(
        contract(system="Answer in JSON."), "x-Q8_0.gguf", Ollama(num_ctx=2048, temperature=0.5, top_p=0.9)
    )
    assert text.startswith('FROM ./x-Q8_0.gguf\nTEMPLATE """{{ range')
    for line in ('SYSTEM """Answer in JSON."""', "PARAMETER num_ctx 2048", "PARAMETER temperature 0.5",
                 "PARAMETER top_p 0.9", "PARAMETER top_k 0", "PARAMETER repeat_penalty 1.0",
                 'PARAMETER stop "<|eot_id|>"'):  # fmt: skip
        assert f"\n{line}\n" in f"{text}\n"


def test_a_system_prompt_that_a_modelfile_cannot_hold() -> None:
    with pytest.raises(ModelError, match="quotation marks"):
        modelfile(contract(system='Say """.'), "x.gguf", Ollama())


def export_of(tmp_path: Path, kinds: list[str]) -> tuple[Recipe, Run]:
    run = Run(tmp_path / "runs" / "mine")
    run.gguf.mkdir(parents=True)
    for kind in kinds:
        (run.gguf / f"mine-{kind}.gguf").write_bytes(b"GGUF")
    given = {"name": "mine", "model": {"base": "starter"}, "data": {"train": "starter"}}
    return Recipe.model_validate({**given, "export": {"gguf": ["F16", "Q8_0"], "ollama": {}}}), run


def test_one_for_each_file_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, run = export_of(tmp_path, ["Q8_0"])  # F16 failed its proof
    monkeypatch.setenv("PATH", str(tmp_path))
    (run.gguf / "Modelfile.Q4_K_M").write_text("of a former recipe")
    write_modelfiles(recipe, run, contract())
    assert [path.name for path in sorted(run.gguf.glob("Modelfile.*"))] == ["Modelfile.Q8_0"]
    assert "FROM ./mine-Q8_0.gguf" in (run.gguf / "Modelfile.Q8_0").read_text()
    assert [proof["name"] for proof in run.proofs()] == ["ollama_template_equals_contract"]


@pytest.mark.parametrize("code", [0, 1])
def test_ollama_gets_it_where_it_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: int
) -> None:
    """A program of that name stands in: only what it is called with can be tested here."""
    recipe, run = export_of(tmp_path, ["F16"])
    program = tmp_path / "ollama"
    program.write_text(f'#!/bin/sh\necho "$PWD $*" > {tmp_path}/called\necho no space >&2\nexit {code}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    write_modelfiles(recipe, run, contract())
    assert (tmp_path / "called").read_text() == f"{run.gguf} create mine:f16 -f Modelfile.F16\n"
    said = capsys.readouterr().err
    assert "no space" in said if code else "ollama run mine:f16" in said


@pytest.mark.system
@pytest.mark.parametrize("template", TEMPLATES)
def test_gos_own_engine_writes_the_contracts_prompt(tmp_path: Path, template: str) -> None:
    """Ollama executes the template with Go's text/template on messages with Role and Content."""
    if shutil.which("go") is None:
        if os.environ.get("CI"):
            pytest.fail("no go; make test-system brings it")
        pytest.skip("no go")
    made = contract(template, folder=tmp_path)
    found = re.search(r'TEMPLATE """(.*?)"""\n', modelfile(made, "x.gguf", Ollama()), re.DOTALL)
    assert found is not None
    (tmp_path / "t.txt").write_text(found[1])
    talks = [[{"Role": m.role, "Content": m.content} for m in talk] for talk in TALKS]
    (tmp_path / "talks.json").write_text(json.dumps(talks))
    (tmp_path / "main.go").write_text(GO)
    env = {**os.environ, "GOCACHE": str(tmp_path / "cache"), "GOFLAGS": "-mod=mod", "GO111MODULE": "off"}
    done = subprocess.run(["go", "run", "main.go"], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    written = json.loads(done.stdout)
    wanted = [made.render(talk, answer_next=True) for talk in TALKS]
    assert written == wanted
    (tmp_path / "t.txt").write_text(found[1].replace('{{ "', '{{ "\\n', 1))  # mutant
    done = subprocess.run(["go", "run", "main.go"], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert json.loads(done.stdout) != wanted


GO = """package main

import (
    "encoding/json"
    "os"
    "strings"
    "text/template"
)

type message struct{ Role, Content string }

func main() {
    text, _ := os.ReadFile("t.txt")
    raw, _ := os.ReadFile("talks.json")
    var talks [][]*message
    if err := json.Unmarshal(raw, &talks); err != nil { panic(err) }
    parsed := template.Must(template.New("").Parse(string(text)))
    made := []string{}
    for _, talk := range talks {
        var out strings.Builder
        if err := parsed.Execute(&out, map[string]any{"Messages": talk}); err != nil { panic(err) }
        made = append(made, out.String())
    }
    json.NewEncoder(os.Stdout).Encode(made)
}
"""
