"""The Contract against its referees: Meta's own formatter, transformers' templates; and the seed project's bugs."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from llama3_referee import meta_chat_format, write_llama3_tokenizer

from tunesmith.contract import Contract, Encoded
from tunesmith.data.proofs import Rules, split_proofs
from tunesmith.errors import ModelError, RowError
from tunesmith.example import Example, Message
from tunesmith.templates import NAMED

CONVERSATIONS = [
    [("user", "What is a carcinoma?"), ("assistant", "A cancer of epithelial cells.")],
    [
        ("system", "Answer in JSON."),
        ("user", "  stage IIIB, 12.5 mm\n\n"),
        ("assistant", '{"stage": "IIIB"}'),
    ],
    [("user", "ಕನ್ನಡ / naïve café 🩺"), ("assistant", "ಹೌದು"), ("user", "2+2?"), ("assistant", "  4 \n")],
    [("system", "a\nb"), ("user", "x" * 300), ("assistant", "tail  ")],
]


def example(turns: list[tuple[str, str]], last_only: bool = False) -> Example:
    messages = [Message(role, text, learned=role == "assistant") for role, text in turns]
    if last_only:
        messages = [dataclasses.replace(m, learned=m.learned and m is messages[-1]) for m in messages]
    return Example("row", tuple(messages), "row", {}, "rows.jsonl:1")


@pytest.fixture(scope="session")
def llama3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama3_tokenizer(tmp_path_factory.mktemp("llama3"))


@pytest.mark.parametrize("turns", CONVERSATIONS)
def test_llama3_equals_metas_formatter(llama3: Path, turns: list[tuple[str, str]]) -> None:
    from llama_models.datatypes import RawMessage

    contract = Contract.make(llama3, template="llama3")
    meta = meta_chat_format()
    # trimmed content is the scope in which the two agree by definition: the template trims, Meta's code as well
    raw = [
        RawMessage(
            role=role, content=text.strip(), **({"stop_reason": "end_of_turn"} if role == "assistant" else {})
        )
        for role, text in turns
    ]
    ours = example(turns)
    whole = meta.encode_dialog_prompt(raw).tokens  # ends with the header of the next answer
    assert contract.prompt_ids(ours.messages) == whole
    ids = contract.encode(ours).ids
    assert ids == whole[: len(ids)]
    assert contract.prompt_ids(ours.prompt) == meta.encode_dialog_prompt(raw[:-1]).tokens


@pytest.mark.parametrize("template", ["llama3", "chatml", "plain"])
def test_named_templates_equal_transformers(llama3: Path, tmp_path: Path, template: str) -> None:
    from transformers import PreTrainedTokenizerFast

    source = llama3 if template != "chatml" else _with_chatml_tokens(llama3, tmp_path / "chatml")
    contract = Contract.make(source, template=template)
    contract.save(tmp_path / "tokenizer")
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path / "tokenizer")
    for turns in CONVERSATIONS:
        plain = [{"role": role, "content": text} for role, text in turns]
        ours = example(turns)
        assert contract.encode(ours).ids == theirs.apply_chat_template(
            plain, tokenize=True, return_dict=False
        )
        prompt = theirs.apply_chat_template(
            plain[:-1], tokenize=True, add_generation_prompt=True, return_dict=False
        )
        assert contract.prompt_ids(ours.prompt) == prompt


def _with_chatml_tokens(llama3: Path, folder: Path) -> Path:
    from tokenizers import AddedToken, Tokenizer

    shutil.copytree(llama3, folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(
        [AddedToken("<|im_start|>", special=True), AddedToken("<|im_end|>", special=True)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_learned_is_the_answer_and_its_terminator(llama3: Path) -> None:
    contract = Contract.make(llama3, template="llama3")

    def learned_text(row: Example) -> str:
        return "".join(text for text, learned in contract.spans(contract.encode(row)) if learned)

    assert learned_text(example(CONVERSATIONS[2])) == "ಹೌದು<|eot_id|>4<|eot_id|>"
    assert learned_text(example(CONVERSATIONS[2], last_only=True)) == "4<|eot_id|>"


def test_what_follows_the_terminator_is_not_learned(llama3: Path, tmp_path: Path) -> None:
    contract = Contract.make(_with_chatml_tokens(llama3, tmp_path / "c"), template="chatml")
    ids, learned = contract.encode(example(CONVERSATIONS[0]))
    assert ids[-2] == contract.terminator_id and learned[-2] and not learned[-1]
    assert contract.terminator == "<|im_end|>"


def test_base_without_template_ends_with_a_token_it_was_trained_on(llama3: Path) -> None:
    contract = Contract.make(llama3)  # Llama 3.1 8B as published: no chat template, <|eot_id|> never trained
    assert contract.template_name == "plain"
    assert contract.terminator == "<|end_of_text|>"
    assert contract.terminator_id in contract.stop_ids


SPACED = "{% for m in messages %}{{ ' ' + m.content + ' <|eot_id|>' }}{% endfor %}"


def test_white_space_before_the_terminator_is_learned(llama3: Path, tmp_path: Path) -> None:
    """As in Llama 2's own template, which ends an answer with a space and </s>."""
    (tmp_path / "t.jinja").write_text(SPACED)
    contract = Contract.make(llama3, template=str(tmp_path / "t.jinja"))
    assert contract.terminator == "<|eot_id|>"
    encoded = contract.encode(example([("user", "two"), ("assistant", "three")]))
    assert contract.spans(encoded) == [(" two <|eot_id|>", False), (" three <|eot_id|>", True)]
    assert contract.decode(contract.tokens_of(" three <|eot_id|>")).strip() == "three"


THINKS = "{% for m in messages %}{{ m.role + ': ' }}{% if m.role == 'assistant' and loop.last %}{{ '<think></think>' }}{% endif %}{{ m.content + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% if enable_thinking is defined and enable_thinking is false %}{{ '<think></think>' }}{% endif %}{% endif %}"  # noqa: E501


def test_empty_thoughts_stand_in_the_prompt_and_are_not_learned(llama3: Path, tmp_path: Path) -> None:
    """Qwen 3's template writes them before a row's answer; learned, they would stand in each answer that is scored."""
    from transformers import AutoTokenizer

    (tmp_path / "t.jinja").write_text(THINKS)
    contract = Contract.make(llama3, template=str(tmp_path / "t.jinja"))
    row = example([("user", "two"), ("assistant", "three")])
    begun = "user: two<|eot_id|>assistant: <think></think>"
    assert contract.spans(contract.encode(row)) == [(begun, False), ("three<|eot_id|>", True)]
    assert contract.prompt_ids(row.prompt) == contract.tokens_of(begun)
    contract.save(tmp_path / "saved")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "saved")
    turns = [{"role": "user", "content": "two"}]
    for more in ({}, {"enable_thinking": True}):
        text = theirs.apply_chat_template(turns, add_generation_prompt=True, tokenize=False, **more)
        assert text == begun


def test_rows_with_thoughts_are_refused_with_the_way_to_learn_them(llama3: Path, tmp_path: Path) -> None:
    own = "{% if m.role == 'assistant' and loop.last and '<think>' not in m.content %}"
    keeps = THINKS.replace("{% if m.role == 'assistant' and loop.last %}", own).replace(": '", "\\n'")
    row = example([("user", "two"), ("assistant", "<think>one more</think>three")])
    (tmp_path / "t.jinja").write_text(keeps)
    with pytest.raises(RowError) as caught:
        Contract.make(llama3, template=str(tmp_path / "t.jinja")).encode(row)
    assert "to train on them" in str(caught.value.fix)
    (tmp_path / "t.jinja").write_text("{% set enable_thinking = true %}" + keeps)
    contract = Contract.make(llama3, template=str(tmp_path / "t.jinja"))
    spans = contract.spans(contract.encode(row))
    assert spans[-1] == ("<think>one more</think>three<|eot_id|>", True)
    assert contract.prompt_ids(row.prompt) == contract.tokens_of(spans[0][0])


def test_other_programs_take_tokenizer_json_as_it_is(llama3: Path, tmp_path: Path) -> None:
    """transformers' LlamaTokenizer would put its own rules in the place of these, and give other ids."""
    from transformers import AutoTokenizer

    base = tmp_path / "base"
    shutil.copytree(llama3, base)
    content = json.loads((base / "tokenizer.json").read_text())
    content["normalizer"] = {"type": "Replace", "pattern": {"String": "ß"}, "content": "ss"}
    (base / "tokenizer.json").write_text(json.dumps(content))
    told = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps(told | {"tokenizer_class": "GPT2Tokenizer"}))
    contract = Contract.make(base, template="llama3")
    contract.save(tmp_path / "saved")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "saved")
    text = "Straße  zwei"
    assert theirs(text, add_special_tokens=False)["input_ids"] == contract.tokens_of(text)


def test_date_stands_still(tmp_path: Path, llama3: Path) -> None:
    template = tmp_path / "dated.jinja"
    template.write_text(
        "{{ strftime_now('%d %b %Y') }} {{ date_string }}{% for m in messages %}{{ m.content }}<|eot_id|>{% endfor %}"
    )
    contract = Contract.make(llama3, template=str(template))
    assert contract.render([Message("user", "x")], answer_next=True) == "26 Jul 2024 26 Jul 2024x<|eot_id|>"


def test_saved_and_loaded_is_the_same(llama3: Path, tmp_path: Path) -> None:
    contract = Contract.make(llama3, template="llama3", system="Be brief.", instruction_role="system")
    contract.save(tmp_path / "a")
    again = Contract.load(tmp_path / "a")
    assert again.sha256 == contract.sha256
    assert again.encode(example(CONVERSATIONS[1])) == contract.encode(example(CONVERSATIONS[1]))
    stored = tmp_path / "a" / "tokenizer.json"
    stored.write_text(stored.read_text().replace('"<|eot_id|>"', '"<|eot_ix|>"', 1))
    with pytest.raises(ModelError, match="not the one"):
        Contract.load(tmp_path / "a")


def test_control_text_in_a_turn_is_refused(llama3: Path) -> None:
    contract = Contract.make(llama3, template="llama3")
    with pytest.raises(RowError, match=r"control token <\|eot_id\|>"):
        contract.encode(example([("user", "ignore this<|eot_id|>"), ("assistant", "ok")]))


def test_template_without_an_end_is_refused(llama3: Path, tmp_path: Path) -> None:
    endless = tmp_path / "endless.jinja"
    endless.write_text("{% for m in messages %}{{ m.content }}\n{% endfor %}")
    with pytest.raises(ModelError, match="never stop"):
        Contract.make(llama3, template=str(endless))


@pytest.mark.parametrize(
    "source, says",
    [
        (b"{{ bos_token }}hello<|eot_id|>", "leaves the assistant's turn out"),
        (b"{{ 1 // 0 }}", "the chat template fails: integer division"),
        (b"\xe9{{ bos_token }}", "the template can't be read"),
        (b"{% for m in messages %}", "is not valid Jinja"),
    ],
)
def test_a_broken_template_is_no_bug(llama3: Path, tmp_path: Path, source: bytes, says: str) -> None:
    (tmp_path / "broken.jinja").write_bytes(source)
    with pytest.raises(ModelError, match=says):
        Contract.make(llama3, template=str(tmp_path / "broken.jinja"))


# ---- the seed project's bugs (peers.md 3b), each with the mutant that a proof has to catch


def _proofs(contract: Contract, encoded: Encoded, turns: list[tuple[str, str]]) -> dict[str, bool]:
    rules, row = Rules(contract), example(turns)
    broken = {rule: [row.id] for rule in rules.broken(row, encoded)}
    return {p.name: p.passed for p in split_proofs(rules, "train", 1, 0, 1, broken)}


TURNS = CONVERSATIONS[1]


@pytest.fixture
def contract(llama3: Path) -> Contract:
    return Contract.make(llama3, template="llama3")


def test_clean_rows_pass_every_proof(contract: Contract) -> None:
    for turns in CONVERSATIONS:
        assert all(_proofs(contract, contract.encode(example(turns)), turns).values())


def test_double_bos_is_caught(contract: Contract) -> None:
    ids, learned = contract.encode(example(TURNS))
    assert ids.count(contract.bos_id) == 1  # type: ignore[arg-type]
    mutant = Encoded([ids[0], *ids], [False, *learned])
    assert not _proofs(contract, mutant, TURNS)["bos_count_train"]


def test_a_template_with_two_bos_is_caught(llama3: Path, tmp_path: Path) -> None:
    twice = tmp_path / "twice.jinja"
    twice.write_text("{{ bos_token }}" + NAMED["llama3"])
    contract = Contract.make(llama3, template=str(twice))
    assert not _proofs(contract, contract.encode(example(TURNS)), TURNS)["bos_count_train"]


def test_unmasked_prompt_is_caught(contract: Contract) -> None:
    ids, learned = contract.encode(example(TURNS))
    assert not _proofs(contract, Encoded(ids, [True] * len(ids)), TURNS)["some_learned_train"]
    first = learned.index(True)
    leaky = Encoded(ids, [on or t == first - 3 for t, on in enumerate(learned)])
    assert not _proofs(contract, leaky, TURNS)["prompt_is_prefix_train"]


def test_pad_equal_to_the_terminator_masks_nothing(llama3: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pad_is_eos"
    shutil.copytree(llama3, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text()) | {"pad_token": "<|end_of_text|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    contract = Contract.make(folder)  # plain: the terminator is <|end_of_text|>, and so is pad
    ids, learned = contract.encode(example(TURNS))
    assert contract.pad_id != contract.terminator_id
    assert all(_proofs(contract, Encoded(ids, learned), TURNS).values())
    by_id = Encoded(ids, [on and one != contract.terminator_id for one, on in zip(ids, learned, strict=True)])
    assert not _proofs(contract, by_id, TURNS)["terminator_learned_train"]


def test_wrong_stop_token_is_caught(contract: Contract) -> None:
    ids, learned = contract.encode(example(TURNS))
    eos = next(iter(contract.stop_ids - {contract.terminator_id}))
    wrong = Encoded(
        [eos if one == contract.terminator_id and on else one for one, on in zip(ids, learned, strict=True)],
        learned,
    )
    assert not _proofs(contract, wrong, TURNS)["terminator_learned_train"]
    assert contract.terminator == "<|eot_id|>"  # not the tokenizer's eos


def test_another_prompt_at_inference_is_caught(contract: Contract, llama3: Path) -> None:
    trained = contract.encode(example(TURNS))
    other = Contract.make(llama3, template="plain")
    assert not _proofs(other, trained, TURNS)["prompt_is_prefix_train"]
