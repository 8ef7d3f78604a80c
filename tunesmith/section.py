"""What every section of the recipe is made of."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(gt=0, lt=2**31)]
List = Annotated[tuple[str, ...], Field(strict=False)]  # YAML gives lists; a frozen section holds tuples


class Section(BaseModel):
    """A frozen part of the recipe; the text under a field is its documentation and goes into `tunesmith schema`."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
