"""What is refused before llama.cpp reads it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader, GGUFWriter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunesmith import starter
from tunesmith.contract import Contract
from tunesmith.errors import AccessError, ModelError, TunesmithError
from tunesmith.export.gguf.write import write_gguf
from tunesmith.generate.llama_cpp import LlamaModel, read_gguf


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("gguf") / "q8.gguf"
    write_gguf(starter.base_folder(), out, "Q8_0", Contract.make(starter.base_folder()))
    return out


def test_header_is_that_of_the_gguf_package(file: Path) -> None:
    ours, theirs = read_gguf(file), GGUFReader(file)
    assert ours.architecture == "llama" and not ours.is_adapter
    assert ours.size("context_length") == 4096 and ours.size("nothing", 7) == 7
    fields = {name: field.contents() for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    assert dict(ours.metadata) == fields
    assert {name: (tuple(shape), kind) for name, (shape, kind) in ours.tensors.items()} == {
        one.name: (tuple(int(size) for size in one.shape), int(one.tensor_type)) for one in theirs.tensors
    }


@pytest.mark.parametrize("share", [0.00001, 0.001, 0.01, 0.5, 0.999999])
def test_half_a_file(file: Path, tmp_path: Path, share: float) -> None:
    content = file.read_bytes()
    half = tmp_path / "half.gguf"
    half.write_bytes(content[: max(9, int(len(content) * share))])
    with pytest.raises(ModelError, match=r"not whole: .* reaches to byte [\d,]+, the file has") as refused:
        LlamaModel.open(half, context=256, slots=1)
    assert refused.value.where == str(half) and "SHA256SUMS" in str(refused.value.fix)


def test_no_gguf_at_all(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.gguf"
    for content, says in (
        (b"", "the file is empty"),
        (b"PK\x03\x04 and more", "this is no GGUF file"),
        (b"version https://git-lfs", "git lfs pull"),
        (b"GGUF\x01\0\0\0" + b"\0" * 40, "it is of version 1"),
        (b"GGUF\x00\0\0\x03" + b"\0" * 40, "big-endian"),
        (b"GGUF\x63\0\0\0" + b"\0" * 40, "it is of version 99"),
    ):
        wrong.write_bytes(content)
        with pytest.raises(ModelError, match=says):
            LlamaModel.open(wrong, context=256, slots=1)
    with pytest.raises(AccessError, match="No such file"):
        LlamaModel.open(tmp_path / "nowhere.gguf", context=256, slots=1)
    with pytest.raises(AccessError, match="Is a directory"):
        LlamaModel.open(tmp_path, context=256, slots=1)


def test_one_of_several_parts(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "part.gguf", "llama")
    writer.add_uint16("split.count", 3)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match="one of 3 parts"):
        LlamaModel.open(tmp_path / "part.gguf", context=256, slots=1)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_broken_header_is_told_or_harmless(file: Path, tmp_path: Path, data: Any) -> None:
    """Bytes changed anywhere in the header: never another exception, never more memory than the file."""
    content = bytearray(file.read_bytes())
    seed = data.draw(st.integers(0, 2**32))
    dice = random.Random(seed)
    reach = dice.choice([64, 2048, len(content) // 4])
    for _ in range(dice.randint(1, 8)):
        content[dice.randrange(4, reach)] = dice.choice([0, 1, 0x7F, 0x80, 0xFF, dice.randrange(256)])
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(content)
    error = None
    try:
        read_gguf(broken)
    except TunesmithError as raised:
        error = raised
    assert error is None or (error.where and error.fix)
