"""Do other programs read a prompt from an exported thing as the Contract writes it, and end where it ends?

The thing's own template and tokenizer are used, on the scored rows' own texts: an HF folder's through transformers, a
GGUF file's through llama.cpp. Nothing is taken from the Contract but what is expected.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunesmith.base import Base
from tunesmith.contract import DATE, Contract
from tunesmith.errors import ModelError
from tunesmith.example import Example, Message
from tunesmith.export.record import proof_prefix
from tunesmith.generate.llama_cpp.contract import tokens_by_llama_cpp
from tunesmith.generate.llama_cpp.file import read_gguf
from tunesmith.generate.llama_cpp.library import require_llama_cpp
from tunesmith.generate.protocol import Decoding
from tunesmith.proof import Proof
from tunesmith.templates import compile_template

ROWS = 100  # whose prompts transformers reads
# what a folder may say otherwise than its base
_OF_THE_FOLDER = {"dtype", "torch_dtype", "quantization_config", "transformers_version", "_name_or_path"}
ROWS_OF_GGUF = 1000  # llama.cpp cuts some texts otherwise: the more are tried, the more are found


def folder_renders_as_contract(
    name: str, folder: Path, contract: Contract, examples: Sequence[Example]
) -> Proof:
    """By transformers: the ids of each prompt, and the stops of generation_config.json."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    rows = examples[:ROWS]
    wrong = [
        row.id
        for row in rows
        if list(
            tokenizer.apply_chat_template(_turns(row.prompt), add_generation_prompt=True, return_dict=False)
        )
        != contract.prompt_ids(row.prompt)
    ]
    told = json.loads((folder / "generation_config.json").read_text("utf-8")).get("eos_token_id")
    stops = set(told if isinstance(told, list) else [told])
    detail = f"prompts of {len(rows)} rows that transformers' tokenizer and the folder's own template make other ids of"
    if wrong:
        detail += f" (the first: {wrong[0]})"
    if stops != set(contract.stop_ids):
        wrong.append("")
        detail += (
            f"; generation_config.json stops at {sorted(stops)}, the contract at {sorted(contract.stop_ids)}"
        )
    return Proof(f"{proof_prefix(name)}renders_as_contract", not wrong, len(wrong), 0, detail)


def folder_config_equal(name: str, folder: Path, base: Base, decoding: Decoding) -> Proof:
    """By transformers: config.json says what the base's says, and answers are drawn as they were measured.

    Short rows don't show all of it: a sliding window and Llama 3.1's scaling begin far behind them.
    """
    from transformers import AutoConfig

    own, theirs = (AutoConfig.from_pretrained(place).to_dict() for place in (folder, base.folder))
    wrong = {key for key in own | theirs if own.get(key) != theirs.get(key)} - _OF_THE_FOLDER
    told = json.loads((folder / "generation_config.json").read_text("utf-8"))
    drawn: dict[str, Any] = {"do_sample": decoding.temperature > 0}
    if drawn["do_sample"]:
        drawn |= {"temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": 0}
    wrong |= {key for key, value in drawn.items() if told.get(key) != value}
    detail = "settings in which the folder's configuration is not the base's, or draws answers otherwise than measured"
    if wrong:
        detail += f": {', '.join(sorted(wrong)[:5])}"
    return Proof(f"{proof_prefix(name)}config_equal", not wrong, len(wrong), 0, detail)


def gguf_tokens_equal(name: str, path: Path, contract: Contract, examples: Sequence[Example]) -> Proof:
    """By llama.cpp's tokenizer and the file's own template: the ids of each prompt, and of prompt and answer."""
    meta = read_gguf(path).metadata
    tokens: Sequence[str] = meta["tokenizer.ggml.tokens"]
    special = {
        f"{one}_token": tokens[meta[f"tokenizer.ggml.{one}_token_id"]]
        for one in ("bos", "eos")
        if f"tokenizer.ggml.{one}_token_id" in meta
    }
    render = compile_template(str(meta.get("tokenizer.chat_template", "")), DATE)
    rows = examples[:ROWS_OF_GGUF]
    texts: list[str] = []
    wanted: list[list[int]] = []
    for row in rows:
        whole = row.messages if row.answer is not None else row.prompt
        texts += [render(_turns(row.prompt), True, special), render(_turns(whole), False, special)]
        wanted += [contract.prompt_ids(row.prompt), contract.tokens_of(contract.render(whole, False))]
    found = tokens_by_llama_cpp(path, texts, as_prompts=True)
    wrong = [row.id for i, row in enumerate(rows) if found[2 * i : 2 * i + 2] != wanted[2 * i : 2 * i + 2]]
    detail = f"{len(rows)} rows whose text llama.cpp, by the file's own template, makes other ids of"
    if wrong:
        detail += f" (the first: {wrong[0]})"
    return Proof(f"{proof_prefix(name)}tokens_equal", not wrong, len(wrong), 0, detail)


def gguf_stops_equal(name: str, path: Path, contract: Contract) -> Proof:
    """llama.cpp ends an answer at every stop of the contract, and at nothing that is text."""
    meta = read_gguf(path).metadata
    ends, control = _ends(path)
    declared = {
        int(meta[key])
        for key in ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id")
        if key in meta
    }
    missing = set(contract.stop_ids) - ends
    foreign = declared - set(contract.stop_ids)
    text = ends - control - set(contract.stop_ids)
    faults = [
        *(f"{token} does not end an answer" for token in sorted(missing)),
        *(f"{token} is named as an end and is none" for token in sorted(foreign)),
        *(f"{token} is text and ends an answer" for token in sorted(text - foreign)),
    ]
    stops = ", ".join(map(str, sorted(contract.stop_ids)))
    detail = (
        f"tokens that end an answer in llama.cpp and not in the contract ({stops}), or the other way round"
    )
    if faults:
        detail += f": {'; '.join(faults[:5])}"
    return Proof(f"{proof_prefix(name)}stops_equal", not faults, len(faults), 0, detail)


def _ends(path: Path) -> tuple[set[int], set[int]]:
    """The tokens at which llama.cpp ends an answer, and those of them that are control tokens."""
    library = require_llama_cpp()
    parameters = library.llama_model_default_params()
    parameters.vocab_only, parameters.n_gpu_layers = True, 0
    model = library.llama_model_load_from_file(bytes(path), parameters)
    if not model:
        raise ModelError("llama.cpp can't read this file's vocabulary", where=str(path))
    try:
        vocabulary = library.llama_model_get_vocab(model)
        count = library.llama_vocab_n_tokens(vocabulary)
        ends = {token for token in range(count) if library.llama_vocab_is_eog(vocabulary, token)}
        return ends, {token for token in ends if library.llama_vocab_is_control(vocabulary, token)}
    finally:
        library.llama_model_free(model)


def _turns(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": one.role, "content": one.content} for one in messages]
