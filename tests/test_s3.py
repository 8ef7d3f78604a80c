"""Runs in S3, asked over HTTP of moto's server: more keys than a page, a run still growing, every way to be refused."""

# ruff: noqa: F401, F811  (fixtures)

from __future__ import annotations

import hashlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from s3_models import aws, server, upload
from test_runs import make_run

from tunesmith.cli import main
from tunesmith.errors import AccessError, SetupError, TunesmithError
from tunesmith.run import Run
from tunesmith.store.s3 import S3


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # `.env` is read and files are written where one stands


def upload_run(aws: Any, run: Run, prefix: str) -> None:
    upload(aws, run.path, f"{prefix}/{run.name}")


def said(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main([*words, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


def test_runs_beyond_the_first_page(aws: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from moto.core import DEFAULT_ACCOUNT_ID
    from moto.s3.models import s3_backends

    first = make_run(tmp_path / "made", "a", phase="train done", step=9, steps=9, age=500)
    upload_run(aws, first, "team/runs")
    last = make_run(tmp_path / "made", "z", phase="train", step=3, steps=9, age=5)
    upload_run(aws, last, "team/runs")
    objects = s3_backends[DEFAULT_ACCOUNT_ID][
        "aws"
    ]  # the server's own store: 1,100 requests would take ten seconds
    for i in range(1100):
        objects.put_object(aws.bucket, f"team/runs/a/checkpoints/step-{i:08d}/weights.safetensors", b"12345")
    place = f"s3://{aws.bucket}/team/runs"
    assert len(list(S3(place).list())) > 1100
    found = said(capsys, "runs", "--runs-dir", place)["runs"]
    assert [(one["name"], one["state"]) for one in found] == [("z", "running"), ("a", "done")]
    local = sum(path.stat().st_size for path in first.path.rglob("*") if path.is_file())
    assert found[1]["size"] == local + 5 * 1100
    time.sleep(1.1)  # S3 tells the second only
    aws.put_object(Bucket=aws.bucket, Key="team/runs/z/state.json", Body=last.state_file.read_bytes())
    for name, folder in (("z", place), ("latest", place), (f"{place}/z", "runs"), (f"{place}/z/", "runs")):
        assert said(capsys, "show", name, "--runs-dir", folder)["run"] == f"{place}/z"


def test_a_run_that_is_still_mirrored(aws: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Between two looks the files grow; the last line may be torn, timing may lie behind."""
    run = make_run(tmp_path / "made", "live", phase="train", step=1, steps=120, age=1)
    lines = {
        name: (run.path / name).read_text().splitlines(keepends=True)
        for name in ("metrics.jsonl", "timing.jsonl")
    }
    place = f"s3://{aws.bucket}/live"

    def put(name: str, text: str) -> None:
        aws.put_object(Bucket=aws.bucket, Key=f"live/{name}", Body=text.encode())

    put("state.json", run.state_file.read_text())
    assert main(["plot", place]) == 2
    assert "no step is logged yet in live" in capsys.readouterr().err
    for count in (3, 7, 24):
        put("metrics.jsonl", "".join(lines["metrics.jsonl"][:count]) + '{"step": 999, "lo')
        put("timing.jsonl", "".join(lines["timing.jsonl"][: count - 1]))
        assert said(capsys, "table", place)["rows"] == count
        assert said(capsys, "show", place)["summary"]["state"] == "running"
    assert main(["plot", place, "--out", "live.png"]) == 0
    with Image.open("live.png") as image:
        assert image.size == (1600, 1280)


def test_everything_but_the_small_files_stays_there(
    aws: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "made", "run", phase="train done", step=1)
    (run.path / "adapter").mkdir()
    (run.path / "adapter" / "adapter_model.safetensors").write_bytes(b"x" * 1000)
    (run.path / "predictions").mkdir()
    (run.path / "predictions" / "tuned.jsonl").write_text("{}\n")
    upload_run(aws, run, "runs")
    asked: list[str] = []
    real = S3.get
    monkeypatch.setattr(S3, "get", lambda self, name, to: (asked.append(name), real(self, name, to))[1])
    said(capsys, "show", f"s3://{aws.bucket}/runs/run")
    assert sorted(asked) == ["metrics.jsonl", "recipe.yaml", "state.json", "timing.jsonl"]


def test_one_run_here_and_one_there(aws: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "runs", "same", phase="train done", step=1)
    upload_run(aws, run, "x")
    there = f"s3://{aws.bucket}/x/same"
    found = said(capsys, "plot", "same", there, "--runs-dir", str(tmp_path / "runs"), "--out", "two.png")
    assert found["runs"] == [str(run.path), there]


def refused(capsys: pytest.CaptureFixture[str], place: str, *words: str) -> None:
    assert main(["runs", "--runs-dir", place]) == 2
    err = capsys.readouterr().err
    assert [word for word in (*words, place) if word not in err] == []


def test_nothing_there(aws: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, "s3://no-such-bucket-anywhere/runs", "there is no such bucket", "AWS_ENDPOINT_URL")
    refused(capsys, f"s3://{aws.bucket}/nowhere", "there is no run here")
    refused(capsys, "s3://Bad_Bucket/x", "is no S3 address")
    upload_run(aws, make_run(tmp_path / "made", "right", phase="train", step=1), "runs")
    place = f"s3://{aws.bucket}/runs"
    assert main(["show", "rihgt", "--runs-dir", place]) == 2
    assert "did you mean 'right'?" in capsys.readouterr().err
    assert main(["show", f"{place}/rihgt"]) == 2
    assert f"tunesmith runs --runs-dir {place}" in capsys.readouterr().err


def test_no_credentials(
    aws: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    place = f"s3://{aws.bucket}/runs"
    refused(capsys, place, "there are no AWS credentials", "aws configure")
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    assert main(["runs", "--runs-dir", place]) == 2
    assert "nobody" in capsys.readouterr().err
    monkeypatch.delenv("AWS_PROFILE")
    Path(".env").write_text("AWS_ACCESS_KEY_ID=k\nAWS_SECRET_ACCESS_KEY=s\n")
    refused(capsys, place, "there is no run here")  # keys in .env do


def test_no_permission(
    aws: Any, server: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import urllib.request

    import boto3

    def enforce_after(count: bytes) -> None:
        request = urllib.request.Request(
            f"{server}/moto-api/reset-auth", count, {"Content-Type": "text/plain"}
        )
        urllib.request.urlopen(request).close()

    iam = boto3.client("iam")
    iam.create_user(UserName="reader")
    key = iam.create_access_key(UserName="reader")["AccessKey"]
    place = f"s3://{aws.bucket}/runs"
    enforce_after(b"0")
    try:
        refused(capsys, place, "S3 doesn't know this access key")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
        refused(capsys, place, "S3 refuses the secret key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
        refused(capsys, place, "these credentials may not read here", "s3:ListBucket")
    finally:
        enforce_after(b"1000000000")


def test_nobody_answers(
    aws: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    refused(capsys, f"s3://{aws.bucket}/runs", "S3 can't be reached")


class Damaging(BaseHTTPRequestHandler):
    """Answers as S3 does, but not with the bytes that it promises."""

    headers_of: dict[str, str]
    body: bytes

    def do_GET(self) -> None:
        self.send_response(200)
        for name, value in self.headers_of.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_: object) -> None:
        pass


DAMAGE = {
    "checksum": (
        {"x-amz-checksum-crc32": "AAAAAA==", "Content-Length": "5"},
        b"whole",
        "its checksum differs",
    ),
    "ETag": (
        {"ETag": f'"{hashlib.md5(b"whole").hexdigest()}"', "Content-Length": "5"},
        b"wrong",
        "MD5 differs",
    ),
    "length": ({"Content-Length": "9"}, b"whole", "it ends too early"),
}


@pytest.mark.parametrize("damage", [*DAMAGE, "none"])
def test_what_arrives_is_checked(
    aws: Any, damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, body, words = DAMAGE.get(
        damage, ({"ETag": f'"{hashlib.md5(b"whole").hexdigest()}"', "Content-Length": "5"}, b"whole", "")
    )
    handler = type("Handler", (Damaging,), {"headers_of": head, "body": body})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{http.server_address[1]}")
        to = tmp_path / "got" / "file"
        if words:
            with pytest.raises(AccessError, match=words):
                S3("s3://bucket/run").get("file", to)
            assert not to.exists()
        else:
            assert S3("s3://bucket/run").get("file", to)
            assert to.read_bytes() == b"whole"
        http.shutdown()


def test_an_object_that_went_meanwhile_is_no_error(aws: Any, tmp_path: Path) -> None:
    assert S3(f"s3://{aws.bucket}/run").get("state.json", tmp_path / "state.json") is False
    assert not (tmp_path / "state.json").exists()


def test_an_upload_in_parts_has_no_md5(aws: Any, tmp_path: Path) -> None:
    whole = aws.create_multipart_upload(Bucket=aws.bucket, Key="run/big")
    part = aws.upload_part(
        Bucket=aws.bucket, Key="run/big", UploadId=whole["UploadId"], PartNumber=1, Body=b"part"
    )
    aws.complete_multipart_upload(
        Bucket=aws.bucket, Key="run/big", UploadId=whole["UploadId"],
        MultipartUpload={"Parts": [{"ETag": part["ETag"], "PartNumber": 1}]},
    )  # fmt: skip
    assert S3(f"s3://{aws.bucket}/run").get("big", tmp_path / "big")
    assert (tmp_path / "big").read_bytes() == b"part"


def test_without_boto3(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(SetupError, match=r"tunesmith\[aws\]"):
        S3("s3://bucket/run")
    with pytest.raises(TunesmithError, match="no S3 address"):
        S3("s3://")
