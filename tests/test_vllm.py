"""The vLLM engine against a stand-in child process (vllm_standin.py). It was not run on real vLLM here."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from live_answers import Ear, write
from vllm_standin import SCHEMA_ANSWER, logits_of

from tunesmith.errors import ModelError, SetupError
from tunesmith.generate.protocol import LiveLoad, LiveRequest, TokenEvent
from tunesmith.generate.sampling import stream_key
from tunesmith.serve.vllm import child as vllm_child
from tunesmith.serve.vllm.engine import LiveVllm

STANDIN = Path(__file__).with_name("vllm_standin.py")
ASK = LiveRequest([5, 6, 7], 6, frozenset())
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="vLLM runs on Linux")


@pytest.fixture
def program(tmp_path: Path) -> str:
    """A program `vllm`, as pip would make it."""
    path = tmp_path / "vllm"
    path.write_text(f'#!/bin/sh\nexec {sys.executable} {STANDIN} "$@"\n')
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[Any]]:
    path = tmp_path / "journal.jsonl"
    monkeypatch.setenv("STANDIN_JOURNAL", str(path))

    def told(kind: str) -> list[Any]:
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [line[kind] for line in lines if kind in line]

    return told


@pytest.fixture
def launch(program: str, tmp_path: Path) -> Iterator[Callable[..., LiveVllm]]:
    made: list[LiveVllm] = []

    def launcher(**more: Any) -> LiveVllm:
        given: dict[str, Any] = {"context": 64, "slots": 4, "program": program} | more
        made.append(LiveVllm.launch(tmp_path / "model", **given))
        return made[-1]

    yield launcher
    for one in made:
        one.close()


def adapter(folder: Path, rank: int) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"r": rank}))
    return folder


def expected(request: LiveRequest, model: str = "base") -> list[int]:
    ids = []
    for place in range(request.max_tokens):
        seed = stream_key(request.seed, 0, request.sample)
        found = logits_of(list(request.prompt), place, model, seed, request.temperature)
        ids.append(max(found, key=lambda one: found[one]))
        if ids[-1] in request.stop_ids:
            break
    return ids


def until(true: Callable[[], Any], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.02)


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_answers_side_by_side(launch: Callable[..., LiveVllm], tmp_path: Path) -> None:
    first = adapter(tmp_path / "one", 6)
    live = launch(adapters={"one": first, "other": first})
    assert live.adapters == ("one", "other") and live.room == 64 and live.slots == 4
    asked = [
        ASK,
        replace(ASK, prompt=[9], adapter="one"),
        replace(ASK, temperature=0.8, seed=4, sample=1, top=3),
        replace(ASK, stop_ids=frozenset([expected(ASK)[2]])),
        *(replace(ASK, prompt=[n], max_tokens=20) for n in range(20)),
    ]
    made = write(live, asked)
    for heard, request in zip(made, asked, strict=True):
        assert heard.ids == expected(request, request.adapter or "base")
        assert heard.end == ("stop" if request.stop_ids else "length")
        assert [len(token.top) for token in heard.tokens] == [request.top] * len(heard.tokens)
    assert made[2].tokens[0].top[0] == (made[2].tokens[0].id, made[2].tokens[0].logprob)
    assert made[2].tokens[0].top[0][1] > made[2].tokens[0].top[1][1]


def test_what_is_sent_and_where(
    launch: Callable[..., LiveVllm], journal: Callable[[str], list[Any]], tmp_path: Path
) -> None:
    live = launch(adapters={"a,b=c": adapter(tmp_path / "with space", 9)})
    folder = live._child.folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    write(live, [replace(ASK, top_p=0.0, temperature=1.0)])
    (argv,), (key,), (body,) = journal("argv"), journal("key"), journal("asked")
    assert key not in " ".join(argv) and len(key) > 40
    assert argv[argv.index("--max-lora-rank") + 1] == "16"
    assert argv[argv.index("--uds") + 1].startswith(str(folder)) and "--port" not in argv
    assert body["ignore_eos"] and body["top_p"] > 0 and body["repetition_penalty"] == 1
    assert not folder.exists()  # closed: the log and the socket are gone


def test_prompts_told_and_schemas_held(launch: Callable[..., LiveVllm]) -> None:
    schema = {"type": "object"}
    told, scored, nothing, held = write(
        launch(),
        [
            replace(ASK, prompt_logprobs=True, top=2),
            replace(ASK, prompt_logprobs=True, max_tokens=0),
            replace(ASK, max_tokens=0),
            replace(ASK, schema=schema, stop_ids=frozenset(SCHEMA_ANSWER[-1:])),
        ],
    )
    assert held.ids == SCHEMA_ANSWER and held.end == "stop"
    assert told.ids == expected(ASK) and not scored.tokens and not nothing.tokens and not nothing.prompt
    for heard, top in ((told, 2), (scored, 0)):
        assert [token.id for token in heard.prompt] == [5, 6, 7] and math.isnan(heard.prompt[0].logprob)
        assert [len(token.top) for token in heard.prompt] == [0, top, top]
        found = logits_of([5], 0, "base", 0, 0)
        assert heard.prompt[1].logprob == found.get(6, -9.0)


def test_requests_that_cannot_be_answered(launch: Callable[..., LiveVllm]) -> None:
    live, ear = launch(), Ear()
    live.start(ear)
    for wrong, says in (
        (replace(ASK, prompt=[]), "the prompt is empty"),
        (replace(ASK, max_tokens=62), "more than the 64"),
        (replace(ASK, adapter="x"), "no adapter 'x'"),
        (replace(ASK, top=21), "at most 20 tokens are told"),
        (replace(ASK, temperature=-1), "may not be negative"),
    ):
        with pytest.raises(ModelError, match=says):
            live.submit(1, wrong)
    assert live.load() == LiveLoad(0, 0, 0)
    live.submit(2, replace(ASK, prompt=[10**6]))  # only vLLM knows its vocabulary
    live.submit(3, ASK)
    ear.wait(2, 3)
    assert ear.heard[2].end == "failed" and "refuses the request (400): Token id" in str(ear.heard[2].error)
    assert ear.heard[3].ids == expected(ASK)


def test_a_ticket_that_comes_again_is_not_ended_by_the_first(launch: Callable[..., LiveVllm]) -> None:
    live, ends, done = launch(), list[str](), threading.Event()

    def hear(events: Sequence[TokenEvent]) -> None:
        for event in events:
            if event.end:
                ends.append(event.end)
                if len(ends) < 4:
                    live.submit(1, ASK)
                else:
                    done.set()

    live.start(hear)
    live.submit(1, ASK)
    assert done.wait(60) and ends == ["length"] * 4
    until(lambda: live.load() == LiveLoad(0, 0, 4 * 6))


def test_a_cancel_closes_the_stream(
    launch: Callable[..., LiveVllm], journal: Callable[[str], list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDIN_WAIT", "0.02")
    live, ear = launch(context=4096), Ear()
    live.start(ear)
    long = replace(ASK, max_tokens=4000)
    live.submit(0, long)
    live.submit(1, replace(long, prompt=[8]))
    ear.wait(0, 1, tokens=3)
    live.cancel(0)
    ear.wait(0)
    assert ear.heard[0].end == "cancelled"
    until(lambda: journal("disconnected"))
    assert journal("disconnected") == [[5, 6, 7]] and journal("place")[0] < 3000
    live.submit(2, long)
    live.cancel(2)  # at once, perhaps before it was sent
    live.cancel(99)
    ear.wait(2)
    assert ear.heard[2].end == "cancelled" and live.load().active == 1
    live.close()
    assert ear.heard[1].end == "cancelled"
    with pytest.raises(ModelError):
        live.submit(3, ASK)


@pytest.mark.parametrize(
    "mode, says", [("error", "CUDA out of memory"), ("cut", "the stream ended before the answer")]
)
def test_an_answer_that_breaks_off(
    launch: Callable[..., LiveVllm], monkeypatch: pytest.MonkeyPatch, mode: str, says: str
) -> None:
    monkeypatch.setenv("STANDIN_MODE", mode)
    (heard,) = write(launch(), [ASK])
    assert heard.end == "failed" and says in str(heard.error) and len(heard.tokens) == 3


def test_a_child_that_dies_is_told_and_stays_dead(
    launch: Callable[..., LiveVllm], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STANDIN_MODE", "dies")
    live, ear = launch(), Ear()
    live.start(ear)
    live.submit(0, ASK)
    ear.wait(0)
    assert ear.heard[0].end == "failed" and "vLLM has ended with exit code 9" in str(ear.heard[0].error)
    with pytest.raises(ModelError, match="vLLM has ended with exit code 9"):
        live.submit(1, ASK)
    until(lambda: "it is not started again" in capsys.readouterr().err)


def test_it_tells_how_far_it_is(
    launch: Callable[..., LiveVllm], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said: list[str] = []
    go_on = tmp_path / "go-on"  # it says the next line once the last one was told
    monkeypatch.setenv("STANDIN_START", str(go_on))

    def told(line: str) -> None:
        said.append(line)
        with go_on.open("a") as file:
            file.write("x" if line else "")

    launch(told=told)
    assert [line for line in said if line] == ["loading weights", "compiling", "almost there"]


def test_a_start_that_fails(
    launch: Callable[..., LiveVllm], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STANDIN_MODE", "fails")
    with pytest.raises(ModelError, match="exit code 3: ValueError: the card has 0 bytes left"):
        launch()
    assert "(bye)" in capsys.readouterr().err


def test_a_start_that_never_ends(
    launch: Callable[..., LiveVllm], monkeypatch: pytest.MonkeyPatch, journal: Callable[[str], list[Any]]
) -> None:
    monkeypatch.setenv("STANDIN_MODE", "never")
    now = [0.0]

    def told(line: str) -> None:  # an hour goes by once it has said its last
        now[0] += 3600.0 * (line == "almost there")

    monkeypatch.setattr(vllm_child, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=time.sleep))
    with pytest.raises(ModelError, match="did not answer within 1200 s; the last it said: almost there"):
        launch(told=told)
    (pid,) = journal("started")
    assert is_gone(pid)


def test_a_vllm_that_leaves_adapters_out(
    launch: Callable[..., LiveVllm], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    place = tempfile.mkdtemp(
        dir="/tmp"
    )  # others make such folders in the usual place; a socket's path is short
    monkeypatch.setattr(tempfile, "tempdir", place)
    monkeypatch.setenv("STANDIN_MODE", "nameless")
    with pytest.raises(ModelError, match="does not answer as one"):
        launch(adapters={"one": adapter(tmp_path / "one", 8)})
    with pytest.raises(ModelError, match="can't be named 'base'"):
        launch(adapters={"base": tmp_path / "one"})
    with pytest.raises(ModelError, match="up to rank 512"):
        launch(adapters={"big": adapter(tmp_path / "big", 1024)})
    with pytest.raises(ModelError, match="the adapter can't be read"):
        launch(adapters={"none": tmp_path / "none"})
    Path(place).rmdir()  # no folder is left


def test_without_vllm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.delenv(vllm_child.COMMAND, raising=False)
    with pytest.raises(SetupError, match=r"vLLM is not installed[\s\S]*pip install vllm"):
        vllm_child.find_vllm()
    monkeypatch.setenv(vllm_child.COMMAND, str(tmp_path / "nowhere"))
    with pytest.raises(SetupError, match="there is no program"):
        vllm_child.find_vllm()
    (tmp_path / "vllm").write_text("#!/bin/sh\n")
    (tmp_path / "vllm").chmod(0o755)
    monkeypatch.setenv(vllm_child.COMMAND, str(tmp_path / "vllm"))
    assert vllm_child.find_vllm() == str(tmp_path / "vllm")


def test_without_httpx(launch: Callable[..., LiveVllm], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(SetupError, match=r"needs httpx[\s\S]*tunesmith\[vllm\]"):
        launch()


PARENT = """
import sys, time
from pathlib import Path
from tunesmith.serve.vllm.engine import LiveVllm
live = LiveVllm.launch(Path("model"), context=64, slots=4, program=sys.argv[1])
print(live._child.folder, flush=True)
if sys.argv[2] == "close":
    live.close()
time.sleep(60)
"""


@pytest.mark.parametrize("how", ["close", "kill", "keeper"])
def test_no_process_is_left(
    program: str,
    journal: Callable[[str], list[Any]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    how: str,
) -> None:
    """Closed, or tunesmith killed: vLLM ends, and so does a process of its that has left its group."""
    monkeypatch.setenv("STANDIN_MODE", "grandchild")
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, program, how], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    with parent:
        assert parent.stdout is not None
        folder = Path(parent.stdout.readline().strip())
        (child,), (grandchild,) = journal("started"), journal("grandchild")
        if how == "kill":
            assert not is_gone(child) and not is_gone(grandchild) and folder.is_dir()
            parent.send_signal(signal.SIGKILL)
        if how == "keeper":
            keeper = int(Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[1])
            assert keeper not in (os.getpid(), parent.pid)
            os.kill(keeper, signal.SIGKILL)
        until(lambda: is_gone(child))
        if how != "keeper":  # a killed keeper can end only its own child
            until(lambda: is_gone(grandchild))
        else:
            os.kill(grandchild, signal.SIGKILL)
            shutil.rmtree(folder)
        parent.kill()
        if how != "keeper":
            until(lambda: not folder.exists())
