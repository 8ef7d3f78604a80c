"""doctor: every judgement on facts that are given to it, and the verb on this very machine."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from tunesmith.verbs.doctor import access, card, machine, needs, versions
from tunesmith.verbs.doctor.card import Card, CardFacts, covers, judge
from tunesmith.verbs.doctor.finding import Finding, worst

GIB = 1 << 30
ROOT = Path(__file__).parent.parent
ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120")
T4 = Card("Tesla T4", (7, 5), int(14.7 * GIB), int(14.5 * GIB))
H200 = Card("NVIDIA H200", (9, 0), 139 * GIB, 138 * GIB)
SOUND = CardFacts(
    torch="2.13.0",
    built_for="12.8",
    architectures=ARCHITECTURES,
    on_bus=1,
    driver=(12, 8),
    cards=(H200,),
    bitsandbytes_for=("126", "128"),
)


def states(findings: list[Finding]) -> dict[str, str]:
    return {finding.name: finding.state for finding in findings}


# ---- the card


def test_a_sound_card_is_sound() -> None:
    found = judge(SOUND)
    assert states(found) == {"card 0": "ok", "8B model": "ok"}
    assert "NVIDIA H200, 139.0 GiB, compute capability 9.0" in found[0].found


@pytest.mark.parametrize(
    "facts, name, state, says, fix",
    [
        (CardFacts(torch="2.13.0"), "card", "warn", "no NVIDIA card", "small-gpus"),
        (
            CardFacts(torch="2.13.0+cpu", on_bus=1, driver=(12, 8)),
            "card",
            "fail",
            "torch 2.13.0+cpu is a build for the CPU",
            'pip uninstall -y torch && pip install "torch>=2.11,<2.14"',
        ),
        (
            dataclasses.replace(SOUND, cards=(), driver=None),
            "card",
            "fail",
            "driver is not loaded",
            "--gpus all",
        ),
        (
            dataclasses.replace(SOUND, cards=(), visible=""),
            "card",
            "fail",
            "CUDA_VISIBLE_DEVICES='' hides",
            "unset CUDA_VISIBLE_DEVICES",
        ),
        (
            dataclasses.replace(SOUND, cards=(), built_for="13.0"),
            "driver",
            "fail",
            "built for CUDA 13.0, the driver runs CUDA 12.8",
            "update NVIDIA's driver",
        ),
        (
            dataclasses.replace(SOUND, cards=(), cuda_error="unknown error"),
            "card",
            "fail",
            "torch sees no card: unknown error",
            "nvidia-smi",
        ),
        (
            CardFacts(torch="2.13.0", torch_error="OSError: libcudart.so.12: cannot open"),
            "torch import",
            "fail",
            "can't be imported: OSError: libcudart",
            "--force-reinstall",
        ),
        (
            dataclasses.replace(SOUND, cards=(Card("Tesla V100", (7, 0), 16 * GIB, 16 * GIB),)),
            "card 0",
            "fail",
            "has no code for it",
            "CUDA 12.6",
        ),
        (
            dataclasses.replace(SOUND, bitsandbytes_for=("118", "126")),
            "bitsandbytes",
            "fail",
            "no library for CUDA 12.8 (it has 118, 126)",
            "pip install --upgrade bitsandbytes",
        ),
        (
            dataclasses.replace(SOUND, cards=(dataclasses.replace(H200, free=60 * GIB),)),
            "card memory",
            "warn",
            "79.0 GiB of card 0 are in use",
            "train.memory: 60",
        ),
        (
            dataclasses.replace(SOUND, cards=(Card("GTX 1650", (7, 5), 4 * GIB, 4 * GIB),)),
            "8B model",
            "warn",
            "does not fit",
            "1B to 3B",
        ),
    ],
)
def test_what_is_wrong_with_a_card_is_named(
    facts: CardFacts, name: str, state: str, says: str, fix: str
) -> None:
    found = {finding.name: finding for finding in judge(facts)}[name]
    assert found.state == state
    assert says in found.found and fix in (found.fix or "")


def test_a_t4_is_told_to_use_float16() -> None:
    found = judge(dataclasses.replace(SOUND, cards=(T4,)))
    assert states(found) == {"card 0": "ok", "bf16": "warn", "8B model": "ok"}
    assert (found[1].fix or "").startswith("model.dtype: float16")


def test_code_for_a_card() -> None:
    assert covers(("sm_80",), (8, 6)) and covers(("sm_90a",), (9, 0)) and covers(("compute_90",), (12, 0))
    assert not covers(("sm_80", "sm_90"), (7, 5))
    assert not covers(("sm_90",), (12, 0))  # machine code is for one generation
    assert not covers(("sm_86",), (8, 0))


def test_a_broken_torch_is_a_finding(tmp_path: Path) -> None:
    """A package named torch that raises on import, in front of the real one."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(
        "raise OSError('libc10.so: cannot open shared object file')"
    )
    done = _doctor(tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "torch import     fail  torch can't be imported: OSError: libc10.so" in done.stdout


# ---- versions


@pytest.mark.parametrize(
    "there, state, says",
    [
        ("2.13.0+cpu", "ok", "known good"),
        ("2.11.0", "ok", "known good"),
        ("2.14.0a0+git", "warn", "untested (known good: 2.11 to 2.13)"),
        ("2.10.1", "fail", "too old"),
        (None, "fail", "not installed"),
    ],
)
def test_a_package(there: str | None, state: str, says: str) -> None:
    found = versions.package("torch", there, "2.11", ("2.11", "2.13"))
    assert found.state == state and says in found.found
    assert (found.fix is None) == (state == "ok")
    if found.fix:
        assert found.fix == 'pip install "torch>=2.11,<2.14"'


@pytest.mark.parametrize(
    "there, state", [("3.10.14", "fail"), ("3.11.7", "ok"), ("3.13.1", "ok"), ("3.14.0", "fail")]
)
def test_python(there: str, state: str) -> None:
    assert versions.python(there).state == state


def test_the_table_agrees_with_what_the_package_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    floors = dict(
        match.groups() for line in project["dependencies"] if (match := re.match(r"([\w-]+)>=([\d.]+)", line))
    )
    assert set(versions.KNOWN_GOOD) <= set(floors)
    assert set(versions.required()) >= set(versions.KNOWN_GOOD)
    for name, (low, high) in versions.KNOWN_GOOD.items():
        assert _numbers(floors[name]) <= _numbers(low) <= _numbers(high), name
    first, last = versions.PYTHONS
    assert project["requires-python"] == f">={first},<3.{int(last.partition('.')[2]) + 1}"
    ci = (ROOT / ".github" / "workflows" / "ci.yml").read_text("utf-8")
    assert f'python: ["{first}", "{last}"]' in ci


# versions with which doctor --selftest passed on an H200, starter and 8B shape, 21 Nov 2026
ON_A_CARD = {
    "torch": "2.11.0",
    "transformers": "5.17.0",
    "tokenizers": "0.23.2",
    "safetensors": "0.8.0",
    "bitsandbytes": "0.50.2",
    "huggingface_hub": "1.33.0",
    "numpy": "2.5.2",
    "pydantic": "2.14.3",
}


@pytest.mark.skipif(not os.environ.get("CI"), reason="the table speaks of what CI installs")
def test_nothing_is_called_known_good_that_was_not_run() -> None:
    for name, (low, high) in versions.KNOWN_GOOD.items():
        ran = [_numbers(there)[:2] for there in (versions.installed(name), ON_A_CARD[name]) if there]
        assert max(ran) >= _numbers(high) and min(ran) <= _numbers(low), f"{name}: {low} to {high}, ran {ran}"


def test_extras_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    names = {finding.name for finding in versions.extras()}
    assert "serve" in names and names <= set(project["optional-dependencies"])
    assert not names & {"test", "dev"}


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text.partition("+")[0]))


# ---- the machine


def test_memory() -> None:
    assert machine.memory(64 * GIB, 60 * GIB).fix is None
    small = machine.memory(12 * GIB, 11 * GIB)
    assert small.state == "ok" and "takes 15" in small.found and "merged: false" in (small.fix or "")
    assert machine.memory(12 * GIB, 2 * GIB).state == "warn"


def test_disk() -> None:
    def judged(runs: float, cache: float, shared: bool = False, writable: bool = True) -> dict[str, str]:
        here, there = Path("/a"), Path("/b")
        return states(machine.disk(here, int(runs * GIB), there, int(cache * GIB), shared, writable))

    assert judged(100, 100) == {"disk: runs": "ok", "disk: hub": "ok"}
    assert judged(40, 100) == {"disk: runs": "ok", "disk: hub": "ok"}
    assert judged(40, 40, shared=True) == {"disk: runs": "warn", "disk: hub": "ok"}  # run and base together
    assert judged(1, 10) == {"disk: runs": "fail", "disk: hub": "warn"}
    read_only = machine.disk(Path("/a"), 100 * GIB, Path("/b"), 100 * GIB, False, False)
    assert worst(read_only) == "fail"


def test_threads_and_variables() -> None:
    def judged(cores: int, load: float, **environment: str) -> list[str]:
        found = machine.threads(cores, load, environment)
        return [finding.fix or finding.state for finding in found]

    assert judged(os.cpu_count() or 1, 0.1) == ["ok"]
    assert judged(2, 0.1, OMP_NUM_THREADS="2") == ["ok"]
    assert judged(2, 0.1, OMP_NUM_THREADS="16") == ["export OMP_NUM_THREADS=2"]
    assert judged(os.cpu_count() or 1, 99.0) == ["export OMP_NUM_THREADS=1, or wait for the other one"]
    assert judged(2, 9.0, OMP_NUM_THREADS="1", OMP_WAIT_POLICY="ACTIVE") == ["ok", "unset OMP_WAIT_POLICY"]
    hurting = {
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_LAUNCH_BLOCKING": "1",
        "PYTORCH_ALLOC_CONF": "backend:native",
    }
    assert [f.fix for f in machine.variables(hurting, cards=1)] == [f"unset {name}" for name in hurting]
    assert machine.variables({"PYTORCH_ALLOC_CONF": "expandable_segments:True"}, cards=1) == []


def test_small_things() -> None:
    assert machine.open_files(256).state == "warn" and machine.open_files(1024).state == "ok"
    assert machine.shared_memory(GIB // 16, cards=2).state == "warn"
    assert machine.shared_memory(GIB // 16, cards=1).state == "ok"


def test_needs_are_the_planners() -> None:
    assert abs(needs.base_bytes() / GIB - 14.96) < 0.01  # 8,030,261,248 numbers in 16 bit
    assert abs(needs.run_bytes() / GIB - (2 * 14.96 + 4 * 12 * 41_943_040 / GIB)) < 0.01
    assert needs.longest_row(4 * GIB, "bfloat16") == 0
    assert 0 < needs.longest_row(15 * GIB, "float16") < needs.longest_row(23 * GIB, "bfloat16")


# ---- access


def test_tokens_are_named_and_never_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_verysecret")
    assert access.hub_token() == Finding("hub token", "ok", "HF_TOKEN (environment)")
    monkeypatch.delenv("HF_TOKEN")
    (tmp_path / ".env").write_text("HF_TOKEN=hf_verysecret\n")
    assert access.hub_token() == Finding("hub token", "ok", "HF_TOKEN (.env)")
    assert access.aws({"AWS_ACCESS_KEY_ID": "AKIAverysecret"}, tmp_path).found == "AWS_ACCESS_KEY_ID"
    assert access.aws({}, tmp_path).fix is not None
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "credentials").write_text("[default]\naws_secret_access_key = verysecret\n")
    assert access.aws({}, tmp_path).found == str(tmp_path / ".aws" / "credentials")


# ---- the verb


def _doctor(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    plain = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "AWS_"))}
    return subprocess.run(
        [sys.executable, "-m", "tunesmith.cli", "doctor", *words],
        cwd=folder,
        env=plain | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf"), "COLUMNS": "80"} | environment,
        capture_output=True,
        text=True,
    )


def test_doctor_here(tmp_path: Path) -> None:
    done = _doctor(tmp_path, "--json", HF_TOKEN="hf_verysecret")
    *shown, last = done.stdout.splitlines()
    result = json.loads(last)
    failing = [check["name"] for check in result["checks"] if check["state"] == "fail"]
    assert done.returncode == result["exit"] == (2 if failing else 0), done.stdout
    found = {check["name"]: check for check in result["checks"]}
    assert found["torch"]["state"] != "fail" and found["hub"]["state"] == "warn"
    assert all(check["fix"] for check in result["checks"] if check["state"] != "ok")
    assert "hf_verysecret" not in done.stdout + done.stderr
    assert max(map(len, shown)) <= 80
    assert not list(tmp_path.iterdir())  # nothing is made


def test_a_hub_that_does_not_answer_costs_two_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    import huggingface_hub.constants as constants

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with socket.socket() as silent:  # takes the connection and says nothing
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        found = access.hub()
        assert found.state == "warn" and "does not answer" in found.found
        assert time.monotonic() - began < access.TIMEOUT + 60  # not for ever


def test_a_full_machine_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tunesmith.verbs.doctor.examine import doctor

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert doctor(tmp_path)["exit"] == 0
    monkeypatch.setattr(card, "look", lambda: CardFacts(torch="2.13.0+cpu", on_bus=1, driver=(12, 8)))
    assert doctor(tmp_path)["exit"] == 2


def test_a_target_is_not_available_yet(tmp_path: Path) -> None:
    done = _doctor(tmp_path, "--on", "cluster")
    assert done.returncode == 2 and "--on is not available yet" in done.stderr


def test_a_change_to_no_recipe_is_refused(tmp_path: Path) -> None:
    done = _doctor(tmp_path, "--set", "model.quantize=nf4")
    assert done.returncode == 2 and "--selftest RECIPE --set" in done.stderr
