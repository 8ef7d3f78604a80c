"""Lines, signals and the record of the machine."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tunesmith.run import Run
from tunesmith.train.environment import why_inexact
from tunesmith.train.log import Log

CPU = torch.device("cpu")


def line(step: int) -> dict[str, Any]:
    return {"step": step, "loss": 1 / step, "validation_loss": None, "learning_rate": 0.1, "gradient_norm": 1.0,
            "tokens": 10 * step, "learned_tokens": step}  # fmt: skip


def write(run: Run, keep: int, steps: range) -> None:
    with Log(run, keep=keep, device=CPU) as log:
        for step in steps:
            log.metrics(line(step))


def test_a_resumed_log_is_the_same_file(tmp_path: Path) -> None:
    whole, resumed = Run(tmp_path / "whole"), Run(tmp_path / "resumed")
    whole.path.mkdir()
    resumed.path.mkdir()
    write(whole, 0, range(1, 9))
    write(resumed, 0, range(1, 7))
    with resumed.metrics_file.open("a") as file:
        file.write('{"step": 7, "lo')  # torn by the kill
    write(resumed, 4, range(5, 9))
    assert resumed.metrics_file.read_bytes() == whole.metrics_file.read_bytes()
    assert len(resumed.timing_file.read_text().splitlines()) == 8


def test_a_fresh_start_drops_the_lines_of_an_earlier_try(tmp_path: Path) -> None:
    run = Run(tmp_path)
    write(run, 0, range(1, 5))
    write(run, 0, range(1, 3))
    assert len(run.metrics_file.read_text().splitlines()) == 2


def test_a_number_that_is_not_finite_never_becomes_a_line(tmp_path: Path) -> None:
    with Log(Run(tmp_path), keep=0, device=CPU) as log, pytest.raises(ValueError, match="JSON"):
        log.metrics(line(1) | {"loss": float("nan")})


WAITING = """
import time
from tunesmith.train.signals import StopRequest
with StopRequest() as stop:
    print("ready", flush=True)
    while stop.signal is None:
        time.sleep(0.01)
    print("asked", flush=True)
    time.sleep(float({seconds}))
print(stop.signal.name, flush=True)
"""


SAME_MOMENT = "from tunesmith.train import signals\nsignals.time = type('', (), {'monotonic': lambda: 0.0})\n"


def signalled(seconds: float, *numbers: signal.Signals, before: str = "") -> tuple[int, str]:
    """Exit code and last output of a process that gets these signals, 0.1 s apart, while it is at work."""
    command = [sys.executable, "-c", before + WAITING.format(seconds=seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(numbers[0])
        assert process.stdout.readline() == "asked\n"
        for number in numbers[1:]:
            time.sleep(0.1)
            process.send_signal(number)
        rest = process.stdout.read()
        return process.wait(), rest.strip()


def test_the_first_signal_asks_and_the_second_leaves() -> None:
    assert signalled(0.2, signal.SIGTERM) == (0, "SIGTERM")
    assert signalled(100, signal.SIGINT, signal.SIGINT) == (-signal.SIGINT, "")
    assert signalled(100, signal.SIGINT, signal.SIGTERM) == (-signal.SIGTERM, "")


def test_one_cancel_that_sends_two_sigterms_is_one_request() -> None:
    """Slurm signals the process, and so does the trap of the batch script."""
    assert signalled(0.5, signal.SIGTERM, signal.SIGTERM, before=SAME_MOMENT) == (0, "SIGTERM")


def test_what_makes_a_resume_inexact() -> None:
    before = {"device": "a", "threads": 2, "deterministic": False, "torch": "2.13.0", "cuda": None}
    assert why_inexact(before, before) == []
    assert why_inexact(before, before | {"threads": 8}) == ["threads was 2, is 8"]
    assert why_inexact(before, before | {"torch": "2.14.0"}) == ["torch was 2.13.0, is 2.14.0"]
    card = before | {"cuda": "13.0"}
    assert "train.deterministic" in why_inexact(card, card)[0]
    assert why_inexact(card | {"deterministic": True}, card | {"deterministic": True}) == []
