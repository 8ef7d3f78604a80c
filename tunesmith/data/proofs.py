"""What has to hold for each row before training starts: measured on the ids themselves, not on how they were made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from tunesmith.contract import Contract, Encoded
from tunesmith.example import Example, Message
from tunesmith.proof import Proof

DIRECT = 20_000  # rows whose prompt is encoded once more on its own; after them one in EVERY
EVERY = 32


class Rules:
    """The rules for rows of one contract: five for conversations, three for plain text."""

    def __init__(self, contract: Contract) -> None:
        self._contract = contract
        self._begins = _template_bos(contract)
        self._bos = -1 if contract.bos_id is None else contract.bos_id
        self._pad = (
            None
            if contract.pad_id == contract.terminator_id or not contract.pad_is_control
            else contract.pad_id
        )

    def texts(self, rows: int, plain: int) -> dict[str, tuple[str, int]]:
        """What each rule says, and for how many of `rows`; `plain` of them are plain text: no prompt, no answer."""
        begins = [f"exactly the template's {self._begins} BOS"] if plain < rows or not rows else []
        begins += [f"exactly {int(self._bos >= 0)} BOS before plain text"] if plain else []
        each = {
            "prompt_is_prefix": (
                "the ids that generation starts from begin the row's ids, none of them learned",
                rows - plain,
            ),
            "terminator_learned": (
                f"each learned answer ends with a learned {self._contract.terminator}",
                rows - plain,
            ),
            "bos_count": (f"{' and '.join(begins)}, never two", rows),
            "no_pad_learned": ("no padding is learned", rows),
            "some_learned": ("more than 0 % and less than 100 % of the tokens are learned", rows - plain),
            "all_learned": ("every token but BOS is learned", plain),
        }
        return {name: told for name, told in each.items() if told[1] or (not rows and name != "all_learned")}

    def broken(self, example: Example, encoded: Encoded, direct: bool = True) -> Iterator[str]:
        """Names of the rules that a row breaks. `direct`: its prompt is rendered and encoded again by itself."""
        ids, learned = encoded
        begins = int(self._bos >= 0) if example.is_text else self._begins
        if example.is_text:
            if any(
                here == self._bos if one else here != self._bos
                for here, one in zip(ids, learned, strict=True)
            ):
                yield "all_learned"
        else:
            if direct and not _is_prefix(self._contract, example, encoded):
                yield "prompt_is_prefix"
            if not _ends(self._contract, example, encoded):
                yield "terminator_learned"
            if not 0 < sum(learned) < len(ids):
                yield "some_learned"
        if begins > 1 or ids.count(self._bos) != begins:
            yield "bos_count"
        if (
            self._pad is not None
            and self._pad in ids
            and any(one and here == self._pad for here, one in zip(ids, learned, strict=True))
        ):
            yield "no_pad_learned"


def split_proofs(
    rules: Rules, split: str, rows: int, plain: int, direct: int, broken: Mapping[str, Sequence[str]]
) -> Iterator[Proof]:
    """The proofs from the ids of the rows that broke each rule.

    `plain`: rows of plain text; `direct`: rows whose prompt was encoded by itself.
    """
    for name, (rule, of) in rules.texts(rows, plain).items():
        ids = broken.get(name, [])
        named = f"; first: {', '.join(ids[:3])}" if ids else ""
        by_itself = name == "prompt_is_prefix" and direct < of
        part = f", {direct} of them by encoding the prompt by itself" if by_itself else ""
        yield Proof(f"{name}_{split}", not ids, len(ids), 0, f"{rule} ({of} rows{part}){named}")


def _is_prefix(contract: Contract, example: Example, encoded: Encoded) -> bool:
    prompt = contract.prompt_ids(example.prompt)
    first = next((turn for turn, message in enumerate(example.messages) if message.learned), None)
    if first is None or first == len(example.messages) - 1:
        before = prompt
    else:
        before = contract.prompt_ids(example.messages[:first])
    return encoded.ids[: len(prompt)] == prompt and not any(encoded.learned[: len(before)])


def _ends(contract: Contract, example: Example, encoded: Encoded) -> bool:
    ids, learned = encoded
    ends = []
    at = 0
    while True:
        try:
            begin = learned.index(True, at)
        except ValueError:
            break
        try:
            at = learned.index(False, begin)
        except ValueError:
            at = len(learned)
        ends.append(at - 1)
    answers = sum(message.learned for message in example.messages)
    return len(ends) == answers and all(ids[t] == contract.terminator_id for t in ends)


def _template_bos(contract: Contract) -> int:
    """BOS in the text that the template writes, counted on the text and not on ids."""
    bos = contract.special.get("bos_token")
    return contract.render([Message("user", "question")], answer_next=True).count(bos) if bos else 0
