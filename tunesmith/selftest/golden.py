"""The Contract's rendering and ids against transformers' own `apply_chat_template`, conversation by conversation."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import AutoTokenizer

from tunesmith.contract import DATE, Contract
from tunesmith.errors import ModelError
from tunesmith.example import Message
from tunesmith.proof import Proof
from tunesmith.templates import frozen

Turns = Sequence[Message]
Rendered = tuple[str, list[int]] | None  # None: the template refuses the conversation


def _turns(*contents: str, system: str | None = None) -> list[Message]:
    roles = ("user", "assistant")
    head = [Message("system", system)] if system is not None else []
    return head + [Message(roles[i % 2], content) for i, content in enumerate(contents)]


CONVERSATIONS: dict[str, Turns] = {
    "a question": _turns("What is a carcinoma?"),
    "a question with its answer": _turns("What is a carcinoma?", "A cancer of epithelial cells."),
    "a system prompt": _turns(
        "stage IIIB, 12.5 mm", '{"stage": "IIIB", "size": 12.5}', system="Answer in JSON."
    ),
    "a system prompt of two lines": _turns("Go on.", "Yes.", system="Be brief.\nBe exact."),
    "several turns": _turns("2+2?", "4", "And 3 more?", "7", "Thanks."),
    "several turns after a system prompt": _turns("a", "b", "c", "d", system="You count."),
    "letters of many scripts": _turns("ಕನ್ನಡ, naïve café, 漢字, עברית 🩺", "ಹೌದು, ça va 👩‍⚕️"),
    "space around": _turns("  two lines\n\nand a tab\t ", "  an answer \n"),
    "quotes, braces, code": _turns('{"a": [1, 2], "b": "it\'s"} {{ x }}', "```json\n{}\n```"),
    "a long one": _turns("word " * 400, "end"),
}


def tokenizer_agrees(contract: Contract, folder: Path) -> Proof:
    """Against the base's tokenizer as transformers loads it, with its own template: the one the base was made with.

    The date is given to both. A template that asks for today's date without offering `date_string` gets ours.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    template = contract.template if contract.template_name != "own" else None
    if "strftime_now" in contract.template and "date_string" not in contract.template:
        template = frozen(contract.template, DATE)
    what = "the tokenizer's own template" if contract.template_name == "own" else contract.template_name
    return _compare("template_golden", f"{what}, by transformers", contract, tokenizer, template)


def saved_tokenizer_agrees(contract: Contract) -> Proof:
    """Against the tokenizer that runs hand on, loaded by transformers and told nothing: what other programs render."""
    with tempfile.TemporaryDirectory(prefix="tunesmith-") as folder:
        contract.save(Path(folder))
        tokenizer = AutoTokenizer.from_pretrained(folder)
    return _compare("template_handed_on", "the tokenizer that a run writes", contract, tokenizer, None)


def _compare(name: str, what: str, contract: Contract, tokenizer: Any, template: str | None) -> Proof:
    more = {} if name == "template_handed_on" else {"date_string": DATE}

    def theirs(turns: Turns, answer_next: bool) -> Rendered:
        plain = [{"role": turn.role, "content": turn.content} for turn in turns]
        given: dict[str, Any] = {"add_generation_prompt": answer_next, "chat_template": template, **more}
        text = tokenizer.apply_chat_template(plain, tokenize=False, **given)
        ids = tokenizer.apply_chat_template(plain, tokenize=True, return_dict=False, **given)
        return text, list(ids)

    def ours(turns: Turns, answer_next: bool) -> Rendered:
        text = contract.render(turns, answer_next)
        return text, contract.tokens_of(text)

    different = []
    for label, turns in CONVERSATIONS.items():
        answer_next = turns[-1].role == "user"
        mine, other = (_rendered(one, turns, answer_next) for one in (ours, theirs))
        if mine != other:
            different.append(f"{label}: {_first_difference(mine, other)}")
    detail = f"conversations of {len(CONVERSATIONS)} whose text or ids differ from {what}"
    if different:
        detail += f"; {different[0]}"
    return Proof(name, not different, len(different), 0, detail)


def _rendered(render: Callable[[Turns, bool], Rendered], turns: Turns, answer_next: bool) -> Rendered:
    try:
        return render(turns, answer_next)
    except (ModelError, TemplateError):
        return None  # some templates refuse a system prompt; both have to


def _first_difference(ours: Rendered, theirs: Rendered) -> str:
    if ours is None or theirs is None:
        return f"{'ours' if ours is None else 'theirs'} refuses it"
    at = next((i for i, (a, b) in enumerate(zip(ours[0], theirs[0], strict=False)) if a != b), None)
    if at is None and len(ours[0]) == len(theirs[0]):
        return f"same text, {len(ours[1])} ids beside {len(theirs[1])}"
    at = min(len(ours[0]), len(theirs[0])) if at is None else at
    return f"ours {ours[0][at : at + 24]!r}, theirs {theirs[0][at : at + 24]!r}"
