"""A server whose answers are known, asked by OpenAI's official client."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import openai
import pytest
from served_models import ScriptedLive, served_at, starter_contract

from tunesmith.contract import Contract
from tunesmith.generate.protocol import LiveRequest
from tunesmith.serve.limits import Limits
from tunesmith.serve.protocol import Served

TEXT = "Grade 2 😀 ಕ್ಯಾನ್ಸರ್, stage IV."


@pytest.fixture(scope="module")
def contract() -> Contract:
    return starter_contract()


class Scripted:
    """Echoes what it is asked (without BOS), or what `ids` says."""

    def __init__(self, contract: Contract) -> None:
        self.ids: Sequence[int] | None = None
        self.live = ScriptedLive(self._write, slots=32)
        self._end = contract.terminator_id
        self.served = Served("scripted", contract, self.live, "transformers", max_tokens=64)

    def _write(self, request: LiveRequest) -> list[int]:
        ids = request.prompt[1:] if self.ids is None else self.ids
        return [*ids, self._end, *[7] * 4000]


@pytest.fixture
def scripted(contract: Contract) -> Iterator[tuple[Scripted, openai.OpenAI, str]]:
    made = Scripted(contract)
    with (
        served_at(made.served, limits=Limits(requests=64)) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield made, client, url


def joined(chunks: Sequence[Any], index: int = 0) -> str:
    return "".join(one.delta.content or "" for chunk in chunks for one in chunk.choices if one.index == index)


def chat(client: openai.OpenAI, text: str = TEXT, **about: Any) -> Any:
    about.setdefault("max_tokens", 400)
    return client.chat.completions.create(
        model="scripted", messages=[{"role": "user", "content": text}], **about
    )
