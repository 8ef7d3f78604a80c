"""The command line as a user meets it: exit codes, what is printed, and that nothing is left behind on bad input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tunesmith.cli import main

ROW = {"instruction": "Extract.", "input": "Stage IV.", "output": {"stage": "IV"}}
RECIPE = """\
name: one
model: {base: starter, dtype: float32}
data: {train: rows.jsonl, split: {validation: 0.2}}
train: {max_steps: 2, learning_rate: 1e-3}
"""


def tunesmith(folder: Path, *words: object, **environment: str) -> tuple[int, str]:
    """Exit code and all that was printed; a traceback fails the test."""
    done = subprocess.run(
        [sys.executable, "-m", "tunesmith.cli", *map(str, words)],
        cwd=folder,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps(ROW | {"input": f"Stage {i}."}) + "\n" for i in range(50))
    )
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path


def test_check_says_what_a_run_would_do(place: Path) -> None:
    code, said = tunesmith(place, "check", "recipe.yaml", "--show", 1)
    assert code == 0
    assert "recipe    one: sound" in said and "40" in said and "10" in said
    assert '⟦{"stage": "IV"}<|eot_id|>⟧' in said
    assert not (place / "runs" / "one").exists()  # prepared rows are kept for the run, which has not begun


def bad_yaml(place: Path, text: str) -> None:
    (place / "recipe.yaml").write_text(text)


def edit_row(place: Path, number: int, line: bytes) -> None:
    lines = (place / "rows.jsonl").read_bytes().splitlines()
    lines[number - 1] = line
    (place / "rows.jsonl").write_bytes(b"\n".join(lines))


def model_folder(place: Path, **files: Any) -> Path:
    folder = place / "base"
    folder.mkdir()
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(
            content if isinstance(content, str) else json.dumps(content)
        )
    return folder


BAD: dict[str, tuple[Any, int, str]] = {
    "misspelled key": (
        lambda p: bad_yaml(p, RECIPE.replace("learning_rate", "learning_rat")),
        2,
        "line 4  train.learning_rat: unknown key; did you mean learning_rate?",
    ),
    "duplicate key": (lambda p: bad_yaml(p, RECIPE + "name: two\n"), 2, 'duplicate key "name"'),
    "word for a number": (
        lambda p: bad_yaml(p, RECIPE.replace("max_steps: 2", "max_steps: many")),
        2,
        "line 4  train.max_steps: should be a valid integer, not 'many'",
    ),
    "missing column": (
        lambda p: edit_row(p, 1, b'{"instruction": "x", "answer": "y"}'),
        2,
        "rows.jsonl:1: there is no column 'output' (there are instruction, answer)",
    ),
    "broken JSON on line 37": (
        lambda p: edit_row(p, 37, b'{"instruction": "x'),
        2,
        "rows.jsonl:37: broken JSON",
    ),
    "empty file": (lambda p: (p / "rows.jsonl").write_text(""), 2, "rows.jsonl holds no rows"),
    "no such file": (lambda p: (p / "rows.jsonl").unlink(), 2, "there is no file rows.jsonl"),
    "not UTF-8": (
        lambda p: edit_row(p, 5, b'{"instruction": "caf\xe9", "output": "x"}'),
        2,
        "rows.jsonl:5: not UTF-8",
    ),
    "overlong": (
        lambda p: bad_yaml(p, RECIPE.replace("split:", "max_length: 5, split:")),
        2,
        "50 of 50 rows are longer than data.max_length: 5",
    ),
    "answers that break the schema": (
        lambda p: (
            (p / "schema.json").write_text(
                '{"type": "object", "properties": {"stage": {"enum": ["I", "II"]}}}'
            ),
            bad_yaml(p, RECIPE.replace("split:", "schema: schema.json, split:")),
        ),
        3,
        "data checks of level error found rows: schema",
    ),
    "unknown model": (
        lambda p: bad_yaml(p, RECIPE.replace("base: starter", "base: nobody/nothing")),
        2,
        "nobody/nothing can't be reached and is not in the cache",
    ),
    "no such folder": (
        lambda p: bad_yaml(p, RECIPE.replace("base: starter", "base: ./nothing")),
        2,
        "there is no folder ./nothing",
    ),
    "a pickle only": (
        lambda p: (
            bad_yaml(p, RECIPE.replace("base: starter", "base: base")),
            model_folder(p, config__json={"model_type": "llama"}, pytorch_model__bin="x"),
        ),
        2,
        "the weights are a pickle (pytorch_model.bin)",
    ),
    "weights cut short": (
        lambda p: (
            bad_yaml(p, RECIPE.replace("base: starter", "base: base")),
            (model_folder(p, config__json={"model_type": "llama"}) / "model.safetensors").write_bytes(
                (100).to_bytes(8, "little")
                + b'{"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}'.ljust(100)
            ),
        ),
        2,
        "a weight file is cut short",
    ),
    "a revision of a folder": (
        lambda p: bad_yaml(p, RECIPE.replace("base: starter", "base: starter, revision: abc")),
        2,
        "model.revision is for hub ids",
    ),
    "remote code": (
        lambda p: (
            bad_yaml(p, RECIPE.replace("base: starter", "base: base")),
            model_folder(p, config__json={"model_type": "odd", "auto_map": {"AutoModelForCausalLM": "m.M"}}),
        ),
        2,
        "brings its own Python code",
    ),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("verb", ["check", "run"])
def test_bad_input(place: Path, name: str, verb: str) -> None:
    break_it, code, words = BAD[name]
    break_it(place)
    found, said = tunesmith(place, verb, "recipe.yaml")
    assert words in said
    assert found == code
    assert not list(place.glob("runs/*/data/*.npy"))  # nothing half-written


def test_json_ends_with_one_object(place: Path) -> None:
    bad_yaml(place, RECIPE.replace("name: one", "nme: one"))
    code, said = tunesmith(place, "run", "recipe.yaml", "--json")
    last = json.loads([line for line in said.splitlines() if line.startswith("{")][-1])
    assert code == last["exit"] == 2 and last["run"] is None and "nme: unknown key" in last["error"]


def test_gated_and_unknown_models_from_a_hub(place: Path, hub: str) -> None:
    environment = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub, "HF_HOME": str(place / "hf"), "HF_TOKEN": ""}
    for model, words in (
        ("meta/gated", "meta/gated is gated: its owner wants you to accept the licence first"),
        ("meta/none", "there is no folder and no hub model 'meta/none'"),
    ):
        bad_yaml(place, RECIPE.replace("base: starter", f"base: {model}"))
        code, said = tunesmith(place, "check", "recipe.yaml", **environment)
        assert words in said and code == 2
        assert "hf auth login" in said


@pytest.fixture
def hub() -> Any:
    """A hub that knows one gated model: answers as the real one does (X-Error-Code)."""
    import threading
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            gated = "/gated" in self.path
            self.send_response(403 if gated else 404)
            self.send_header("X-Error-Code", "GatedRepo" if gated else "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    server.server_close()


def test_no_read_access(place: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    (place / "rows.jsonl").chmod(0)
    code, said = tunesmith(place, "check", "recipe.yaml")
    assert code == 2 and "rows.jsonl may not be read" in said


def test_help_is_light() -> None:
    script = (
        "import sys, time; t = time.perf_counter(); from tunesmith.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'numpy', 'boto3', 'rich', 'pydantic'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


def test_recipe_problems_come_before_anything_heavy(place: Path) -> None:
    bad_yaml(place, RECIPE.replace("name: one", "nme: one"))
    script = (
        "import sys; from tunesmith.cli import main\n"
        "assert main(['check', 'recipe.yaml']) == 2\n"
        "heavy = {'torch', 'transformers', 'numpy', 'boto3', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, cwd=place)


@pytest.mark.parametrize(("text", "code"), [("word " * 3000, 2), ("Stage 1.", 3)])
def test_a_failed_check_still_gives_its_report(
    place: Path, text: str, code: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One row is too long (2), or has no answer (3)."""
    answer = ROW["output"] if code == 2 else ""
    edit_row(place, 7, json.dumps(ROW | {"input": text, "output": answer}).encode())
    monkeypatch.chdir(place)
    assert main(["check", "recipe.yaml", "--json"]) == code
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["exit"] == code and told["error"]
    assert told["report"]["inspection"]["checks"] and (place / told["page"]).is_file()


def test_what_is_stopped_and_keeps_nothing_says_so(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunesmith.verbs import check, run

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(place)
    for module, verb, told in ((check, "check", "begins again"), (run, "run", "goes on")):
        monkeypatch.setattr(module, verb, stop)
        assert main([verb, "recipe.yaml"]) == 75
        assert capsys.readouterr().err == f"stopped: the same command {told}\n"
