"""Preference pairs: a prompt, the better answer (learned) and the worse one (kept beside it).

Three shapes: prompt, chosen and rejected as text; chosen and rejected as lists of turns, with the prompt in them or
beside them; whole dialogues as text, "\\n\\nHuman: …\\n\\nAssistant: …" (the HH sets), where what both share is the
prompt.
"""

from __future__ import annotations

import re
from typing import Any

from tunesmith.data.formats.turns import Turns, read_turns, system_turn
from tunesmith.data.row import BadRow, Manner, Row, cell, kind, text_cell
from tunesmith.example import Message

_SPEAKER = re.compile(r"(?:\A|\n\n)(Human|Assistant):(?: |(?=\n|\Z))")
_DIALOGUE = re.compile(r"\s*(?:Human|Assistant):")


def pair(row: Row, manner: Manner) -> tuple[Turns, str | None]:
    """Turns up to the better answer, and the worse answer. Only the better answer is learned."""
    prompt = _prompt(row, manner)
    if not manner.labelled:
        if prompt is None:
            prompt, _ = _side(cell(row, "chosen", manner), "chosen", None)
        return _with_system(row, manner, _asked(prompt)), None
    above, chosen = _side(cell(row, "chosen", manner), "chosen", prompt)
    worse = cell(row, "rejected", manner)
    if worse is None:
        raise BadRow("rejected is null: a pair needs both answers")
    below, rejected = _side(worse, "rejected", prompt)
    if above != below:
        turn = next(
            (i for i, (a, b) in enumerate(zip(above, below, strict=False), 1) if a != b),
            min(len(above), len(below)) + 1,
        )
        raise BadRow(
            f"chosen and rejected have different prompts (from turn {turn} on): they answer different things"
        )
    if chosen == rejected:
        raise BadRow("chosen and rejected are the same")
    turns = [*_with_system(row, manner, _asked(above)), Message("assistant", chosen, learned=True)]
    return turns, rejected


def _prompt(row: Row, manner: Manner) -> Turns | None:
    value = row.get("prompt")
    if value is None:
        return None
    if isinstance(value, list):
        return _unlearned(read_turns(value, "prompt", last_may_be_empty=False))
    whole = text_cell(row, "prompt", manner)
    if not _is_dialogue(whole):
        return [Message("user", whole)]
    turns = _dialogue(whole, "prompt")
    if turns[-1].role == "assistant" and not turns[-1].content.strip():
        turns.pop()  # the HH sets end a prompt with "Assistant:"
    return turns


def _side(value: Any, name: str, prompt: Turns | None) -> tuple[Turns, str]:
    """Prompt and answer of one side. A prompt beside it must be the one that the side itself brings, if it does."""
    if isinstance(value, list):
        turns = _unlearned(read_turns(value, name))
    elif value is None or isinstance(value, str):
        whole = value or ""
        if prompt is not None and not (_is_dialogue(whole) and whole.lstrip().startswith("Human:")):
            return prompt, whole
        if not _is_dialogue(whole):
            raise BadRow(f"{name} is an answer alone, and there is no column 'prompt'")
        turns = _dialogue(whole, name)
    else:
        raise BadRow(f"{name} has to be text or a list of turns, not {kind(value)}")
    if turns[-1].role != "assistant":
        raise BadRow(f"the last turn of {name} is not the assistant's")
    *asked, answer = turns
    if prompt is None:
        return asked, answer.content
    plain = [turn for turn in asked if turn.role != "system"]
    if plain and plain != [turn for turn in prompt if turn.role != "system"]:
        # some sets give the whole dialogue, and of it the first question again as the prompt
        if [plain[0]] != prompt:
            raise BadRow(f"{name} brings another prompt than the column 'prompt'")
        return asked, answer.content
    return (asked if len(asked) > len(prompt) else prompt), answer.content


def _is_dialogue(text: str) -> bool:
    return _DIALOGUE.match(text) is not None


def _dialogue(text: str, name: str) -> Turns:
    """Turns of "\\n\\nHuman: …\\n\\nAssistant: …"."""
    parts = _SPEAKER.split("\n\n" + text.lstrip())
    if parts[0].strip():  # it would be lost
        raise BadRow(f"{name} begins with no turn: behind Human: and Assistant: a space is needed")
    turns: Turns = []
    for number, (speaker, content) in enumerate(zip(parts[1::2], parts[2::2], strict=True), 1):
        if speaker == "Human" and not content.strip():
            raise BadRow(f"turn {number} of {name} is empty")
        turns.append(Message("user" if speaker == "Human" else "assistant", content))
    return turns


def _asked(turns: Turns) -> Turns:
    if not turns or turns[-1].role != "user":
        raise BadRow("the prompt does not end with the user's turn")
    return turns


def _unlearned(turns: Turns) -> Turns:
    return [Message(turn.role, turn.content) for turn in turns]


def _with_system(row: Row, manner: Manner, turns: Turns) -> Turns:
    return turns if turns[0].role == "system" else system_turn(row, manner) + turns
