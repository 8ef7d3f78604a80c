"""Models fetched from S3, over HTTP of moto's server: whole and checked, or not there; odd names, pickles, code."""

# ruff: noqa: F401, F811  (fixtures)
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from s3_models import RUNS, aws, cached, folder, server, sum_up, upload

from tunesmith.contract import Contract
from tunesmith.errors import AccessError, ModelError
from tunesmith.opened.model import open_model
from tunesmith.opened.place import find_model
from tunesmith.store.fetched import fetched


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
