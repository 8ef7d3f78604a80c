"""What bits depend on besides recipe and rows: device, threads, versions, kernels. Set, recorded, compared."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from tunesmith import __version__


def choose_device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    return (
        torch.device("cuda", torch.cuda.current_device())
        if torch.cuda.is_available()
        else torch.device("cpu")
    )


def set_up(*, deterministic: bool, threads: int | None) -> None:
    """Fixes the number of CPU threads (that of the run's first start, where cores allow) and the choice of kernels."""
    if threads is not None and threads <= _cores():
        torch.set_num_threads(threads)
    else:
        torch.set_num_threads(
            torch.get_num_threads()
        )  # without this call the library may change it by itself
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        os.environ.setdefault("FLASH_ATTENTION_DETERMINISTIC", "1")
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = False


def hold_to(memory: float | str, device: torch.device) -> None:
    """Makes `train.memory` (GiB) the most that the allocator takes of the card: beyond it is out of memory."""
    if memory != "auto" and device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, float(memory) * 2**30 / total), device)


def release(device: torch.device) -> None:
    """Undoes `hold_to` and `deterministic`: the stages after training have their own needs."""
    torch.use_deterministic_algorithms(False)
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def describe(device: torch.device, *, deterministic: bool, ranks: int = 1) -> dict[str, Any]:
    """The record that a checkpoint carries."""
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else _processor(),
        "threads": torch.get_num_threads(),
        "deterministic": deterministic,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cuda": torch.version.cuda if cuda else None,
        "ranks": ranks,
        **({"nccl": _nccl()} if cuda and ranks > 1 else {}),
        "python": platform.python_version(),
        "tunesmith": __version__,
        **{name: _version(name) for name in ("torch", "transformers", "bitsandbytes", "numpy")},
    }


def why_inexact(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Why a resumed run may differ in its last bits from one that was never stopped; empty: it is exact."""
    before = {"ranks": 1} | dict(before)  # what was written before there were several
    reasons = [f"{key} was {before.get(key)}, is {now[key]}" for key in now if before.get(key) != now[key]]
    if now["cuda"] and not now["deterministic"]:
        reasons.append("GPU kernels may add in another order (train.deterministic: true asks for one order)")
    if now["cuda"] and now.get("ranks", 1) > 2:
        reasons.append("NCCL chooses the order in which more than two GPUs' gradients are added")
    return reasons


def _nccl() -> str:
    """Another version may add in another order."""
    return ".".join(str(part) for part in torch.cuda.nccl.version())  # type: ignore[no-untyped-call]


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    """The CPU's name: other kernels may be picked on another."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
