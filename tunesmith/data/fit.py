"""Rows that are longer than data.max_length: context cut at its front, plain text cut into pieces."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from tunesmith.contract import Contract, Encoded
from tunesmith.example import Example

_ROUNDS = 8  # the tokens of a shortened text are seldom those that were counted: a second round mends it


def trimmed(
    contract: Contract, example: Example, encoded: Encoded, most: int
) -> tuple[Example, Encoded] | None:
    """The row with at most `most` tokens: words taken from the front of the longest context of a user's turn.

    Instructions, cues and answers stay whole. None where no context would be left.
    """
    for _ in range(_ROUNDS):
        excess = len(encoded.ids) - most
        if excess <= 0:
            return example, encoded
        turns = [
            (len(turn.content) - turn.context, number)
            for number, turn in enumerate(example.messages)
            if turn.role == "user"
        ]
        if not turns:
            return None
        number = max(turns)[1]
        turn = example.messages[number]
        context = turn.content[turn.context :]
        starts = contract.token_starts(context)
        if excess >= len(starts):
            return None
        kept = context[starts[excess] :]
        space = kept.find(" ")
        if 0 <= space < 40:  # not from the middle of a word
            kept = kept[space:]
        kept = kept.lstrip()
        if not kept:
            return None
        shorter = replace(turn, content=turn.content[: turn.context] + kept)
        messages = (*example.messages[:number], shorter, *example.messages[number + 1 :])
        example = replace(example, messages=messages)
        encoded = contract.encode(example)
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
