"""Other prompts for the base (evaluate.prompts): is fine-tuning worth it over prompting?

zero-shot    the row's own turns, and a system prompt that says what form an answer has
3-shot       three training rows as earlier turns, drawn by a fixed hash: the same ones for every row
3-nearest    the three nearest training rows by TF-IDF as earlier turns, the nearest last
NAME.txt     the file's text as the system prompt

A training row of the scored row's document, or with its very question, is never shown. All of them are rendered by the
Contract, as every other prompt is. No model, no torch.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from tunesmith.base import resolve
from tunesmith.contract import Contract
from tunesmith.errors import RecipeError
from tunesmith.evaluate.floors import likeness
from tunesmith.example import Example, Message
from tunesmith.recipe import Recipe
from tunesmith.tasks import Task

Turns = tuple[Message, ...]
_FEW = 20  # different answers: so few are listed
_MOST = 0.9  # of the training answers show a form that is described


def require(recipe: Recipe) -> None:
    """RecipeError where a file of evaluate.prompts can't be read or holds nothing."""
    for prompt in recipe.evaluate.prompts:
        if prompt.endswith(".txt"):
            _read(prompt)


def asked_by(
    recipe: Recipe,
    max_tokens: int,
    contract: Contract,
    task: Task,
    train: Sequence[Example],
    examples: Sequence[Example],
) -> dict[str, list[Turns]]:
    """One of evaluate.prompts → the turns that each row is asked by.

    `train`: labelled training rows. RecipeError where there are too few of them, or where shots and an answer of
    `max_tokens` don't fit into the model's positions; it names how many shots do.
    """
    made: dict[str, list[Turns]] = {}
    for prompt in recipe.evaluate.prompts:
        if prompt.endswith(".txt"):
            text = _read(prompt)
            made[prompt] = [(Message("system", text), *_talk(example)) for example in examples]
        elif prompt == "zero-shot":
            text = instructions(task, [example.answer or "" for example in train])
            made[prompt] = [_told(text, example) for example in examples]
        else:
            made[prompt] = _with_shots(recipe, prompt, train, examples)
        _require_room(recipe, prompt, made[prompt], contract, max_tokens)
    return made


def instructions(task: Task, answers: Sequence[str]) -> str:
    """What an answer has to look like, in words: the task's JSON schema, or the form of the training answers."""
    schema = getattr(task, "schema", None)
    if schema is not None:
        return (
            "Answer with one JSON object and nothing else: no explanation, no code fence. Take every value from what "
            "you are given, and write null where it does not say. The object fits this JSON schema:\n"
            + json.dumps(schema, ensure_ascii=False)
        )
    return "\n".join(["Answer what you are asked, with the answer alone: no explanation.", *_form(answers)])


def _form(answers: Sequence[str]) -> Iterator[str]:
    """Sentences on what nearly all training answers have in common."""
    known = [answer.strip() for answer in answers if answer.strip()]
    if not known:
        return
    different = list(dict.fromkeys(known))
    if len(different) <= _FEW < len(known):
        yield "The answer is one of: " + "; ".join(sorted(different)) + "."
        return
    lines = [answer.splitlines() for answer in known]
    for mark in ("- ", "* "):
        if _share([all(line.startswith(mark) for line in one) for one in lines]) >= _MOST:
            yield f"Write a list, each item on a line of its own that begins with {mark.strip()!r}."
    heads = [dict.fromkeys(line.split(":")[0] for line in one if ":" in line[:60]) for one in lines]
    common = [head for head in heads[0] if head and _share([head in one for one in heads]) >= _MOST]
    if common:
        yield "Use these headings, each at the beginning of a line: " + " ".join(
            f"{head}:" for head in common
        )
    words = statistics.median(len(answer.split()) for answer in known)
    yield f"An answer has about {words:.0f} word{'' if words == 1 else 's'}."


def _share(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags)


def _told(text: str, example: Example) -> Turns:
    """The instructions behind the row's own system prompt."""
    own = [message.content for message in example.prompt if message.role == "system"]
    return (Message("system", "\n\n".join([*own, text])), *_talk(example))


def _talk(example: Example) -> Turns:
    return tuple(message for message in example.prompt if message.role != "system")


# ---- shots


def _with_shots(
    recipe: Recipe, prompt: str, train: Sequence[Example], examples: Sequence[Example]
) -> list[Turns]:
    count = int(prompt.partition("-")[0])
    orders: Iterator[Sequence[int]]
    if prompt.endswith("-nearest"):
        orders = (np.argsort(-alike, kind="stable").tolist() for alike in likeness(train, examples))
    else:
        drawn = drawn_order(train, recipe.evaluate.decoding.seed)
        orders = (drawn for _ in examples)
    made = []
    for example, order in zip(examples, orders, strict=True):
        shots = list(islice((train[i] for i in order if _may_show(train[i], example)), count))
        if len(shots) < count:
            raise RecipeError(
                f"{prompt}: there are {len(shots)} labelled training rows to show for row {example.id}",
                where="evaluate.prompts",
                fix=f"ask for {len(shots)} at most" if shots else "leave it out",
            )
        if prompt.endswith("-nearest"):
            shots.reverse()  # the nearest stands next to the question
        own = [message for message in example.prompt if message.role == "system"]
        made.append((*own, *(turn for shot in shots for turn in _shown(shot)), *_talk(example)))
    return made


def drawn_order(train: Sequence[Example], seed: int) -> list[int]:
    """Numbers of the training rows in an order drawn by a hash of seed and id: the same on every machine."""
    keys = [hashlib.sha256(f"{seed}:{row.id}".encode("utf-8", "surrogatepass")).digest() for row in train]
    return sorted(range(len(train)), key=lambda i: keys[i])


def _may_show(shot: Example, example: Example) -> bool:
    """Not the scored row's own document, nor its question: that would hand it its answer."""
    return _document(shot) != _document(example) and _talk(shot) != _talk(example)


def _document(example: Example) -> str:
    return example.document or example.id


def _shown(shot: Example) -> Turns:
    return (*_talk(shot), Message("assistant", shot.answer or ""))


def _require_room(
    recipe: Recipe, prompt: str, asked: Sequence[Turns], contract: Contract, max_tokens: int
) -> None:
    positions = resolve(recipe.model).config.get("max_position_embeddings")
    if positions is None:
        return
    room = int(positions) - max_tokens
    over = [turns for turns in asked if len(contract.prompt_ids(turns)) > room]
    if not over:
        return
    what = (
        f"{prompt}: {len(over)} of {len(asked)} prompts leave no room for an answer of {max_tokens} tokens: "
        f"the base has {positions} positions for both"
    )
    if prompt == "zero-shot" or prompt.endswith(".txt"):
        fix = "shorten it, or lower evaluate.decoding.max_tokens"
    else:
        how = prompt.rpartition("-")[2]
        fits = min(_shots_that_fit(turns, how, contract, room) for turns in over)
        fix = f"write {fits}-{how}, which fits every row" if fits else "leave it out: not one shot fits"
    raise RecipeError(what, where="evaluate.prompts", fix=fix)


def _shots_that_fit(turns: Turns, how: str, contract: Contract, room: int) -> int:
    """How many of a prompt's shots can stay: the first ones of those drawn, the last ones of the nearest."""
    begin = 1 if turns[0].role == "system" else 0
    edges = [begin, *(i + 1 for i, turn in enumerate(turns) if turn.role == "assistant")]
    for kept in range(len(edges) - 2, 0, -1):
        stay = slice(edges[-1 - kept], edges[-1]) if how == "nearest" else slice(begin, edges[kept])
        if len(contract.prompt_ids((*turns[:begin], *turns[stay], *turns[edges[-1] :]))) <= room:
            return kept
    return 0


def _read(prompt: str) -> str:
    fix = "give the path of a text file, seen from the working folder"
    try:
        text = Path(prompt).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise RecipeError(
            f"the prompt {prompt!r} can't be read: {error.strerror}", where="evaluate.prompts", fix=fix
        ) from None
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"the prompt {prompt!r} is not UTF-8 text (byte {error.start})", where="evaluate.prompts", fix=fix
        ) from None
    if not text:
        raise RecipeError(
            f"the prompt {prompt!r} is empty", where="evaluate.prompts", fix="write one into it"
        )
    return text
