"""The formats whose row is one conversation: from its columns to turns."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from tunesmith.data.row import BadRow, Manner, Row, cell, kind, text_cell
from tunesmith.example import ROLES, TEXT, Message

Turns = list[Message]

# the roles that ShareGPT dumps use; what is not here is a tool's or nobody's
SPEAKERS = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
}
TOOLS = {
    "function_call",
    "observation",
    "tool",
    "tool_call",
    "tool_response",
    "function",
    "function_response",
}
_dump = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


def answer_text(value: Any, name: str) -> str:
    """An answer as it is learned: text as it is, an object or list as JSON, null as nothing."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, dict | list):
        try:
            return _dump(value)
        except (TypeError, ValueError) as error:  # a date, a decimal, bytes; NaN or infinity
            raise BadRow(f"{name} can't be written as JSON: {error}") from None
    raise BadRow(f"{name} has to be text or a JSON object, not {kind(value)}")


def answer_turn(row: Row, name: str, manner: Manner) -> Turns:
    """The learned turn; none for rows that are still to be answered."""
    if not manner.labelled:
        return []
    return [Message("assistant", answer_text(cell(row, name, manner), name), learned=True)]


def system_turn(row: Row, manner: Manner) -> Turns:
    """The row's own system prompt, where it has one."""
    return [Message("system", text_cell(row, "system", manner))] if row.get("system") else []


def instruction(row: Row, manner: Manner) -> Turns:
    """instruction, input (may be missing or empty), output. Only the input may ever be cut."""
    order = text_cell(row, "instruction", manner)
    context = row.get("input")
    if context is None:
        context = ""
    elif not isinstance(context, str):
        raise BadRow(f"input has to be text, not {kind(context)}")
    given = bool(context) and not context.isspace()
    if manner.instruction_role == "system":
        if not given:
            raise BadRow(
                "input is empty, but data.instruction_role: system leaves nothing else for the user's turn"
            )
        system = row.get("system") or manner.system
        turns = [
            Message("system", f"{system}\n\n{order}" if system else order),
            Message.asking("", context),
        ]
    else:
        turns = system_turn(row, manner)
        if given:
            turns.append(Message.asking(f"{order}\n\n", context))
        else:
            turns.append(Message("user", order, context=len(order)))
    turns += answer_turn(row, "output", manner)
    return turns


def prompt_completion(row: Row, manner: Manner) -> Turns:
    """prompt and completion, each a text or a list of turns; the completion alone is learned."""
    prompt = cell(row, "prompt", manner)
    if isinstance(prompt, list):
        asked = read_turns(prompt, "prompt", last_may_be_empty=False)
        turns = [replace(turn, learned=False) for turn in asked]  # earlier answers are context
    else:
        turns = [Message("user", text_cell(row, "prompt", manner))]
    if turns[0].role != "system":
        turns = system_turn(row, manner) + turns
    if manner.labelled and isinstance(row.get("completion"), list):
        return turns + _learned(read_turns(row["completion"], "completion"))
    return turns + answer_turn(row, "completion", manner)


def messages(row: Row, manner: Manner) -> Turns:
    """A list of turns with role and content; each of the assistant's is learned."""
    return finished(read_turns(cell(row, "messages", manner), "messages"), manner)


def sharegpt(row: Row, manner: Manner) -> Turns:
    """A list of turns with from and value (or role and content); each of the assistant's is learned."""
    given = cell(row, "conversations", manner)
    if not isinstance(given, list) or not given:
        raise BadRow("conversations has to be a list of turns")
    turns: Turns = []
    for number, turn in enumerate(given, 1):
        said = turn if isinstance(turn, dict) else {}
        speaker = said.get("from", said.get("role"))
        content = said.get("value", said.get("content"))
        if not isinstance(speaker, str) or not isinstance(content, str):
            raise BadRow(f"turn {number} has to be an object with from and value as text")
        role = SPEAKERS.get(speaker.lower())
        if role is None:
            what = "is a tool's, which can't be trained on" if speaker.lower() in TOOLS else "is nobody's"
            raise BadRow(f"turn {number}, from {speaker!r}, {what}; known are {', '.join(SPEAKERS)}")
        if role == "system" and number > 1:
            raise BadRow(f"turn {number} is the system's; only the first may be")
        if not content.strip() and (role != "assistant" or number < len(given)):
            raise BadRow(f"turn {number} is empty")
        turns.append(Message(role, content, learned=role == "assistant"))
    if turns[0].role != "system":
        turns = system_turn(row, manner) + turns
    first = 1 if turns[0].role == "system" else 0
    if len(turns) > first and turns[first].role == "assistant":
        raise BadRow(
            f"the first turn, from {given[len(given) - len(turns) + first].get('from')!r}, is an answer to nothing; "
            "a conversation begins with human (or system, then human)"
        )
    return finished(turns, manner)


def text(row: Row, manner: Manner) -> Turns:
    """Plain text, all of it learned: continued pre-training."""
    return [Message(TEXT, text_cell(row, "text", manner), learned=manner.labelled)]


def read_turns(given: Any, name: str, last_may_be_empty: bool = True) -> Turns:
    """Turns of a list of {role, content}; an empty answer at the end is left to the data checks."""
    if not isinstance(given, list) or not given:
        raise BadRow(f"{name} has to be a list of turns")
    turns: Turns = []
    for number, turn in enumerate(given, 1):
        if not isinstance(turn, dict) or not isinstance(turn.get("content"), str):
            raise BadRow(f"turn {number} has to be an object with role and content as text")
        role = turn.get("role")
        if role not in ROLES:
            raise BadRow(f"turn {number} has the role {role!r}; known are {', '.join(ROLES)}")
        may_be_empty = last_may_be_empty and role == "assistant" and number == len(given)
        if not may_be_empty and not turn["content"].strip():
            raise BadRow(f"turn {number} is empty")
        turns.append(Message(role, turn["content"], learned=role == "assistant"))
    return turns


def finished(turns: Turns, manner: Manner) -> Turns:
    """Turns that end with the answer; without it for rows that are still to be answered."""
    if manner.labelled and turns[-1].role != "assistant":
        raise BadRow("the last turn is not the assistant's: there would be nothing to learn")
    if not manner.labelled and turns[-1].role == "assistant":
        turns.pop()  # a labelled file may be given to predict
    return turns


def _learned(turns: Turns) -> Turns:
    if len(turns) != 1 or turns[0].role != "assistant":
        raise BadRow("completion has to be one turn, the assistant's")
    return turns
