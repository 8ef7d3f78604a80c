"""Fetching that is killed, torn, doubled or cut off: nothing half looks whole, and what is there is gone on with."""

# ruff: noqa: F401, F811  (fixtures)
from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from s3_models import FETCH, aws, cached, folder, server, slow, sum_up, upload

from tunesmith.store.fetched import fetched


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
    slow.most = size // 2
    with subprocess.Popen(
        [sys.executable, "-c", FETCH, address], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        deadline = time.monotonic() + 110
        while slow.sent < slow.most and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait(60)
    slow.most = None
    slow.go.set()
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
    said = [process.communicate(timeout=600)[0].strip() for process in processes]
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
