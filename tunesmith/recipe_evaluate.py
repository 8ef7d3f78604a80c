"""The recipe's evaluate section: which answers are scored beside the tuned model's, and how."""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import Annotated, Literal

from pydantic import Field, field_validator

from tunesmith.section import List, Positive, Section

_PROMPT = re.compile(r"zero-shot|[1-9]\d{0,3}-(shot|nearest)|.+\.txt", re.DOTALL)


class Decoding(Section):
    """How answers are drawn."""

    temperature: Annotated[float, Field(ge=0)] = 0.0
    """0: greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Smallest set of tokens with this probability."""
    max_tokens: Literal["auto"] | Positive = "auto"
    """Longest answer; auto: a quarter more than the longest known answer, plus 16."""
    samples: Positive = 1
    """Answers per row, scored as a mean."""
    seed: int = 0
    """Seed of the draws."""


class Evaluate(Section):
    """Task scores of base and tuned on the same rows; beside them floors, other prompts, constrained answers, and the
    base held in nf4 or int8 where export.quantized names these and model.quantize doesn't."""

    task: str = "auto"
    """extraction, qa, language, text or another family of tunesmith/tasks, or package.module:function; auto:
    extraction where most answers are JSON objects, else text."""
    rows: Literal["all"] | Positive = "all"
    """How many rows are scored."""
    batch: Literal["auto"] | Positive = "auto"
    """Answers written side by side; auto: as many as memory takes. Changes no result but near ties of 16-bit
    arithmetic."""
    decoding: Decoding = Decoding()
    """How answers are drawn."""
    prompts: List = ()
    """Other prompts for the base, to set beside the tuned model: zero-shot (told what form an answer has), 3-shot
    (three training rows as earlier turns, the same ones for all rows), 3-nearest (the three nearest training rows), or
    a .txt file whose text is the system prompt."""
    metrics: List = ()
    """Your own metrics, package.module:function: def function(prompt, gold, answer) returns a number, True or False, a
    dict of these, or None where the row doesn't count. Scored as the mean over rows, under the function's name."""
    constrained: bool = False
    """Also score answers of tuned and base that are held to data.schema, or to the one inferred from the training
    answers, while they are written."""
    bertscore_model: str | None = None
    """Folder of an encoder for BERTScore, such as roberta-large; nothing is downloaded. Left out: no BERTScore."""

    @field_validator("prompts")
    @classmethod
    def _known_prompts(cls, prompts: tuple[str, ...]) -> tuple[str, ...]:
        names = [PurePath(one).stem if one.endswith(".txt") else one for one in prompts]
        for one, name in zip(prompts, names, strict=True):
            if not _PROMPT.fullmatch(one):
                raise ValueError(
                    f"{one!r} is no prompt: write zero-shot, 3-shot, 3-nearest or the path of a .txt file"
                )
            if names.count(name) > 1:
                raise ValueError(f"two prompts are named {name!r}: give each its own name")
        return prompts

    @field_validator("metrics")
    @classmethod
    def _functions(cls, metrics: tuple[str, ...]) -> tuple[str, ...]:
        for one in metrics:
            module, _, function = one.partition(":")
            if not module or not function:
                raise ValueError(f"{one!r} names no function: write package.module:function")
        return metrics
