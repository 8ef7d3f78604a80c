"""What has to hold for each row before training starts: measured on the ids themselves, not on how they were made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tunesmith.contract import Contract, Encoded
from tunesmith.example import Example
from tunesmith.proof import Proof

Pair = tuple[Example, Encoded]


def contract_proofs(contract: Contract, split: str, pairs: Sequence[Pair]) -> Iterator[Proof]:
    """Five proofs over every row; the figure is the number of rows that break the rule, the limit 0."""

    def proof(name: str, broken: list[str], rule: str) -> Proof:
        named = f"; first: {', '.join(broken[:3])}" if broken else ""
        return Proof(f"{name}_{split}", not broken, len(broken), 0, f"{rule} ({len(pairs)} rows){named}")

    yield proof(
        "prompt_is_prefix",
        [example.id for example, encoded in pairs if not _is_prefix(contract, example, encoded)],
        "the ids that generation starts from are a prefix of the row's ids, and none of them is learned",
    )
    yield proof(
        "terminator_learned",
        [example.id for example, encoded in pairs if not _ends(contract, example, encoded)],
        f"each learned answer ends with a learned {contract.terminator}",
    )
    begins = _template_bos(contract)
    yield proof(
        "bos_count",
        [
            example.id
            for example, encoded in pairs
            if begins > 1 or encoded.ids.count(_bos(contract)) != begins
        ],
        f"exactly the template's {begins} BOS, and never two",
    )
    yield proof(
        "no_pad_learned",
        [example.id for example, encoded in pairs if _learns(encoded, contract.pad_id, contract)],
        "no padding is learned",
    )
    yield proof(
        "some_learned",
        [example.id for example, encoded in pairs if not 0 < sum(encoded.learned) < len(encoded.ids)],
        "more than 0 % and less than 100 % of the tokens are learned",
    )


def _is_prefix(contract: Contract, example: Example, encoded: Encoded) -> bool:
    prompt = contract.prompt_ids(example.prompt)
    first = next((turn for turn, message in enumerate(example.messages) if message.learned), None)
    before = contract.prompt_ids(example.messages[:first]) if first is not None else prompt
    return encoded.ids[: len(prompt)] == prompt and not any(encoded.learned[: len(before)])


def _ends(contract: Contract, example: Example, encoded: Encoded) -> bool:
    spans = [
        t
        for t, learned in enumerate(encoded.learned)
        if learned and (t + 1 == len(encoded.learned) or not encoded.learned[t + 1])
    ]
    answers = sum(message.learned for message in example.messages)
    return len(spans) == answers and all(encoded.ids[t] == contract.terminator_id for t in spans)


def _bos(contract: Contract) -> int:
    return -1 if contract.bos_id is None else contract.bos_id


def _template_bos(contract: Contract) -> int:
    """BOS in the text that the template writes, counted on the text and not on ids."""
    from tunesmith.example import Message

    bos = contract.special.get("bos_token")
    return contract.render([Message("user", "question")], answer_next=True).count(bos) if bos else 0


def _learns(encoded: Encoded, pad: int, contract: Contract) -> bool:
    if pad == contract.terminator_id or not contract.pad_is_control:
        return False  # a token of its own right: told apart by place alone
    return any(learned and one == pad for one, learned in zip(encoded.ids, encoded.learned, strict=True))
