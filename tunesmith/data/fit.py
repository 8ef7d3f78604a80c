"""Rows that are longer than data.max_length: context cut at its front, plain text cut into pieces."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from tunesmith.contract import Contract, Encoded
from tunesmith.errors import RowError
from tunesmith.example import Example

LEAST_SHARE, LEAST_TOKENS = 0.2, 16  # of a context: with less the answer would be learned from nothing
_ROUNDS = 8  # the tokens of a shortened text are seldom those that were counted: a second round mends it


def trimmed(
    contract: Contract, example: Example, encoded: Encoded, most: int
) -> tuple[Example, Encoded] | None:
    """The row with at most `most` tokens: words taken from the front of the longest context of a turn.

    Instructions, cues and answers stay whole. None where no turn has a context, where less than LEAST_SHARE or
    LEAST_TOKENS of it would be left, or where the Contract refuses what is left.
    """
    least: dict[int, float] = {}
    for _ in range(_ROUNDS):
        excess = len(encoded.ids) - most
        if excess <= 0:
            return example, encoded
        number, turn = max(
            enumerate(example.messages), key=lambda one: (one[1].context_end - one[1].context, one[0])
        )
        if turn.context_end <= turn.context:
            return None
        before, behind = turn.content[: turn.context], turn.content[turn.context_end :]
        context = turn.content[turn.context : turn.context_end]
        starts = contract.token_starts(context)
        least.setdefault(number, max(LEAST_SHARE * len(starts), LEAST_TOKENS))
        if len(starts) - excess < least[number]:
            return None
        kept = context[starts[excess] :]
        space = kept.find(" ")
        if 0 <= space < 40:  # not from the middle of a word
            kept = kept[space:]
        kept = kept.lstrip()
        if not kept:
            return None
        shorter = replace(turn, content=before + kept + behind, context_end=len(before) + len(kept))
        messages = (*example.messages[:number], shorter, *example.messages[number + 1 :])
        example = replace(example, messages=messages)
        try:
            encoded = contract.encode(example)
        except RowError:  # what is left spells a control token together with what stands before it
            return None
    return None


def pieces(
    contract: Contract, example: Example, encoded: Encoded, most: int
) -> Iterator[tuple[Example, Encoded]]:
    """Plain text as rows of at most `most` tokens, every token of it learned once.

    Each piece begins with BOS where the tokenizer has one; only the last ends with the token that ends a document.
    """
    if len(encoded.ids) <= most:
        yield example, encoded
        return
    text = example.messages[0]
    begin = encoded.ids[:1] if not encoded.learned[0] else []
    body = encoded.ids[len(begin) :]
    starts = [*contract.token_starts(text.content), len(text.content)]
    count = -(-len(body) // (most - len(begin)))
    # of about one length: a last piece of the end token alone would teach nothing
    size = -(-len(body) // count)
    for number, start in enumerate(range(0, len(body), size), 1):
        ids = body[start : start + size]
        here = text.content[starts[start] : starts[min(start + size, len(starts) - 1)]]
        piece = replace(example, id=f"{example.id}#{number}", messages=(replace(text, content=here),))
        yield piece, Encoded(begin + ids, [False] * len(begin) + [True] * len(ids))
