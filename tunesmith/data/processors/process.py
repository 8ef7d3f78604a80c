"""A row through the user's processor: called, checked, its failures told as the row's."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from traceback import walk_tb
from typing import Any

from tunesmith.data.processors.ready import ANSWERS, PROCESSORS
from tunesmith.data.row import TORN, BadRow, Manner, Row, dig, missing, name_of, torn
from tunesmith.errors import RecipeError, TunesmithError
from tunesmith.example import ROLES, TEXT, Example, Message
from tunesmith.lookup import find


def processed(row: Row, view: Row, place: str, manner: Manner) -> list[Example]:
    """What the processor makes of `view` (the row, under the names of data.columns); empty: it is left out."""
    name = manner.processor or ""
    function = find_processor(name)
    try:
        given = dict(view)  # a copy: what it pops is still there for data.split
        if manner.system and not given.get("system"):
            given["system"] = manner.system
        if not manner.labelled:  # a row is asked about whatever its answer is
            for column in ANSWERS.get(name, ()):
                given.pop(column, None)
        made = function(given)
    except BadRow:
        raise
    except (Exception, SystemExit) as error:  # the user's own code: anything may happen
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise BadRow(f"processor {name}: {reason}", hint=_origin(error)) from error
    examples = [made] if isinstance(made, Example) else made
    if not isinstance(examples, list | tuple) or not all(isinstance(one, Example) for one in examples):
        raise BadRow(
            f"processor {name} returned {_told(made)}; it has to return an Example, a list of them, "
            "or an empty list to leave the row out"
        )
    several = len(examples) > 1
    return [
        _filled(one, f"{place}#{number}" if several else place, row, place, manner)
        for number, one in enumerate(examples, 1)
    ]


@lru_cache(maxsize=16)
def find_processor(name: str) -> Callable[[Row], Any]:
    """The function that data.processor names. RecipeError where there is none."""
    try:
        function = find(name, PROCESSORS, "processor")
    except TunesmithError as error:
        where = f"data.processor ({error.where})" if error.where else "data.processor"
        raise RecipeError(error.what, where=where, fix=error.fix) from None
    if not callable(function):
        raise RecipeError(f"{name} is no function", where="data.processor", fix="give module:function")
    return function


def _filled(one: Example, identity: str, row: Row, place: str, manner: Manner) -> Example:
    turns = _checked(one, manner)
    identity = one.id or identity
    document = one.document or place  # all that was made of one row stays together
    slices = dict(one.slices)
    if manner.group and manner.group != "document":
        value = _value(row, one, manner.group, "data.split.group")
        document = name_of(value) or document
    if manner.stratify and manner.stratify not in slices:
        value = _value(row, one, manner.stratify, "data.split.stratify")
        slices[manner.stratify] = name_of(value) or "(none)"
    texts = [identity, document, one.rejected or "", *slices, *slices.values()]
    if not all(isinstance(text, str) for text in texts):
        raise BadRow(f"processor {manner.processor} gave an id, document, slice or rejected that is no text")
    texts += [turn.content for turn in turns]
    texts.append(_json(one.facts, manner))
    if torn(texts):
        raise BadRow(TORN)
    rejected = one.rejected if manner.labelled else None
    return Example(identity, turns, document, slices, place, rejected, one.facts)


def _json(facts: Any, manner: Manner) -> str:
    """Facts as they will lie in the Run."""
    try:
        if not isinstance(facts, Mapping):
            raise TypeError(f"it is a {type(facts).__name__}")
        return json.dumps(dict(facts), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise BadRow(f"processor {manner.processor} gave facts that are no JSON object: {error}") from None


def _value(row: Row, one: Example, column: str, key: str) -> Any:
    if column in one.slices:
        return one.slices[column]
    if column == "document":
        return one.document
    try:
        return dig(row, column)
    except KeyError:
        raise BadRow(f"{missing(column, (*one.slices, *row))} ({key})") from None


def _checked(one: Example, manner: Manner) -> tuple[Message, ...]:
    turns = list(one.messages)
    told = f"processor {manner.processor}"
    if not turns or not all(isinstance(turn, Message) and isinstance(turn.content, str) for turn in turns):
        raise BadRow(f"{told} made an Example without messages, or with contents that are no text")
    if turns[0].role == TEXT:
        if len(turns) > 1:
            raise BadRow(f"{told} made an Example of plain text and something else")
    else:
        unknown = next((turn.role for turn in turns if turn.role not in ROLES), None)
        if unknown is not None:
            raise BadRow(f"{told} made a turn with the role {unknown!r}; known are {', '.join(ROLES)}")
        if manner.labelled and turns[-1].role != "assistant":
            raise BadRow(f"{told} made an Example without an answer: there would be nothing to learn")
        if manner.labelled and not any(turn.learned for turn in turns):
            raise BadRow(f"{told} made an Example of which nothing is learned")
        if not manner.labelled and turns[-1].role == "assistant":
            turns.pop()
        if not any(turn.role == "user" and turn.content.strip() for turn in turns):
            raise BadRow(f"{told} made an Example that asks nothing: there is no user's turn, or it is empty")
        if manner.system and turns[0].role != "system":
            turns.insert(0, Message("system", manner.system))
    return tuple(turns)


def _told(made: object) -> str:
    if made is None:
        return "None"
    if isinstance(made, list | tuple):
        other = next(type(one).__name__ for one in made if not isinstance(one, Example))
        return f"a {type(made).__name__} that holds {other}"
    return f"a {type(made).__name__}"


def _origin(error: BaseException) -> str | None:
    """File, line and function of the innermost frame in the processor's own file."""
    frames = list(walk_tb(error.__traceback__))[1:]
    if not frames:
        return None
    own = frames[0][0].f_code.co_filename
    frame, line = next(one for one in reversed(frames) if one[0].f_code.co_filename == own)
    return f"{Path(own).name}:{line}, in {frame.f_code.co_name}"
