"""What is asked as token ids: by the Contract alone, as training and evaluation made them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.contract import Contract
from tunesmith.errors import TunesmithError
from tunesmith.example import Message
from tunesmith.serve.protocol import Unservable

_LARGE = 20_000  # characters that are rendered beside the loop


async def chat_prompt(contract: Contract, turns: Sequence[Message], where: str) -> list[int]:
    """The conversation up to where the answer begins, with the contract's system prompt where it brings none.

    Unservable where a turn holds the text of a control token, or the template refuses the conversation.
    """
    if contract.system and turns[0].role != "system":
        turns = [Message("system", contract.system), *turns]
    try:
        if sum(len(turn.content) for turn in turns) < _LARGE:
            return contract.prompt_ids(turns)
        return await asyncio.to_thread(contract.prompt_ids, turns)
    except TunesmithError as error:
        raise Unservable(error.what, where=where, fix=error.fix) from None


async def raw_prompt(contract: Contract, text: str, where: str) -> tuple[list[int], int]:
    """Plain text as it stands, behind the tokenizer's BOS where it has one (plain text is trained so); how many tokens
    were put before it.

    Nothing is rendered: control tokens that the text spells are control tokens.
    """
    if len(text) < _LARGE:
        ids = contract.tokens_of(text)
    else:
        ids = await asyncio.to_thread(contract.tokens_of, text)
    begin = [] if contract.bos_id is None or ids[:1] == [contract.bos_id] else [contract.bos_id]
    if not begin + ids:
        raise Unservable("the prompt is empty", where=where)
    return begin + ids, len(begin)


def given_prompt(contract: Contract, ids: Sequence[int], where: str) -> list[int]:
    """Token ids as they were given. Unservable where there is none, or one that is no token."""
    if not ids:
        raise Unservable("the prompt is empty", where=where)
    if min(ids) < 0 or max(ids) >= contract.vocabulary_size:
        raise Unservable(f"token ids are 0 to {contract.vocabulary_size - 1}", where=where)
    return list(ids)


async def answer_schema(schema: Mapping[str, Any], most: int, where: str) -> Mapping[str, Any]:
    """The JSON schema of an object. Unservable where it is no schema, one of something else, or has more than `most`
    bytes: what it takes to check it and to make a grammar of it grows with these."""
    from jsonschema import Draft202012Validator, FormatChecker
    from jsonschema.exceptions import SchemaError

    if (size := len(json.dumps(schema))) > most:
        raise Unservable(f"the schema has {size:,} bytes; the server takes {most:,}", where=where)
    try:
        # without formats: Python's `re` is not what reads the patterns, and knows no \p{L}
        await asyncio.to_thread(Draft202012Validator.check_schema, schema, FormatChecker(()))
    except SchemaError as error:
        raise Unservable(f"not a JSON schema: {error.message[:200]}", where=where) from None
    except RecursionError:
        raise Unservable("the schema is nested too deep", where=where) from None
    if schema.get("type", "object") != "object":
        raise Unservable("answers are JSON objects: the schema's type must be object", where=where)
    return schema
