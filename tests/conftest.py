"""What all tests share: one thread a process, and where real data lie."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

# before torch is imported: two tests side by side must not fight over the same two cores
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

REALDATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture
def realdata() -> Path:
    """Folder of real data sets: TUNESMITH_REALDATA, else ../shared/data beside the repository. Skips without."""
    folder = Path(os.environ.get("TUNESMITH_REALDATA", REALDATA))
    if not folder.is_dir():
        pytest.skip("no real data beside the repository (TUNESMITH_REALDATA names another folder)")
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` are skipped where there is none."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked:
        import torch

        if not torch.cuda.is_available():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def llama_cpp() -> Any:
    """llama-cpp-python's low-level functions. Skips where it is not installed; fails where CI=true."""
    if os.environ.get("CI") != "true":
        pytest.importorskip("llama_cpp")
    from tunesmith.generate.llama_cpp import require_llama_cpp

    return require_llama_cpp()


def pytest_unconfigure() -> None:
    """llama-cpp-python leaves two files open, which Python warns of at its end."""
    if used := sys.modules.get("llama_cpp._utils"):
        for file in (used.outnull_file, used.errnull_file):
            file.close()
