"""Models fetched from S3, over HTTP of moto's server: whole and checked, or not there; killed midway; odd names."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from exported_run import make_exported_run

from tunesmith.contract import Contract
from tunesmith.errors import AccessError, ModelError
from tunesmith.opened.model import open_model
from tunesmith.opened.place import find_model
from tunesmith.serve.models import ServedModels
from tunesmith.serve.protocol import ModelStatus
from tunesmith.starter import base_folder
from tunesmith.store.fetched import fetched

RUNS = Path("no-runs")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    yield f"http://{host}:{port}"
    moto.stop()


@pytest.fixture
def aws(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A client with a bucket of its own; the cache lies in tmp_path/cache."""
    import boto3

    for name, value in {
        "AWS_ENDPOINT_URL": server, "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(tmp_path / "none"), "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    bucket = f"b-{hashlib.sha256(str(tmp_path).encode()).hexdigest()[:20]}"
    client.create_bucket(Bucket=bucket)
    client.bucket = bucket
    return client


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The starter's base as `export` writes a merged folder: contract and checksums beside it."""
    made = tmp_path / "made"
    made.mkdir()
    Contract.make(base_folder()).save(made)
    for name in ("config.json", "model.safetensors"):
        (made / name).write_bytes((base_folder() / name).read_bytes())
    sum_up(made)
    return made


def sum_up(folder: Path) -> None:
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
        for path in sorted(folder.iterdir())
        if path.name != "SHA256SUMS"
    ]
    (folder / "SHA256SUMS").write_text("".join(lines))


def upload(aws: Any, folder: Path, prefix: str = "models/mine", without: str = "") -> str:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != without:
            aws.put_object(
                Bucket=aws.bucket, Key=f"{prefix}/{path.relative_to(folder)}", Body=path.read_bytes()
            )
    return f"s3://{aws.bucket}/{prefix}"


def cached(tmp_path: Path) -> list[str]:
    """Names in the cache that anybody would read: hidden ones are at work."""
    return sorted(
        one.name for one in (tmp_path / "cache").glob("tunesmith/s3/*/*") if not one.name.startswith(".")
    )


def test_a_folder(aws: Any, folder: Path, tmp_path: Path) -> None:
    (folder / "modeling.py").write_text("raise SystemExit('code ran')")
    (folder / "notes.bin").write_bytes(b"a pickle beside the weights")
    address, told = upload(aws, folder), list[tuple[int, int]]()
    place = find_model(address, RUNS, lambda done, of: told.append((done, of)))
    assert place is not None and (place.name, place.kind, place.foreign) == ("mine", "folder", True)
    opened = open_model(place)
    assert opened.contract.sha256 == Contract.load(folder).sha256
    fetched_names = {path.name for path in place.path.iterdir()}
    assert fetched_names == {path.name for path in folder.iterdir()} - {"modeling.py", "notes.bin"}
    total = sum((folder / name).stat().st_size for name in fetched_names)
    assert told[0] == (0, total) and told[-1] == (total, total) and told == sorted(told)
    assert len({done for done, _ in told}) > 5  # bytes, not files alone
    told.clear()
    aws.put_object = None  # nothing is asked for twice
    assert find_model(address, RUNS, lambda done, of: told.append((done, of))) == place
    assert told == [(total, total)]


def test_what_changed_there_is_fetched_anew(aws: Any, folder: Path, tmp_path: Path) -> None:
    address = upload(aws, folder)
    first = fetched(address)
    config = folder / "config.json"
    config.write_text(config.read_text() + "\n")
    sum_up(folder)
    upload(aws, folder)
    second = fetched(address)
    assert first != second and (second / "config.json").read_text() == config.read_text()


def test_a_gguf_file(aws: Any, folder: Path, tmp_path: Path, llama_cpp: Any) -> None:
    from tunesmith.export.gguf.write import write_gguf

    made = tmp_path / "gguf"
    made.mkdir()
    write_gguf(folder, made / "mine-Q8_0.gguf", "Q8_0", Contract.load(folder))
    (made / "mine-F16.gguf").write_bytes(b"GGUF, but not this one")
    sum_up(made)
    address = upload(aws, made)
    place = find_model(f"{address}/mine-Q8_0.gguf", RUNS)
    assert place is not None and (place.kind, place.name) == ("gguf", "mine-Q8_0")
    opened = open_model(place)
    assert opened.engine == "llama.cpp" and opened.contract.stop_ids == Contract.load(folder).stop_ids
    assert not list(place.path.parent.glob("*F16*"))
    with pytest.raises(AccessError, match="no such object"):
        find_model(f"{address}/mine-Q4_K_M.gguf", RUNS)
    with pytest.raises(AccessError, match="no model here"):
        find_model(address, RUNS)


MISSING = {
    "a missing key": (
        "tokenizer.json",
        AccessError,
        r"tokenizer\.json is missing, although SHA256SUMS lists it",
    ),
    "missing weights": ("model.safetensors", AccessError, "model.safetensors is missing"),
}


@pytest.mark.parametrize("case", MISSING)
def test_a_missing_key(case: str, aws: Any, folder: Path, tmp_path: Path) -> None:
    name, kind, words = MISSING[case]
    address = upload(aws, folder, without=name)
    with pytest.raises(kind, match=words) as caught:
        find_model(address, RUNS)
    assert f"{address}/{name}" in str(caught.value) and not cached(tmp_path)
    upload(aws, folder)
    place = find_model(address, RUNS)
    assert place is not None and (place.path / name).is_file()


def test_nothing_there(aws: Any, tmp_path: Path) -> None:
    with pytest.raises(AccessError, match="nothing here"):
        find_model(f"s3://{aws.bucket}/models/nobody", RUNS)
    with pytest.raises(AccessError, match="no such bucket"):
        find_model("s3://no-such-bucket-anywhere/x", RUNS)


@pytest.mark.parametrize("damage", ["half a file", "a byte"])
def test_a_wrong_sum(damage: str, aws: Any, folder: Path, tmp_path: Path) -> None:
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2] if damage == "half a file" else b"\1" + whole[1:])
    address = upload(aws, folder)
    with pytest.raises(ModelError, match="its SHA-256 differs"):
        find_model(address, RUNS)
    assert not cached(tmp_path)
    weights.write_bytes(whole)
    upload(aws, folder)
    place = find_model(address, RUNS)
    assert place is not None and (place.path / weights.name).read_bytes() == whole


@pytest.mark.parametrize(
    "name", ["../../../x.safetensors", "a/../../x.json", "a//x.json", "~/x.json", "a\\..\\x.json", "x\n.json"]
)
def test_names_that_lead_out(name: str, aws: Any, folder: Path, tmp_path: Path) -> None:
    address = upload(aws, folder)
    from moto.core import DEFAULT_ACCOUNT_ID
    from moto.s3.models import s3_backends

    # the server's own store: a client would not send some of these
    s3_backends[DEFAULT_ACCOUNT_ID]["aws"].put_object(aws.bucket, f"models/mine/{name}", b"{}")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ModelError, match="no name of a file below"):
        find_model(address, RUNS)
    assert sorted(tmp_path.rglob("*")) == before


def test_sums_that_lead_out(aws: Any, folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text("{}")
    sums = folder / "SHA256SUMS"
    sums.write_text(sums.read_text() + f"{'0' * 64}  ../../../../secret.json\n")
    with pytest.raises(ModelError, match="no name of a file below"):
        find_model(upload(aws, folder), RUNS)
    sums.write_text("not a sum\n")
    with pytest.raises(ModelError, match="no checksum"):
        find_model(upload(aws, folder), RUNS)
    assert not cached(tmp_path) and secret.read_text() == "{}"


def test_a_link_in_the_cache_is_not_followed(aws: Any, folder: Path, tmp_path: Path) -> None:
    """Somebody who may write into the cache points a file that is still to come elsewhere."""
    address = upload(aws, folder)
    target = tmp_path / "target"
    target.write_bytes(b"")
    place = fetched(address)
    hidden = place.with_name(f".{place.name}.part")
    place.rename(hidden)
    (hidden / "config.json").unlink()
    (hidden / "config.json").symlink_to(target)
    with pytest.raises(OSError, match="symbolic links"):
        fetched(address)
    assert target.read_bytes() == b"" and not cached(tmp_path)


def test_pickles(aws: Any, folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    (folder / "SHA256SUMS").unlink()
    with pytest.raises(ModelError, match=r"a pickle \(pytorch_model\.bin\)"):
        find_model(upload(aws, folder), RUNS)


def test_code_of_its_own(aws: Any, folder: Path) -> None:
    config = folder / "config.json"
    config.write_text(
        config.read_text().replace("{", '{"auto_map": {"AutoModelForCausalLM": "modeling.M"},', 1)
    )
    sum_up(folder)
    place = find_model(upload(aws, folder), RUNS)
    assert place is not None
    with pytest.raises(ModelError, match="brings its own Python code"):
        open_model(place)


class Slow(BaseHTTPRequestHandler):
    """In front of moto: large bodies come a little at a time, and can be counted."""

    moto: str
    sent = 0
    asked: list[tuple[str, str]]
    pause = 0.02

    def do_GET(self) -> None:
        self._pass("GET")

    def do_HEAD(self) -> None:
        self._pass("HEAD")

    def _pass(self, method: str) -> None:
        kept = {key: value for key, value in self.headers.items() if key.lower() != "connection"}
        with urlopen(Request(self.moto + self.path, headers=kept, method=method)) as answer:
            body = answer.read()
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                if name.lower() not in (
                    "connection",
                    "transfer-encoding",
                    "content-length",
                    "date",
                    "server",
                ):
                    self.send_header(name, value)
            self.send_header("Content-Length", answer.headers["Content-Length"] or str(len(body)))
            self.end_headers()
        self.asked.append((self.path.rpartition("/")[2], self.headers.get("Range", "")))
        for begin in range(0, len(body), 1 << 18):
            self.wfile.write(body[begin : begin + (1 << 18)])
            type(self).sent += len(body[begin : begin + (1 << 18)])
            if len(body) > 1 << 18:
                time.sleep(self.pause)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def slow(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Slow]]:
    handler = type("Handler", (Slow,), {"moto": server, "asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        http.daemon_threads, http.handle_error = True, lambda *_: None  # type: ignore[method-assign]
        threading.Thread(target=http.serve_forever, daemon=True).start()
        handler.address = f"http://127.0.0.1:{http.server_address[1]}"  # type: ignore[attr-defined]
        yield handler
        http.shutdown()


FETCH = "import sys; from tunesmith.store.fetched import fetched; print(fetched(sys.argv[1]))"


def test_killed_in_the_middle(
    aws: Any, folder: Path, tmp_path: Path, slow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container that is stopped while it fetches: nothing looks whole, and the next start goes on."""
    weights = folder / "model.safetensors"
    with weights.open("ab") as file:  # so that it takes a while; trailing bytes are no part of the model
        file.write(os.urandom(6 << 20))
    sum_up(folder)
    address = upload(aws, folder)
    monkeypatch.setenv("AWS_ENDPOINT_URL", slow.address)
    size = weights.stat().st_size
    with subprocess.Popen(
        [sys.executable, "-c", FETCH, address], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        deadline = time.monotonic() + 60
        while slow.sent < size // 2 and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait(20)
    assert process.returncode == -signal.SIGKILL
    assert not cached(tmp_path)
    (partial,) = (tmp_path / "cache").glob("tunesmith/s3/*/.mine.part")
    begun = (partial / "model.safetensors").stat().st_size
    assert 0 < begun < size
    slow.asked.clear()
    slow.pause = 0.0
    place = fetched(address)
    assert cached(tmp_path) == ["mine"] and not partial.exists()
    assert (place / "model.safetensors").read_bytes() == weights.read_bytes()
    ranges = [spec for name, spec in slow.asked if name == "model.safetensors" and spec]
    assert ranges == [f"bytes={begun}-"]  # it goes on where it was


def test_a_torn_file_is_not_gone_on_with(aws: Any, folder: Path, tmp_path: Path) -> None:
    """What a power cut leaves: the right length, other bytes. The checksum says no, and the next try is clean."""
    address = upload(aws, folder)
    place = fetched(address)
    hidden = place.with_name(f".{place.name}.part")
    place.rename(hidden)
    weights = hidden / "model.safetensors"
    weights.write_bytes(b"\0" * weights.stat().st_size)
    again = fetched(address)  # S3's own MD5 tells it already
    assert (
        again == place
        and (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    )


def test_two_processes_fetch_once(
    aws: Any, folder: Path, tmp_path: Path, slow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = upload(aws, folder)
    monkeypatch.setenv("AWS_ENDPOINT_URL", slow.address)
    processes = [
        subprocess.Popen([sys.executable, "-c", FETCH, address], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=120)[0].strip() for process in processes]
    assert said[0] == said[1] and Path(said[0]).is_dir()
    assert [name for name, spec in slow.asked if spec].count("model.safetensors") == 1


def test_a_connection_that_breaks(
    aws: Any, folder: Path, tmp_path: Path, slow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = upload(aws, folder)
    broken = list[int]()
    whole = slow._pass

    def breaks(self: Any, method: str) -> None:
        if method == "GET" and self.path.endswith("model.safetensors") and not broken:
            broken.append(1)
            self.send_response(206)
            self.send_header("Content-Length", str((folder / "model.safetensors").stat().st_size))
            self.end_headers()
            self.wfile.write((folder / "model.safetensors").read_bytes()[:100_000])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        whole(self, method)

    slow._pass = breaks
    monkeypatch.setenv("AWS_ENDPOINT_URL", slow.address)
    place = fetched(address)
    assert (
        broken and (place / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    )
    ranges = [spec for name, spec in slow.asked if name == "model.safetensors" and spec]
    assert ranges == ["bytes=100000-"]


def test_a_run_is_served_from_s3(aws: Any, tmp_path: Path) -> None:
    """Its adapter live on the base; neither rows nor checkpoints come here."""
    run = make_exported_run(tmp_path / "project")
    run.write_json(run.report / "report.json", {"decoding": {"max_tokens": 77}})
    address = upload(aws, run.path, "team/tiny")
    models = ServedModels(address, {}, "auto", tmp_path / "runs", slots=2, context=64)
    assert models.names() == ("tiny",) and models.status()[0].state == "waiting" and not cached(tmp_path)
    served = asyncio.run(models.get("tiny"))
    assert models.names() == ("tiny", "base") and served.max_tokens == 77
    assert served.run is not None and served.run.name == "tiny" and served.run.path != run.path
    there = {path.relative_to(served.run.path).parts[0] for path in served.run.path.rglob("*")}
    assert "adapter" in there and not there & {"data", "checkpoints", "merged", "log.txt", "predictions"}
    assert served.contract.sha256 == Contract.load(run.contract_folder).sha256
    models.close()


def test_progress_is_told_while_it_loads(
    aws: Any, folder: Path, tmp_path: Path, slow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow.pause = 0.1
    address = upload(aws, folder)
    monkeypatch.setenv("AWS_ENDPOINT_URL", slow.address)
    models = ServedModels(address, {}, "auto", RUNS, slots=2, context=64)

    async def watch() -> list[ModelStatus]:
        asked, seen = asyncio.ensure_future(models.get("mine")), list[ModelStatus]()
        while not asked.done():
            seen += models.status()
            await asyncio.sleep(0.02)
        await asked
        return seen

    seen = asyncio.run(watch())
    fetching = [one for one in seen if one.detail.startswith("fetching: ")]
    assert {one.state for one in seen} <= {"waiting", "loading"} and len({one.done for one in fetching}) > 3
    assert [one.done for one in fetching] == sorted(one.done for one in fetching) and "MB" in fetching[
        0
    ].detail
    assert seen[-1].detail.startswith("loading ") and models.status()[0].state == "ready"
    models.close()


def test_a_failed_fetch_is_tried_again(aws: Any, folder: Path, tmp_path: Path) -> None:
    address = upload(aws, folder, without="tokenizer.json")
    models = ServedModels(address, {}, "auto", RUNS, slots=2, context=64)
    with pytest.raises(AccessError, match=r"tokenizer\.json is missing"):
        asyncio.run(models.get("mine"))
    assert models.status()[0].state == "failed" and "is missing" in models.status()[0].detail
    upload(aws, folder)
    assert asyncio.run(models.get("mine")).name == "mine"
    models.close()
