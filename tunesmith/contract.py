"""The Contract: how messages become token ids, and which of them are learned.

The one place of templates, BOS, terminators, the frozen date and loss masking: training, evaluation, prediction,
serving and export all render through it. It knows its tokenizer only through `tokenizer.json` (no torch).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tunesmith.errors import ModelError, RowError
from tunesmith.example import Example, Message
from tunesmith.templates import NAMED, compile_template, frozen

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SCHEMA_VERSION = 1
DATE = "26 Jul 2024"  # the date that Llama 3.1's own template falls back to; frozen, so prompts are the same every day
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.model",
    "chat_template.jinja",
)
_PAD_NAMES = ("<|finetune_right_pad_id|>", "<|pad|>", "<pad>", "[PAD]", "<unk>")


class Encoded(NamedTuple):
    """Token ids of a conversation; `learned[t]` says that token t is a target of training."""

    ids: list[int]
    learned: list[bool]


class Contract:
    """Made by `make`, stored in contract.json, read back by `load`. Never changed after that."""

    def __init__(
        self,
        template: str,
        template_name: str,
        special: Mapping[str, str],
        system: str | None,
        instruction_role: str,
        row_format: str,
        tokenizer_files: Mapping[str, bytes],
    ) -> None:
        from tokenizers import Tokenizer

        self.template = template  # Jinja source
        self.template_name = template_name  # own, llama3, chatml, plain or a file's name
        self.special = dict(special)  # bos_token, eos_token, … as the tokenizer's configuration spells them
        self.system = system  # system prompt for rows that bring none
        self.instruction_role = instruction_role  # turn that an instruction becomes
        self.row_format = (
            row_format  # how training rows were read: instruction, prompt_completion, messages or auto
        )
        self.tokenizer_files = dict(tokenizer_files)  # tokenizer.json and its companions
        try:
            self._tokenizer: Tokenizer = Tokenizer.from_str(
                self.tokenizer_files["tokenizer.json"].decode("utf-8")
            )
        except Exception as error:  # the library raises nothing narrower
            raise ModelError(
                f"tokenizer.json is broken: {error}", fix="download the tokenizer again"
            ) from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        added = self._tokenizer.get_added_tokens_decoder()
        self._control = {token.content: i for i, token in added.items() if token.special}
        self._render = compile_template(self.template, DATE)
        self._tail = self._find_tail()

    # ---- what the rest of the house asks

    @property
    def terminator_id(self) -> int:
        """The id that ends an answer."""
        return self._tail[0]

    @property
    def terminator(self) -> str:
        """The token that ends an answer, as text."""
        return str(self._tokenizer.id_to_token(self.terminator_id))

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids at which generation ends: the terminator, and the tokenizer's own end of text."""
        eos = self._tokenizer.token_to_id(self.special.get("eos_token", ""))
        return frozenset({self.terminator_id} | ({eos} if eos is not None else set()))

    @property
    def bos_id(self) -> int | None:
        """The id that begins a text, where the tokenizer has one."""
        found: int | None = self._tokenizer.token_to_id(self.special.get("bos_token", ""))
        return found

    @property
    def pad_id(self) -> int:
        """A filler for rectangles; what is learned is told by place, never by this id."""
        for name in (self.special.get("pad_token", ""), *_PAD_NAMES):
            found = self._tokenizer.token_to_id(name)
            if found is not None and found not in self.stop_ids:
                return int(found)
        return 0

    @property
    def pad_is_control(self) -> bool:
        """Whether the filler is a control token: an ordinary one may well be learned as itself."""
        return self.pad_id in self._control.values()

    @property
    def vocabulary_size(self) -> int:
        """Number of ids, special tokens included."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    @property
    def tokenizer_sha256(self) -> str:
        """Hash of tokenizer.json."""
        return hashlib.sha256(self.tokenizer_files["tokenizer.json"]).hexdigest()

    @property
    def sha256(self) -> str:
        """Hash of all that decides ids and mask."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def render(self, messages: Sequence[Message], answer_next: bool) -> str:
        """The conversation as text, up to where the next answer begins if `answer_next`."""
        turns = [{"role": m.role, "content": m.content} for m in messages]
        return self._render(turns, answer_next, self.special)

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Ids up to where the answer begins. RowError where a turn holds the text of a control token."""
        self._refuse_control(messages)
        return self._ids(self.render(messages, answer_next=True))

    def encode(self, example: Example) -> Encoded:
        """Ids of the whole conversation. Learned are the answers' tokens and the terminator after each.

        Where an answer begins is no guess: the ids of the prompt have to be a prefix of the ids of the whole, else
        RowError (the answer's first characters have then merged with the prompt's last token).
        """
        messages = example.messages
        self._refuse_control(messages, example)
        ids = self._ids(self.render(messages, answer_next=False))
        learned = [False] * len(ids)
        for turn, message in enumerate(messages):
            if not message.learned:
                continue
            begin = self._prefix(ids, self.render(messages[:turn], answer_next=True), example)
            end = self._prefix(ids, self.render(messages[: turn + 1], answer_next=False), example)
            if ids[end - len(self._tail) : end] != self._tail:
                raise RowError(
                    f"row {example.id}: the template does not end this answer with {self.terminator}",
                    where=example.source or None,
                    fix="use another model.template, or train on the last answer only",
                )
            stop = end - len(self._tail) + 1  # what the template writes after the terminator is not learned
            learned[begin:stop] = [True] * (stop - begin)
        return Encoded(ids, learned)

    def decode(self, ids: Sequence[int]) -> str:
        """An answer's text: cut at the first stop id, without control tokens."""
        kept: list[int] = []
        for one in ids:
            if one in self.stop_ids:
                break
            kept.append(int(one))
        return str(self._tokenizer.decode(kept, skip_special_tokens=True))

    def spans(self, encoded: Encoded) -> list[tuple[str, bool]]:
        """The row as (text, learned) stretches, control tokens included: for showing what is learned."""
        stretches = groupby(zip(*encoded, strict=True), key=lambda pair: pair[1])
        return [
            (str(self._tokenizer.decode([one for one, _ in pairs], skip_special_tokens=False)), learned)
            for learned, pairs in stretches
        ]

    def tokens_of(self, text: str) -> list[int]:
        """Ids of plain text without any BOS."""
        return self._ids(text)

    # ---- on disk

    def to_json(self) -> dict[str, Any]:
        """contract.json."""
        return {
            "schema_version": SCHEMA_VERSION,
            "template_name": self.template_name,
            "template": self.template,
            "date": DATE,
            "special": dict(self.special),
            "terminator": self.terminator,
            "terminator_id": self.terminator_id,
            "stop_ids": sorted(self.stop_ids),
            "bos_id": self.bos_id,
            "pad_id": self.pad_id,
            "system": self.system,
            "instruction_role": self.instruction_role,
            "row_format": self.row_format,
            "tokenizer_sha256": self.tokenizer_sha256,
        }

    def save(self, folder: Path, tokenizer_folder: Path | None = None) -> None:
        """contract.json into `folder`; the tokenizer's files beside it or into `tokenizer_folder`.

        The tokenizer's configuration is written with this template, so other programs render the same prompts.
        """
        place = tokenizer_folder or folder
        for one in (folder, place):
            one.mkdir(parents=True, exist_ok=True)
        (folder / "contract.json").write_text(
            json.dumps(self.to_json(), indent=2, ensure_ascii=False) + "\n", "utf-8"
        )
        for name, content in self.tokenizer_files.items():
            (place / name).write_bytes(content)
        config = json.loads(self.tokenizer_files.get("tokenizer_config.json", b"{}"))
        config = {"tokenizer_class": "PreTrainedTokenizerFast"} | config | dict(self.special)
        config["chat_template"] = frozen(self.template, DATE)
        (place / "tokenizer_config.json").write_text(
            json.dumps(config, indent=2, ensure_ascii=False) + "\n", "utf-8"
        )

    @classmethod
    def load(cls, folder: Path) -> Contract:
        """The contract that `save` wrote. ModelError where the tokenizer beside it is not the one it was made with."""
        try:
            stored = json.loads((folder / "contract.json").read_text("utf-8"))
        except (OSError, ValueError) as error:
            fix = "tunesmith prepare RECIPE makes it"
            raise ModelError(f"the contract can't be read: {error}", where=str(folder), fix=fix) from None
        place = folder / "tokenizer" if (folder / "tokenizer" / "tokenizer.json").exists() else folder
        files = _tokenizer_files(place)
        if hashlib.sha256(files["tokenizer.json"]).hexdigest() != stored["tokenizer_sha256"]:
            raise ModelError(
                "the tokenizer is not the one that this contract was made with",
                where=str(place / "tokenizer.json"),
                fix="restore the file, or make the contract again: tunesmith prepare RECIPE --fork",
            )
        return cls(
            template=stored["template"],
            template_name=stored["template_name"],
            special=stored["special"],
            system=stored["system"],
            instruction_role=stored["instruction_role"],
            row_format=stored.get("row_format", "auto"),
            tokenizer_files=files,
        )

    @classmethod
    def make(
        cls,
        folder: Path,
        *,
        template: str = "auto",
        system: str | None = None,
        instruction_role: str = "user",
        row_format: str = "auto",
    ) -> Contract:
        """The contract for the tokenizer in `folder` (tokenizer.json, tokenizer_config.json, chat_template.jinja).

        `template`: auto (the tokenizer's own, `plain` where it has none), llama3, chatml, plain, or a .jinja file.
        """
        files = _tokenizer_files(folder)
        config = json.loads(files.get("tokenizer_config.json", b"{}"))
        special = _special_tokens(config, files, folder)
        own = _own_template(folder, config)
        if template == "auto":
            name, source = ("own", own) if own else ("plain", NAMED["plain"])
        elif template in NAMED:
            name, source = template, NAMED[template]
        else:
            file = Path(template)
            if not file.is_file():
                raise ModelError(
                    f"there is no template {template!r}",
                    where="model.template",
                    fix=f"use auto, {', '.join(NAMED)}, or the path of a .jinja file",
                )
            try:
                name, source = file.name, file.read_text("utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise ModelError(
                    f"the template can't be read: {error}",
                    where=f"model.template: {file}",
                    fix="save it as UTF-8",
                ) from None
        return cls(source, name, special, system, instruction_role, row_format, files)

    # ---- inside

    def _ids(self, text: str) -> list[int]:
        # never the tokenizer's own BOS: the template writes it, once
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def _prefix(self, ids: list[int], text: str, example: Example) -> int:
        part = self._ids(text)
        if ids[: len(part)] != part:
            raise RowError(
                f"row {example.id}: the prompt's tokens are not a prefix of the whole row's",
                where=example.source or None,
                fix="an answer that begins with a line break merges with the prompt: strip it; "
                "or the template rewrites earlier turns: give another model.template",
            )
        return len(part)

    def _refuse_control(self, messages: Sequence[Message], example: Example | None = None) -> None:
        for message in messages:
            if "<" not in message.content and "[" not in message.content:
                continue
            for token in self._control:
                if token in message.content:
                    name = f"row {example.id}" if example else "the prompt"
                    raise RowError(
                        f"{name}: the {message.role}'s turn holds the text of the control token {token}",
                        where=example.source if example else None,
                        fix="remove it: the model would read it as the end or the beginning of a turn",
                    )

    def _find_tail(self) -> list[int]:
        """Ids that the template writes after an answer; the first of them ends it."""
        question, mark = Message("user", "question"), "answer"
        text = self.render([question, Message("assistant", mark)], answer_next=False)
        if mark not in text:
            raise ModelError(
                f"the template {self.template_name!r} leaves the assistant's turn out",
                where="model.template",
                fix="write every message's content, as in: {% for m in messages %}{{ m.content }}{% endfor %}",
            )
        tail = self._ids(text[text.rindex(mark) + len(mark) :])
        if not tail or tail[0] not in self._control.values():
            raise ModelError(
                f"the template {self.template_name!r} ends an answer with no control token: "
                "the model could never stop",
                where="model.template",
                fix="use llama3, chatml or plain, or a .jinja file that ends an assistant's turn with such a token",
            )
        return tail


def _tokenizer_files(folder: Path) -> dict[str, bytes]:
    if not (folder / "tokenizer.json").is_file():
        raise ModelError(
            "there is no tokenizer.json",
            where=str(folder),
            fix="save the tokenizer in that form (AutoTokenizer.from_pretrained(…).save_pretrained(…)) "
            "and name its folder in model.tokenizer",
        )
    files = {name: (folder / name).read_bytes() for name in TOKENIZER_FILES[:4] if (folder / name).is_file()}
    for name in TOKENIZER_FILES[1:3]:
        try:
            json.loads(files.get(name, b"{}"))
        except ValueError as error:
            raise ModelError(
                f"{name} is broken: {error}", where=str(folder), fix="download it again"
            ) from None
    return files


def _own_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text("utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):  # several, by name
        template = next((one["template"] for one in template if one["name"] == "default"), None)
    return template


def _special_tokens(config: Mapping[str, Any], files: Mapping[str, bytes], folder: Path) -> dict[str, str]:
    stored = json.loads(files.get("special_tokens_map.json", b"{}"))
    found: dict[str, str] = {}
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        value = config.get(name) or stored.get(name)
        if isinstance(value, Mapping):
            value = value.get("content")
        if value:
            found[name] = value
    if "eos_token" not in found:
        raise ModelError(
            "the tokenizer names no eos_token",
            where=str(folder / "tokenizer_config.json"),
            fix='add "eos_token": "<the token that ends a text>"',
        )
    return found
