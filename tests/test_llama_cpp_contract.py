"""The Contract of a bare GGUF: the one beside it, or one made of the file that gives llama.cpp's ids."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from llama3_referee import write_llama3_tokenizer
from tiny_models import tiny
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from tunesmith import starter
from tunesmith.contract import Contract
from tunesmith.errors import ModelError
from tunesmith.example import Message
from tunesmith.export.gguf.write import write_gguf
from tunesmith.generate.llama_cpp import contract as llama_cpp_contract
from tunesmith.generate.llama_cpp import contract_of_gguf
from tunesmith.generate.llama_cpp.contract import NASTY, tokens_by_llama_cpp

QUESTION = [Message("system", "Be short."), Message("user", "What  is it?\n")]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, llama_cpp: Any) -> Path:
    out = tmp_path_factory.mktemp("gguf") / "bare.gguf"
    write_gguf(starter.base_folder(), out, "F16", Contract.make(starter.base_folder()))
    return out


def renamed(file: Path, out: Path, key: str, before: bytes, after: bytes) -> Path:
    """A copy whose `key` has another text of the same length."""
    content = file.read_bytes()
    at = content.index(key.encode())
    place = content.index(before, at)
    assert place - at < 200 and len(before) == len(after)
    out.write_bytes(content[:place] + after + content[place + len(before) :])
    return out


def test_made_of_the_file_alone(file: Path) -> None:
    made, own = contract_of_gguf(file), Contract.make(starter.base_folder())
    assert made.prompt_ids(QUESTION) == own.prompt_ids(QUESTION)
    assert made.stop_ids == own.stop_ids and made.terminator == own.terminator
    for text in NASTY:
        assert made.tokens_of(text) == own.tokens_of(text)
    assert made.decode(own.tokens_of("Zweck & Ziel ಕ")) == "Zweck & Ziel ಕ"


def test_the_one_beside_it_is_taken_and_checked(file: Path, tmp_path: Path) -> None:
    own = Contract.make(starter.base_folder(), system="Be brief.")
    own.save(tmp_path)
    beside = Path(shutil.copy(file, tmp_path / "model.gguf"))
    found = contract_of_gguf(beside)
    assert found.system == "Be brief." and found.sha256 == own.sha256
    wrong = json.loads((tmp_path / "tokenizer.json").read_text())
    vocabulary = wrong["model"]["vocab"]
    a, b = list(vocabulary)[300:302]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    (tmp_path / "tokenizer.json").write_text(json.dumps(wrong))
    Contract.make(tmp_path).save(tmp_path)
    with pytest.raises(ModelError, match="the tokenizer beside the file is another: id 30"):
        contract_of_gguf(beside)


def test_what_is_not_known_is_refused(file: Path, tmp_path: Path) -> None:
    unknown = renamed(file, tmp_path / "pre.gguf", "tokenizer.ggml.pre", b"gpt-2", b"gpt-x")
    with pytest.raises(ModelError, match="pre-tokenizer gpt-x") as refused:
        contract_of_gguf(unknown)
    assert "contract.json" in str(refused.value.fix)
    with pytest.raises(ModelError, match=r"none, pre-tokenizer|holds no vocabulary"):
        contract_of_gguf(renamed(file, tmp_path / "m.gguf", "tokenizer.ggml.model", b"model", b"mudel"))


def test_other_ids_than_llama_cpps_are_seen(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutant: digits cut otherwise."""
    monkeypatch.setitem(llama_cpp_contract._CUTS, "gpt-2", r"\p{L}+|\p{N}{1,2}|[^\p{L}\p{N}]+")
    with pytest.raises(ModelError, match=r"gives other ids than llama\.cpp, from token"):
        contract_of_gguf(file)


TEXTS = [*NASTY, "12345678 1234 a1b22c333 don't DON'T we'LL x\u0301", "  \n\n   indented\n\tcode()  # 42"]


@pytest.mark.parametrize("name", ["llama-bpe", "qwen2"])
def test_cuts_of_the_great_families(name: str, tmp_path: Path, llama_cpp: Any) -> None:
    """A vocabulary trained under each cut, written by the exporter's parts, read by llama.cpp under the same name."""
    folder = tmp_path / "base"
    shutil.copytree(starter.base_folder(), folder)
    trained(folder, llama_cpp_contract._CUTS[name], whole=name in llama_cpp_contract._WHOLE_WORDS)
    own = Contract.make(folder)
    out = tmp_path / "bare.gguf"
    write_with_pre(folder, out, name)
    made = contract_of_gguf(out)
    found = tokens_by_llama_cpp(out, TEXTS)
    assert [made.tokens_of(text) for text in TEXTS] == [own.tokens_of(text) for text in TEXTS] == found
    assert made.prompt_ids(QUESTION) == own.prompt_ids(QUESTION)


def test_the_real_vocabulary_of_llama3(tmp_path: Path, llama_cpp: Any) -> None:
    """128,256 tokens, Meta's own file: the contract of the bare GGUF gives the ids of the tokenizer it came from."""
    folder = write_llama3_tokenizer(tmp_path / "base")
    sizes = {"vocab_size": 128256, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    tiny("llama_tied", **sizes, num_key_value_heads=1, num_hidden_layers=1).save_pretrained(folder)
    own = Contract.make(folder, template="llama3")
    out = tmp_path / "bare.gguf"
    write_gguf(folder, out, "F16", own)
    made = contract_of_gguf(out)
    assert made.prompt_ids(QUESTION) == own.prompt_ids(QUESTION)
    assert [made.tokens_of(text) for text in TEXTS] == [own.tokens_of(text) for text in TEXTS]
    assert tokens_by_llama_cpp(out, TEXTS) == [own.tokens_of(text) for text in TEXTS]


def trained(folder: Path, cut: str, whole: bool) -> None:
    tokenizer = Tokenizer(models.BPE(ignore_merges=whole))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(cut), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2040, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    texts = [path.read_text("utf-8") for path in sorted(Path(__file__).parent.glob("test_[a-f]*.py"))]
    tokenizer.train_from_iterator([*texts, *TEXTS * 20], trainer)
    made = json.loads(tokenizer.to_str())
    stored = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = made["model"]["vocab"]
    for number in range(len(vocabulary), 2040):
        vocabulary[f"\u0120\u0120\u0120never{number}"] = number
    made["added_tokens"] = stored["added_tokens"]
    (folder / "tokenizer.json").write_text(json.dumps(made))


def write_with_pre(folder: Path, out: Path, name: str) -> None:
    from gguf import GGUFWriter, TokenType

    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    config = json.loads((folder / "tokenizer_config.json").read_text())
    tokens = {one: token for token, one in tokenizer["model"]["vocab"].items()}
    control = {one["id"]: one["content"] for one in tokenizer["added_tokens"]}
    every = tokens | control
    ordered = [every.get(one, f"[PAD{one}]") for one in range(2048)]
    kinds = [TokenType.UNUSED] * 2048
    for one in tokens:
        kinds[one] = TokenType.NORMAL
    for one in control:
        kinds[one] = TokenType.CONTROL
    writer = GGUFWriter(out, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(name)
    writer.add_token_list(ordered)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(one) for one in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(ordered.index(config["bos_token"]))
    writer.add_eos_token_id(ordered.index(config["eos_token"]))
    writer.add_chat_template(config["chat_template"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
