"""The plan of the house is kept, and the check that says so fails when it isn't."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from architecture import COMPUTE, FLOOR, HEAVY, LATE, problems

import tunesmith

ROOT = Path(tunesmith.__file__).parent
HELP_SECONDS = 0.3


def test_the_house_is_as_planned() -> None:
    assert problems(ROOT) == []


def test_rooms_that_compute_exist() -> None:
    assert set(FLOOR) >= COMPUTE


MUTANTS = {
    "a stage imports another": (
        "train/loop.py",
        "from tunesmith.evaluate.score import score",
        "stands beside",
    ),
    "… inside a function": (
        "train/loop.py",
        "def f():\n    import tunesmith.evaluate.score",
        "stands beside",
    ),
    "… for types only": (
        "train/loop.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from tunesmith.evaluate import score",
        "stands beside",
    ),
    "… relatively": ("train/loop.py", "from ..evaluate import score", "stands beside"),
    "… by name": ("train/loop.py", "TABLE = {'score': 'tunesmith.evaluate.score:score'}", "stands beside"),
    "upward": ("contract.py", "from tunesmith.run import Run", "stands above"),
    "upward from the package": ("__init__.py", "from tunesmith import errors", "stands above"),
    "upward in a room": (
        "data/read/files.py",
        "from tunesmith.data.inspect.phi import personal",
        "inside data/",
    ),
    "a circle in a room": ("train/step.py", "from tunesmith.train.loop import f", "circle"),
    "torch in a light room": ("data/prepare.py", "import torch.nn", "heavy"),
    "a heavy room in a light one": ("pipeline.py", "from tunesmith.train.loop import f", "heavy"),
    "matplotlib at the top": ("evaluate/score.py", "from matplotlib import pyplot", "heavy"),
    "a file without a name": ("train/utils.py", "", "named by what it does"),
    "a room without a floor": ("extras/it.py", "", "has no floor"),
    "a long file": ("train/order.py", "x = 1\n" * 400, "401 lines"),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutants_are_found(tmp_path: Path, mutant: str) -> None:
    sound = {
        "__init__.py": "",
        "errors.py": "",
        "contract.py": "from tunesmith import errors",
        "run.py": "from tunesmith.errors import E",
        "data/prepare.py": "def f():\n    import torch",
        "train/loop.py": "import torch\nfrom tunesmith.train import step\nfrom tunesmith.run import Run",
        "train/step.py": '"""tunesmith.evaluate"""',
        "evaluate/score.py": "def f():\n    import matplotlib",
        "pipeline.py": "def f():\n    from tunesmith.train.loop import f",
    }
    for name, text in sound.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert problems(tmp_path) == []
    name, text, said = MUTANTS[mutant]
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text((path.read_text() if path.exists() else "") + "\n" + text)
    found = problems(tmp_path)
    assert len(found) == 1 and said in found[0], found


def test_help_is_light_and_quick() -> None:
    code = (
        "import sys, json\n"
        "from tunesmith.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "run" in done.stdout
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert not loaded & (HEAVY | LATE | {"numpy", "pydantic"})
    took = []
    for _ in range(5):
        begin = _processor_seconds()
        subprocess.run([sys.executable, "-m", "tunesmith.cli", "--help"], capture_output=True, check=True)
        took.append(_processor_seconds() - begin)
    print(f"tunesmith --help: {min(took):.3f} s of a processor, best of {len(took)}")
    assert 0 < min(took) < HELP_SECONDS


def _processor_seconds() -> float:
    """What programs started from here have used: other programs on a busy machine do not count."""
    used = os.times()
    return used.children_user + used.children_system
