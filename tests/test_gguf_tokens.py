"""llama.cpp's own tokenize on our GGUF files gives the Contract's ids, or the file is refused or says where not."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from llama3_referee import write_llama3_tokenizer
from nasty_texts import FIXED, random_strings
from test_gguf_write import changed
from tiny_models import tiny

from tunesmith import starter
from tunesmith.contract import Contract
from tunesmith.errors import ModelError
from tunesmith.example import Message
from tunesmith.export.gguf import pretokenizer, vocabulary, write
from tunesmith.export.gguf.vocabulary import read_vocabulary
from tunesmith.export.gguf.write import write_gguf
from tunesmith.generate.llama_cpp.file import read_gguf

RANDOM = random_strings(10_000)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


class LlamaCppVocabulary:
    """llama.cpp's tokenizer of a GGUF file, the weights left out."""

    def __init__(self, library: Any, path: Path) -> None:
        params = library.llama_model_default_params()
        params.vocab_only = True
        self._library, self._model = library, library.llama_model_load_from_file(str(path).encode(), params)
        assert self._model
        self.vocabulary = library.llama_model_get_vocab(self._model)
        self._room = (library.llama_token * 8192)()

    def ids(self, text: str) -> list[int]:
        """As llama-cpp-python's and llama-server's callers ask: BOS where the file says so, specials read."""
        raw = text.encode()
        count = self._library.llama_tokenize(self.vocabulary, raw, len(raw), self._room, 8192, True, True)
        assert count >= 0
        return list(self._room[:count])

    def ends(self, number: int) -> bool:
        """Whether generation ends at this id."""
        return bool(self._library.llama_vocab_is_eog(self.vocabulary, number))

    def close(self) -> None:
        """Frees it."""
        self._library.llama_model_free(self._model)


@contextmanager
def written(folder: Path, contract: Contract, library: Any) -> Iterator[LlamaCppVocabulary]:
    """The contract's tokenizer through a GGUF file of a tiny model."""
    size = contract.vocabulary_size + 3
    model = tiny("llama", vocab_size=size, hidden_size=32, intermediate_size=32, num_hidden_layers=1)
    model.save_pretrained(folder / "m")
    contract.save(folder / "m")
    write_gguf(folder / "m", folder / "m.gguf", "F16", contract)
    opened = LlamaCppVocabulary(library, folder / "m.gguf")
    try:
        yield opened
    finally:
        opened.close()


def differing(contract: Contract, found: LlamaCppVocabulary, texts: Sequence[str]) -> list[str]:
    return [text for text in texts if contract.tokens_of(text) != found.ids(text)]


def trained(
    folder: Path,
    cuts: dict[str, Any],
    *,
    ignore_merges: bool = False,
    normalizer: str | None = None,
    **model: Any,
) -> Path:
    """A byte-level BPE tokenizer of 3,000 tokens with these cuts."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    made = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    made.decoder = decoders.ByteLevel()
    made.normalizer = normalizers.NFC() if normalizer else None
    content = json.loads(made.to_str()) | {"pre_tokenizer": cuts}
    made = Tokenizer.from_str(json.dumps(content))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=3000, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(FIXED * 20 + RANDOM[:3000], trainer)
    made.add_special_tokens([AddedToken(one, special=True, normalized=False) for one in SPECIAL])
    made.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    folder.mkdir(parents=True)
    content = json.loads(made.to_str())
    content["model"] |= model
    (folder / "tokenizer.json").write_text(json.dumps(content))
    names = {"eos_token": SPECIAL[2], "pad_token": SPECIAL[0]}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder


def split(expression: str) -> dict[str, Any]:
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    cut = {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [cut, level]}


GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
DIGITS = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, GPT2]}
LLAMA3, QWEN2 = split(pretokenizer._LLAMA3), split(pretokenizer._QWEN2)
TEKKEN = split(pretokenizer._TEKKEN)


def test_starter(tmp_path: Path, llama_cpp: Any) -> None:
    contract = Contract.make(starter.base_folder())
    with written(tmp_path, contract, llama_cpp) as found:
        assert differing(contract, found, [*FIXED, *RANDOM]) == []
        assert read_gguf(tmp_path / "m.gguf").metadata["tokenizer.ggml.pre"] == "gpt-2"


def test_real_llama3_vocabulary(tmp_path: Path, llama_cpp: Any) -> None:
    contract = Contract.make(write_llama3_tokenizer(tmp_path / "t"), template="llama3")
    with written(tmp_path, contract, llama_cpp) as found:
        assert differing(contract, found, [*FIXED, *RANDOM]) == []
        metadata = read_gguf(tmp_path / "m.gguf").metadata
        assert metadata["tokenizer.ggml.pre"] == "llama-bpe"
        assert contract.terminator == "<|eot_id|>" and metadata["tokenizer.ggml.eos_token_id"] == 128009
        assert all(found.ends(number) for number in contract.stop_ids)


@pytest.mark.parametrize(
    "cuts, ignore, name",
    [
        (LLAMA3, True, "llama-bpe"),
        (LLAMA3, False, "smaug-bpe"),
        (QWEN2, False, "qwen2"),
        (DIGITS, False, "smollm"),
    ],
)
def test_other_byte_level_tokenizers(
    tmp_path: Path, cuts: dict[str, Any], ignore: bool, name: str, llama_cpp: Any
) -> None:
    contract = Contract.make(trained(tmp_path / "t", cuts, ignore_merges=ignore), template="chatml")
    with written(tmp_path, contract, llama_cpp) as found:
        assert differing(contract, found, [*FIXED, *RANDOM]) == []
    assert read_gguf(tmp_path / "m.gguf").metadata["tokenizer.ggml.pre"] == name


def test_qwens_normaliser_is_told_and_only_that_differs(
    tmp_path: Path, llama_cpp: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    contract = Contract.make(trained(tmp_path / "t", QWEN2, normalizer="NFC"), template="chatml")
    with written(tmp_path, contract, llama_cpp) as found:
        composed = [unicodedata.normalize("NFC", text) for text in [*FIXED, *RANDOM]]
        assert differing(contract, found, composed) == []
        assert differing(contract, found, ["cafe\u0301"])
    assert "composed form (NFC)" in " ".join(capsys.readouterr().err.split())


def test_tekken_is_told_to_differ(tmp_path: Path, llama_cpp: Any, capsys: pytest.CaptureFixture[str]) -> None:
    contract = Contract.make(trained(tmp_path / "t", TEKKEN, ignore_merges=True), template="chatml")
    with written(tmp_path, contract, llama_cpp) as found:
        assert differing(contract, found, FIXED)  # else the warning is out of date
        plain = [text for text in RANDOM if text.isascii()]
        assert len(plain) > 1000 and differing(contract, found, plain) == []
    assert "combining marks" in " ".join(capsys.readouterr().err.split())


def pieces(folder: Path, **changes: Any) -> Path:
    """A SentencePiece-like BPE with byte fallback, every pair listed, in the order of its tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Metaspace(split=True)
    made.train_from_iterator(
        FIXED * 20 + RANDOM[:3000] + ["    x"] * 200,
        trainers.BpeTrainer(vocab_size=3000, show_progress=False),
    )
    content = json.loads(made.to_str())
    special = ["<unk>", "<s>", "</s>"]
    joined = ["▁" * 2, "▁" * 4, "▁" * 8, "▁" * 3, *(a + b for a, b in content["model"]["merges"])]
    joined = list(dict.fromkeys(joined))
    single = [text for text in content["model"]["vocab"] if len(text) == 1]
    order = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *joined, *single]
    number, known = {text: i for i, text in enumerate(order)}, {*joined, *single}
    merges: list[list[str]] = []
    for text in joined:
        ways = [[text[:i], text[i:]] for i in range(1, len(text)) if text[:i] in known and text[i:] in known]
        merges += sorted(ways, key=lambda way: [number[way[0]], number[way[1]]])
    model = {"vocab": number, "merges": merges, "byte_fallback": True, "fuse_unk": True, "unk_token": "<unk>"}
    content["model"] |= model
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    content["added_tokens"] = [{"id": i, "content": text, **plain} for i, text in enumerate(special)]
    content["normalizer"] = {
        "type": "Sequence",
        "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ],
    }
    content |= {"pre_tokenizer": None} | changes
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text(json.dumps(content))
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder


def metaspace(scheme: str) -> dict[str, Any]:
    cuts = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}
    return {"normalizer": None, "pre_tokenizer": cuts}


@pytest.mark.parametrize("changes", [{}, metaspace("never")])
def test_byte_fallback(tmp_path: Path, changes: dict[str, Any], llama_cpp: Any) -> None:
    contract = Contract.make(pieces(tmp_path / "t", **changes))
    with written(tmp_path, contract, llama_cpp) as found:
        assert differing(contract, found, [*FIXED, *RANDOM]) == []


def _listed_together(content: dict[str, Any]) -> None:
    """Runs of spaces as transformers' converter lists those of one score: the longest left part first."""
    merges = content["model"]["merges"]
    runs = [pair for pair in merges if set("".join(pair)) == {"▁"}]
    runs.sort(key=lambda pair: (len(pair[0]), len(pair[1])), reverse=True)
    content["model"]["merges"] = [pair for pair in merges if set("".join(pair)) != {"▁"}] + runs


def test_runs_of_spaces_that_are_listed_together(tmp_path: Path, llama_cpp: Any) -> None:
    """Mistral's real tokenizer, as a current transformers writes it."""
    contract = Contract.make(_content(pieces(tmp_path / "t"), _listed_together))
    runs = [f"{'a' * (n % 2)}{' ' * n}{'b' * (n % 3)}{' ' * (n // 3)}" for n in range(60)]
    with written(tmp_path, contract, llama_cpp) as found:
        assert differing(contract, found, [*FIXED, *RANDOM, *runs]) == []


def test_byte_fallback_with_a_space_at_the_beginning_alone(tmp_path: Path, llama_cpp: Any) -> None:
    """Equal for what begins with a control token, as each prompt does."""
    contract = Contract.make(pieces(tmp_path / "t", **metaspace("first")))
    with written(tmp_path, contract, llama_cpp) as found:
        assert differing(contract, found, ["<s>" + text for text in [*FIXED, *RANDOM]]) == []
    template = tmp_path / "bare.jinja"
    template.write_text("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}")
    bare = Contract.make(tmp_path / "t", template=str(template))
    with pytest.raises(ModelError, match="nothing that cuts text"):
        read_vocabulary(bare, 20_000, tmp_path)


def _content(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return folder


def _shorter_left_first(content: dict[str, Any]) -> None:
    """Runs of spaces together, and not in the order that means their left ends."""
    _listed_together(content)
    merges = content["model"]["merges"]
    runs = [pair for pair in merges if set("".join(pair)) == {"▁"}]
    content["model"]["merges"] = [*merges[: -len(runs)], *sorted(runs, key=lambda pair: len(pair[0]))]


def _torn_merges(content: dict[str, Any]) -> None:
    """The ways to one token no longer stand together."""
    merges = content["model"]["merges"]
    joined = [a + b for a, b in merges]
    merges.append(merges.pop(next(i for i, text in enumerate(joined) if joined.count(text) > 1)))


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda f: trained(f, split(pretokenizer._QWEN2 + r"|\p{M}")), "pre_tokenizer"),
        (lambda f: trained(f, QWEN2, ignore_merges=True), "ignore_merges true"),
        (lambda f: trained(f, TEKKEN), "ignore_merges false"),
        (lambda f: trained(f, GPT2 | {"add_prefix_space": True}), "add_prefix_space"),
        (
            lambda f: _content(trained(f, GPT2), lambda c: c.update(normalizer={"type": "Lowercase"})),
            "Lowercase",
        ),
        (lambda f: trained(f, GPT2, dropout=0.1), "dropout"),
        (lambda f: _content(trained(f, GPT2), lambda c: c["added_tokens"][0].update(lstrip=True)), "lstrip"),
        (lambda f: pieces(f, **metaspace("always")), "Metaspace"),
        (lambda f: _content(pieces(f), lambda c: c["model"]["merges"].pop()), "leave out a way"),
        (lambda f: _content(pieces(f), _torn_merges), "no order of tokens"),
        (lambda f: _content(pieces(f), _shorter_left_first), "no order of tokens"),
    ],
)
def test_unknown_tokenizers_are_refused(tmp_path: Path, make: Callable[[Path], Path], said: str) -> None:
    folder = make(tmp_path / "t")
    with pytest.raises(ModelError, match=said):
        read_vocabulary(Contract.make(folder, template="plain"), 20_000, folder)


def test_more_ids_than_embeddings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="2,047"):
        read_vocabulary(Contract.make(starter.base_folder()), 2047, tmp_path)


# ---- what another program that runs the file does


CHAT = [Message("system", "Be brief."), Message("user", "Wie geht’s?\n  Ça va")]


def faults(library: Any, path: Path, contract: Contract) -> list[str]:
    """What llama-cpp-python's own chat formatter and stops get wrong against the contract."""
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    metadata, found = read_gguf(path).metadata, []
    tokens = metadata["tokenizer.ggml.tokens"]
    bos = metadata.get("tokenizer.ggml.bos_token_id")
    formatter = Jinja2ChatFormatter(
        template=metadata["tokenizer.chat_template"],
        eos_token=tokens[metadata["tokenizer.ggml.eos_token_id"]],
        bos_token="" if bos is None else tokens[bos],
    )
    prompt = formatter(messages=[{"role": m.role, "content": m.content} for m in CHAT]).prompt
    opened = LlamaCppVocabulary(library, path)
    try:
        if opened.ids(prompt) != contract.prompt_ids(CHAT):
            found.append("prompt")
        if metadata["tokenizer.ggml.eos_token_id"] != contract.terminator_id:
            found.append("terminator")
        if not all(opened.ends(number) for number in contract.stop_ids):
            found.append("stops")
    finally:
        opened.close()
    return found


@pytest.mark.parametrize("template", ["auto", "llama3", "plain"])
def test_other_programs_see_the_contracts_prompt_and_stops(
    tmp_path: Path, template: str, llama_cpp: Any
) -> None:
    contract = Contract.make(starter.base_folder(), template=template)
    with written(tmp_path, contract, llama_cpp):
        assert faults(llama_cpp, tmp_path / "m.gguf", contract) == []
        if template != "plain":
            assert contract.prompt_ids(CHAT).count(contract.bos_id) == 1


def _a_line_more(template: str, date: str) -> str:
    return template.replace("<|end_header_id|>\\n\\n", "<|end_header_id|>\\n\\n\\n").replace(
        "<|end_header_id|>\n\n", "<|end_header_id|>\n\n\n"
    )


def _wrong_stop(contract: Contract) -> dict[str, int]:
    return {"eos": contract.terminator_id - 1, "bos": contract.bos_id or 0}


def _bos_twice(writer: Any, read: Any) -> None:
    _describe(writer, read)
    writer.add_add_bos_token(True)


_describe = write._describe_tokens


@pytest.mark.parametrize(
    "owner, name, mutant, fault",
    [
        (vocabulary, "frozen", _a_line_more, "prompt"),
        (vocabulary, "_special", _wrong_stop, "terminator"),
        (write, "_describe_tokens", _bos_twice, "prompt"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicated key")
def test_mutants_are_noticed(
    tmp_path: Path, owner: Any, name: str, mutant: Any, fault: str, llama_cpp: Any
) -> None:
    contract = Contract.make(starter.base_folder())
    with changed(owner, name, mutant), written(tmp_path, contract, llama_cpp):
        assert fault in faults(llama_cpp, tmp_path / "m.gguf", contract)
