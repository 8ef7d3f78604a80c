"""Data sets from a hub: the real client against a real server that speaks the hub's API."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

COMMIT, OLD = "a" * 40, "b" * 40
FILES = {
    "README.md": b"# rows",
    "data/train-00000-of-00002.jsonl": b'{"prompt": "1", "completion": "a"}\n',
    "data/train-00001-of-00002.jsonl": b'{"prompt": "2", "completion": "b"}\n',
    "data/test-00000-of-00001.jsonl": b'{"prompt": "3", "completion": "c"}\n',
}
SCRIPT = """
import json, sys
from tunesmith.data.read.files import read_rows
from tunesmith.data.sources import resolve_sources
from tunesmith.errors import TunesmithError
from tunesmith.recipe import Data
try:
    sources = resolve_sources(Data.model_validate(json.loads(sys.argv[1])))
    rows = [[row for _, row in read_rows(one.path, one.name)] for one in sources]
    print(json.dumps([[s.split, s.name, s.revision, s.weight, r] for s, r in zip(sources, rows)]))
except TunesmithError as error:
    print(json.dumps({"error": str(error), "kind": type(error).__name__}))
"""


class Hub(BaseHTTPRequestHandler):
    """Knows one open data set with two commits, and a gated one."""

    asked: list[str]  # what was downloaded or listed
    down: bool

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = self.path.partition("?")[0]
        if body:
            type(self).asked.append(path)
        if type(self).down:
            self._send(503, b"")
        elif "/gated" in path:
            self._send(403, b"", {"X-Error-Code": "GatedRepo"})
        elif "/open" not in path:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif path.startswith("/api/"):
            revision = path.partition("/revision/")[2] or "main"
            commit = {"main": COMMIT, "v1": OLD, COMMIT: COMMIT, OLD: OLD}.get(revision)
            if commit is None:
                self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
                return
            names = list(FILES) if commit == COMMIT else ["rows.csv"]
            listed = {"id": "o/open", "sha": commit, "siblings": [{"rfilename": name} for name in names]}
            self._send(200, json.dumps(listed).encode(), {"Content-Type": "application/json"})
        else:
            commit, _, name = path.partition("/resolve/")[2].partition("/")
            content = FILES[name] if commit == COMMIT else b"prompt,completion\nold,row\n"
            etag = hashlib.sha1(content, usedforsecurity=False).hexdigest()
            self._send(
                200, content if body else b"", {"ETag": f'"{etag}"', "X-Repo-Commit": commit}, len(content)
            )

    def _send(
        self, code: int, content: bytes, headers: dict[str, str] | None = None, size: int | None = None
    ) -> None:
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content) if size is None else size))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[tuple[str, type[Hub]]]:
    class Fresh(Hub):
        pass

    Fresh.asked, Fresh.down = [], False
    server = ThreadingHTTPServer(("127.0.0.1", 0), Fresh)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", Fresh
    server.shutdown()
    server.server_close()


def resolve(endpoint: str, home: Path, data: dict[str, Any], **more: str) -> Any:
    environment = os.environ | {
        "HF_HUB_OFFLINE": "0",
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_TOKEN": "",
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(data)],
        env=environment | more,
        capture_output=True,
        text=True,
        check=True,
        cwd=home,
    )
    return json.loads(done.stdout)


def row(number: str, answer: str) -> list[dict[str, str]]:
    return [{"prompt": number, "completion": answer}]


def test_the_files_of_each_split_and_no_others(hub: tuple[str, type[Hub]], tmp_path: Path) -> None:
    endpoint, server = hub
    train = {"train": [{"hub": "o/open", "weight": 2}]}
    shards = [
        ["train", "o/open/data/train-00000-of-00002.jsonl", COMMIT, 2.0, row("1", "a")],
        ["train", "o/open/data/train-00001-of-00002.jsonl", COMMIT, 2.0, row("2", "b")],
    ]
    assert resolve(endpoint, tmp_path, train) == shards
    fetched = [path for path in server.asked if "/resolve/" in path]
    assert len(fetched) == 2 and all("train-" in path for path in fetched)
    # again: from the cache; then with a second split, of which only the new file is fetched
    server.asked.clear()
    assert resolve(endpoint, tmp_path, train) == shards
    assert not [path for path in server.asked if "/resolve/" in path]
    both = resolve(endpoint, tmp_path, train | {"test": [{"hub": "o/open"}]})
    assert both[2:] == [["test", "o/open/data/test-00000-of-00001.jsonl", COMMIT, 1.0, row("3", "c")]]
    # the hub is away: the cache does, whether it is known (offline) or found out (an error of the server)
    server.down = True
    assert resolve(endpoint, tmp_path, train) == shards
    assert resolve("http://127.0.0.1:1", tmp_path, train) == shards
    assert resolve("http://127.0.0.1:1", tmp_path, train, HF_HUB_OFFLINE="1") == shards


def test_revisions_and_patterns(hub: tuple[str, type[Hub]], tmp_path: Path) -> None:
    endpoint, _ = hub
    for revision in ("v1", OLD):
        ((split, name, commit, _, rows),) = resolve(
            endpoint, tmp_path, {"train": [{"hub": "o/open", "revision": revision}]}
        )
        assert (split, name, commit, rows) == ("train", "o/open/rows.csv", OLD, row("old", "row"))
    chosen = resolve(endpoint, tmp_path, {"train": [{"hub": "o/open", "files": "data/test-*"}]})
    assert [one[1] for one in chosen] == ["o/open/data/test-00000-of-00001.jsonl"]


@pytest.mark.parametrize(
    "source, said",
    [
        ({"hub": "o/gated"}, "o/gated is gated: its owner wants you to accept the licence first"),
        ({"hub": "o/none"}, "there is no hub data set 'o/none' (or it is private)"),
        ({"hub": "o//"}, "there is no hub data set 'o//'"),
        ({"hub": "o/open", "revision": "v9"}, "o/open has no revision 'v9'"),
        (
            {"hub": "o/open", "files": "x/*"},
            "no file of o/open fits 'x/*': it has data/test-00000-of-00001.jsonl",
        ),
    ],
)
def test_what_the_hub_refuses(
    hub: tuple[str, type[Hub]], tmp_path: Path, source: dict[str, str], said: str
) -> None:
    told = resolve(hub[0], tmp_path, {"train": [source]})
    assert said in told["error"] and "data.train" in told["error"]
    assert told["kind"] == ("RecipeError" if "files" in source else "AccessError")
    if "gated" in said:
        assert "hf auth login" in told["error"]


@pytest.mark.parametrize("offline", ["0", "1"])
def test_no_hub_and_no_cache(tmp_path: Path, offline: str) -> None:
    told = resolve("http://127.0.0.1:1", tmp_path, {"train": [{"hub": "o/open"}]}, HF_HUB_OFFLINE=offline)
    assert "o/open can't be reached and is not in the cache" in told["error"]
    assert told["kind"] == "AccessError" and "check the network" in told["error"]


def test_shards_that_were_never_downloaded_are_told(hub: tuple[str, type[Hub]], tmp_path: Path) -> None:
    """The mutant is a cache with half of the shards: offline it must not pass for the whole data set."""
    endpoint, _ = hub
    one = {"train": [{"hub": "o/open", "files": "data/train-00000*"}]}
    assert len(resolve(endpoint, tmp_path, one)) == 1
    told = resolve(endpoint, tmp_path, {"train": [{"hub": "o/open"}]}, HF_HUB_OFFLINE="1")
    assert "are 2 files, of which 1 are there" in told["error"]
