"""predict: answers for new rows, by the Contract that the model was trained with; resumable."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from tunesmith import console
from tunesmith.contract import Contract
from tunesmith.data.formats.examples import Manner, read_file
from tunesmith.data.processors.ready import PROCESSORS
from tunesmith.errors import AccessError, ModelError, RowError
from tunesmith.example import Example
from tunesmith.opened.model import Opened, open_model
from tunesmith.opened.place import find_model
from tunesmith.run import require_writable


def predict(
    model: str,
    rows: Path,
    out: Path,
    *,
    runs_dir: Path,
    batch: int | Literal["auto"] = "auto",
    max_tokens: int | None = None,
    engine: str = "auto",
) -> dict[str, Any]:
    """Writes a line per row of `rows` to `out`: id, prompt, answer, what the task reads in it, and its problems."""
    require_writable(out)
    if out.exists() and rows.exists() and out.samefile(rows):
        raise AccessError(
            "--out is the file of the rows: they would be lost", where=str(out), fix="name another"
        )
    place = find_model(model, runs_dir)
    assert place is not None
    opened = open_model(place, engine, runs_dir)
    examples = read_file(rows, _manner(opened))  # bad rows are told before any weights are loaded
    from tunesmith.answers import answer_rows
    from tunesmith.generate.protocol import Decoding

    decoding = Decoding(max_tokens=max_tokens or opened.decoding.max_tokens)
    generator = opened.generator(batch, _longest(opened, examples) + decoding.max_tokens)
    with console.progress("predict", total=len(examples), unit="answers") as bar:
        answer_rows(
            examples,
            opened.contract,
            generator,
            opened.task(),
            decoding,
            out,
            on_done=lambda n: bar.update(n),
        )
    console.say(f"{len(examples)} answers: {out}")
    return {"out": str(out), "rows": len(examples)}


def _longest(opened: Opened, examples: Sequence[Example]) -> int:
    """Tokens of the longest prompt, where the engine has to know before it begins."""
    longest = 1
    for row in examples if opened.engine == "llama.cpp" else ():
        with suppress(RowError):  # told with its row when it is its turn
            longest = max(longest, len(opened.contract.prompt_ids(row.prompt)))
    return longest


def _manner(opened: Opened) -> Manner:
    """Rows are read as the training rows were. Code named in a folder that comes from elsewhere is not run."""
    if opened.run is None and not opened.contract.reading:
        return Manner(labelled=False)
    contract: Contract = opened.contract
    reading = contract.reading
    processor = reading.get("processor")
    own = opened.run is not None and not opened.place.foreign
    if processor is not None and not own and processor not in PROCESSORS:
        raise ModelError(
            f"this model's rows were made by {processor}, whose code would run here",
            where="contract.json: reading.processor",
            fix="predict with the run itself, or give rows with prompts and remove that key",
        )
    return Manner(
        reading.get("format", "auto"),
        contract.system,
        contract.instruction_role,
        labelled=False,
        columns=reading.get("columns"),
        processor=processor,
    )
