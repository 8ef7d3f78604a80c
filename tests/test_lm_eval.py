"""lm-eval against our server, unchanged: local-completions (likelihoods, answers) and local-chat-completions.

It brings `datasets` and pins of its own, so `make test-system` makes an environment for it, and names its program:

    TUNESMITH_LM_EVAL=.venv/lm-eval/bin/lm_eval python -m pytest -m system tests/test_lm_eval.py
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from served_models import served_at, starter_contract, starter_served

from tunesmith import starter
from tunesmith.base import resolve
from tunesmith.example import Message
from tunesmith.generate.protocol import Decoding
from tunesmith.generate.slots import SlotGenerator
from tunesmith.model.load import load_model
from tunesmith.recipe import Model

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]

ROWS = [
    {
        "question": "Review of a 43-year-old man. The stage is",
        "choices": ["IIB", "IV", "unknown"],
        "answer": 1,
    },
    {
        "question": "Findings: a mass of 3 cm in the left",
        "choices": ["lung", "breast", "ಶ್ವಾಸಕೋಶ"],
        "answer": 0,
    },
    {"question": "She lives alone and walks", "choices": ["daily", "😀", "to the tumour"], "answer": 0},
]
LIKELIHOOD = """
task: choices
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc}}]
"""
ANSWERS = """
task: answers
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{choices[answer]}}}}"
generation_kwargs: {{until: ["\\n\\n"], max_gen_toks: 12, do_sample: false, temperature: 0}}
metric_list: [{{metric: exact_match}}]
"""


@pytest.fixture(scope="module")
def lm_eval() -> str:
    found = os.environ.get("TUNESMITH_LM_EVAL") or shutil.which("lm_eval")
    if not found:
        if os.environ.get("CI"):
            pytest.fail("no lm_eval; make test-system brings one")
        pytest.skip("no lm_eval (TUNESMITH_LM_EVAL names it); make test-system brings one")
    return found


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served_at(starter_served()) as made:
        yield made


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "choices.yaml").write_text(LIKELIHOOD.format(rows=rows))
    (folder / "answers.yaml").write_text(ANSWERS.format(rows=rows))
    return folder


def run(
    lm_eval: str, kind: str, url: str, task: str, tasks: Path, out: Path, *more: str
) -> list[dict[str, Any]]:
    """The samples of one task, in the order of the rows."""
    about = [
        "model=starter", f"base_url={url}", "num_concurrent=4", "max_retries=1", "tokenizer_backend=huggingface",
        f"tokenizer={starter.base_folder()}", "max_length=1000", "timeout=100",
    ]  # fmt: skip
    line = [
        lm_eval,
        "--model",
        kind,
        "--model_args",
        ",".join(about),
        "--tasks",
        task,
        "--include_path",
        str(tasks),
    ]
    line += ["--output_path", str(out), "--log_samples", *more]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(out / "cache"), "OPENAI_API_KEY": "none"}
    done = subprocess.run(line, capture_output=True, text=True, env=os.environ | offline, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (file,) = out.glob(f"**/samples_{task}_*.jsonl")
    samples = [json.loads(one) for one in file.read_text().splitlines()]
    return sorted(samples, key=lambda sample: int(sample["doc_id"]))


def test_likelihoods_are_the_models(lm_eval: str, url: str, tasks: Path, tmp_path: Path) -> None:
    samples = run(lm_eval, "local-completions", f"{url}/v1/completions", "choices", tasks, tmp_path)
    model, contract = load_model(resolve(Model(base="starter")), dtype="float32"), starter_contract()
    model.set_attn_implementation("sdpa")
    for row, sample in zip(ROWS, samples, strict=True):
        for choice, answer in zip(row["choices"], sample["resps"], strict=True):  # type: ignore[call-overload]
            context = contract.tokens_of(str(row["question"]))
            ids = contract.tokens_of(f"{row['question']} {choice}")
            logp = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1].log_softmax(-1)
            each = logp.gather(1, torch.tensor(ids[1:])[:, None])[len(context) - 1 :, 0]
            greedy = (logp.argmax(-1) == torch.tensor(ids[1:]))[len(context) - 1 :].all().item()
            value, is_greedy = answer[0]
            assert float(value) == pytest.approx(each.sum().item(), abs=1e-3)
            assert str(is_greedy) == str(greedy)


def _expected(prompts: list[list[int]]) -> list[str]:
    model, contract = load_model(resolve(Model(base="starter")), dtype="float32"), starter_contract()
    made = list(SlotGenerator(model, slots=1).generate(prompts, Decoding(12), contract.stop_ids))
    return [contract.decode(one.ids).partition("\n\n")[0] for one in sorted(made, key=lambda one: one.index)]


def test_answers_to_plain_text(lm_eval: str, url: str, tasks: Path, tmp_path: Path) -> None:
    samples = run(lm_eval, "local-completions", f"{url}/v1/completions", "answers", tasks, tmp_path)
    contract = starter_contract()
    expected = _expected([contract.tokens_of(str(row["question"])) for row in ROWS])
    assert [sample["resps"][0][0] for sample in samples] == expected


def test_answers_to_chats(lm_eval: str, url: str, tasks: Path, tmp_path: Path) -> None:
    samples = run(
        lm_eval, "local-chat-completions", f"{url}/v1/chat/completions", "answers", tasks, tmp_path,
        "--apply_chat_template",
    )  # fmt: skip
    contract = starter_contract()
    expected = _expected([contract.prompt_ids([Message("user", str(row["question"]))]) for row in ROWS])
    assert [sample["resps"][0][0] for sample in samples] == expected
