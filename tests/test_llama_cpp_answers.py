"""Files of answers by a GGUF model: the way of evaluate, export and predict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunesmith import starter
from tunesmith.answers import answer_rows
from tunesmith.contract import Contract
from tunesmith.example import Example, Message
from tunesmith.export.gguf.write import write_gguf
from tunesmith.generate.llama_cpp import LlamaGenerator, LlamaModel
from tunesmith.generate.protocol import Decoding
from tunesmith.starter import reports
from tunesmith.tasks import make_task


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, llama_cpp: Any) -> Path:
    folder, contract = tmp_path_factory.mktemp("gguf"), Contract.make(starter.base_folder())
    for kind in ("F16", "Q8_0"):
        write_gguf(starter.base_folder(), folder / f"{kind}.gguf", kind, contract)
    return folder


def test_interrupted_answers_go_on_and_other_weights_begin_anew(folder: Path, tmp_path: Path) -> None:
    rows = [
        Example(f"row-{i}", (Message("user", str(row["input"])[:120]), Message("assistant", "x", True)))
        for i, row in enumerate(reports.rows("test", 9))
    ]
    contract, task = Contract.make(starter.base_folder()), make_task("text")
    decoding, counted = Decoding(max_tokens=16), []

    def write(out: Path, kind: str, after: int = 10**6) -> list[dict[str, Any]]:
        def stops(done: int) -> None:
            counted.append(done)
            if sum(counted) > after:
                raise KeyboardInterrupt

        counted.clear()
        with LlamaModel.open(folder / f"{kind}.gguf", context=512, slots=3) as model:
            answer_rows(rows, contract, LlamaGenerator(model), task, decoding, out, stops)
        return [json.loads(line) for line in out.read_text().splitlines()]

    whole = write(tmp_path / "whole.jsonl", "F16")
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "cut.jsonl", "F16", after=4)
    cut = write(tmp_path / "cut.jsonl", "F16")
    assert counted[0] == 5 and sum(counted) == 9  # five were there
    assert [row["answer"] for row in cut] == [row["answer"] for row in whole]
    other = write(tmp_path / "whole.jsonl", "Q8_0")
    assert counted[0] == 0 and other[0]["made_by"] != whole[0]["made_by"] == cut[0]["made_by"]
