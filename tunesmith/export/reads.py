"""Do other programs read a prompt from an exported thing as the Contract writes it, and end where it ends?

The thing's own template and tokenizer are used, on the scored rows' own texts: an HF folder's through transformers, a
GGUF file's through llama.cpp. Nothing is taken from the Contract but what is expected.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunesmith.contract import DATE, Contract
from tunesmith.example import Example, Message
from tunesmith.export.record import proof_prefix
from tunesmith.generate.llama_cpp_file import read_gguf
from tunesmith.proof import Proof
from tunesmith.templates import compile_template

ROWS = 100  # whose prompts are read


def folder_renders_as_contract(
    name: str, folder: Path, contract: Contract, examples: Sequence[Example]
) -> Proof:
    """By transformers: the ids of each prompt, and the stops of generation_config.json."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)  # type: ignore[no-untyped-call]  # transformers' is untyped
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
    vocabulary = _vocabulary(path)
    wrong: list[str] = []
    rows = examples[:ROWS]
    for row in rows:
        known = row.messages if row.answer is not None else row.prompt
        wanted = {
            True: contract.prompt_ids(row.prompt),
            False: contract.tokens_of(contract.render(known, answer_next=False)),
        }
        for answer_next, ids in wanted.items():
            text = render(_turns(row.prompt if answer_next else known), answer_next, special)
            found = vocabulary.tokenize(text.encode(), add_bos=False, special=True)
            if found != ids:
                wrong.append(row.id)
                break
    detail = f"{len(rows)} rows whose text llama.cpp, by the file's own template, makes other ids of"
    if wrong:
        detail += f" (the first: {wrong[0]})"
    return Proof(f"{proof_prefix(name)}tokens_equal", not wrong, len(wrong), 0, detail)


def gguf_stops_equal(name: str, path: Path, contract: Contract) -> Proof:
    """llama.cpp ends an answer at every stop of the contract, and at nothing that is text."""
    from llama_cpp import llama_cpp

    meta = read_gguf(path).metadata
    vocabulary = llama_cpp.llama_model_get_vocab(_vocabulary(path).model)
    count = llama_cpp.llama_vocab_n_tokens(vocabulary)
    ends = {token for token in range(count) if llama_cpp.llama_vocab_is_eog(vocabulary, token)}
    control = {token for token in ends if llama_cpp.llama_vocab_is_control(vocabulary, token)}
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
    detail = f"tokens that end an answer in llama.cpp and don't in the contract ({sorted(contract.stop_ids)}), or the other way"
    if faults:
        detail += f": {'; '.join(faults[:5])}"
    return Proof(f"{proof_prefix(name)}stops_equal", not faults, len(faults), 0, detail)


def _vocabulary(path: Path) -> Any:
    """llama.cpp with the file's tokenizer alone."""
    from llama_cpp import Llama

    from tunesmith.generate.llama_cpp_library import require_llama_cpp

    require_llama_cpp()  # turns its log off
    return Llama(str(path), vocab_only=True, verbose=False)


def _turns(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": one.role, "content": one.content} for one in messages]
