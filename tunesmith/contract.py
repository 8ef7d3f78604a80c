"""The Contract: how messages become token ids, and which of them are learned.

The one place of templates, BOS, terminators, the frozen date and loss masking: training, evaluation, prediction,
serving and export all render through it. It knows its tokenizer only through `tokenizer.json` (no torch).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from itertools import compress, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tunesmith.errors import ModelError, RowError
from tunesmith.example import Example, Message
from tunesmith.templates import choose_template, compile_template, frozen, no_prefix_fix
from tunesmith.tokenizer_files import kept_files, own_template, special_tokens, tokenizer_files
from tunesmith.word_ids import BatchIds

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SCHEMA_VERSION = 1
DATE = "26 Jul 2024"  # the date that Llama 3.1's own template falls back to; frozen, so prompts are the same every day
_DOCUMENT_ENDS = ("<|end_of_text|>", "<|endoftext|>", "</s>")  # Llama 3, Qwen, SentencePiece
_TAILS = 64  # different ends of prompts kept; a template has one or two
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
        reading: Mapping[str, Any],
        tokenizer_files: Mapping[str, bytes],
    ) -> None:
        from tokenizers import Tokenizer

        self.template = template  # Jinja source
        self.template_name = template_name  # own, llama3, chatml, plain or a file's name
        self.special = dict(special)  # bos_token, eos_token, … as the tokenizer's configuration spells them
        self.system = system  # system prompt for rows that bring none
        self.instruction_role = instruction_role  # turn that an instruction becomes
        self.reading = dict(reading)  # format, columns and processor by which training rows were read
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
        self._batch = BatchIds(self._tokenizer)
        added = self._tokenizer.get_added_tokens_decoder()
        self._control = {token.content: i for i, token in added.items() if token.special}
        longest = sorted(self._control, key=len, reverse=True)
        self._control_text = re.compile("|".join(map(re.escape, longest)) or "(?!)")
        self._control_ids = frozenset(self._control.values())
        self._tails: dict[str, list[int]] = {}  # ids from the last control token up to an answer
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
    def document_end_id(self) -> int:
        """The id that ended a document in pre-training; an instruct model's eos is another."""
        names = (*_DOCUMENT_ENDS, self.special["eos_token"])
        return next(int(one) for name in names if (one := self._tokenizer.token_to_id(name)) is not None)

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
    def tokenizer(self) -> Tokenizer:
        """For what looks at single tokens; prompts and answers go through the methods here."""
        return self._tokenizer

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
        RowError (the answer's first characters have then merged with the prompt's last token). Plain text is learned
        whole, between the tokenizer's BOS and the token that ends a document.
        """
        made = self.encode_batch([example])[0]
        if isinstance(made, RowError):
            raise made
        return made

    def encode_batch(self, examples: Sequence[Example]) -> list[Encoded | RowError]:
        """`encode` of each row, faster; the error stands in the place of a row that can't be encoded."""
        texts: list[str] = []
        refused: dict[int, RowError] = {}
        for number, example in enumerate(examples):
            try:
                self._refuse_control(example.messages, example)
                texts.append(
                    example.messages[0].content if example.is_text else self.render(example.messages, False)
                )
            except RowError as error:
                refused[number] = error
                texts.append("")
            except ModelError as error:  # the template refuses this conversation
                refused[number] = RowError(
                    f"row {example.id}: {error.what}", where=example.source or None, fix=error.fix
                )
                texts.append("")
        made: list[Encoded | RowError] = []
        for number, ids in enumerate(self._batch.ids(texts)):
            try:
                made.append(refused.get(number) or self._masked(ids, texts[number], examples[number]))
            except RowError as error:
                made.append(error)
        return made

    def _masked(self, ids: list[int], whole: str, example: Example) -> Encoded:
        if example.is_text:
            begin = [] if self.bos_id is None else [self.bos_id]
            return Encoded(
                [*begin, *ids, self.document_end_id], [False] * len(begin) + [True] * (len(ids) + 1)
            )
        learned = [False] * len(ids)
        controls = list(compress(range(len(ids)), map(self._control_ids.__contains__, ids)))
        messages = example.messages
        for turn, message in enumerate(messages):
            if not message.learned:
                continue
            prompt = self.render(messages[:turn], answer_next=True)
            begin_at = self._prefix(ids, controls, whole, prompt, example)
            end = len(ids)
            if turn + 1 < len(messages):
                answered = self.render(messages[: turn + 1], answer_next=False)
                end = self._prefix(ids, controls, whole, answered, example)
            if ids[end - len(self._tail) : end] != self._tail:
                raise RowError(
                    f"row {example.id}: the template does not end this answer with {self.terminator}",
                    where=example.source or None,
                    fix="use another model.template, or train on the last answer only",
                )
            stop = end - len(self._tail) + 1  # what the template writes after the terminator is not learned
            learned[begin_at:stop] = [True] * (stop - begin_at)
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

    def token_starts(self, text: str) -> list[int]:
        """For each id of `tokens_of(text)` the character at which it begins."""
        return [begin for begin, _ in self._tokenizer.encode(text, add_special_tokens=False).offsets]

    def __reduce__(self) -> tuple[object, ...]:
        """A worker process makes its own from the same parts."""
        parts = (self.template, self.template_name, self.special, self.system, self.instruction_role)
        return (Contract, (*parts, self.reading, self.tokenizer_files))

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
            "reading": self.reading,
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
        # the class that takes tokenizer.json as it is: transformers' LlamaTokenizer puts its own rules in their place
        config = config | dict(self.special) | {"tokenizer_class": "PreTrainedTokenizerFast"}
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
        files = kept_files(folder, stored["tokenizer_sha256"])
        return cls(
            template=stored["template"],
            template_name=stored["template_name"],
            special=stored["special"],
            system=stored["system"],
            instruction_role=stored["instruction_role"],
            reading=stored["reading"],
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
        reading: Mapping[str, Any] | None = None,
    ) -> Contract:
        """The contract for the tokenizer in `folder` (tokenizer.json, tokenizer_config.json, chat_template.jinja).

        `template`: auto (the tokenizer's own, `plain` where it has none), llama3, chatml, plain, or a .jinja file.
        """
        files = tokenizer_files(folder)
        config = json.loads(files.get("tokenizer_config.json", b"{}"))
        special = special_tokens(config, files, folder)
        own = own_template(folder, config)
        name, source = choose_template(template, own)
        return cls(source, name, special, system, instruction_role, reading or {}, files)

    # ---- inside

    def _ids(self, text: str) -> list[int]:
        if len(text) > 20_000:  # as a batch, so that other threads go on meanwhile
            return list(self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids)
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)  # the template writes BOS

    def _prefix(self, ids: list[int], controls: list[int], whole: str, text: str, example: Example) -> int:
        """Number of tokens of `text`, whose ids have to be a prefix of `ids` (those of `whole`).

        A tokenizer splits at control tokens before anything else, so only what follows the last of them in `text` is
        encoded again: the same tokens after the same control token. Where that shows no prefix, all of it is.
        """
        marks = list(self._control_text.finditer(text)) if whole.startswith(text) else []
        if marks and len(marks) <= len(controls):
            last = text[marks[-1].start() :]
            if last not in self._tails and len(self._tails) < _TAILS:
                self._tails[last] = self._ids(last)
            part = self._tails.get(last) or self._ids(last)
            begin = controls[len(marks) - 1]
            if ids[begin : begin + len(part)] == part:
                return begin + len(part)
        part = self._ids(text)
        if ids[: len(part)] != part:
            raise RowError(
                f"row {example.id}: the prompt's tokens are not a prefix of the whole row's",
                where=example.source or None,
                fix=no_prefix_fix(self.template, example.messages[-1].content),
            )
        return len(part)

    def _refuse_control(self, messages: Sequence[Message], example: Example | None = None) -> None:
        for message in messages:
            if found := self._control_text.search(message.content):
                name = f"row {example.id}" if example else "the prompt"
                raise RowError(
                    f"{name}: the {message.role}'s turn holds the text of the control token {found[0]}",
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
        rest = text[text.rindex(mark) + len(mark) :]
        tail = self._ids(rest.lstrip())  # white space before it (Llama 2) is learned with the answer
        if not tail or tail[0] not in self._control.values():
            raise ModelError(
                f"the template {self.template_name!r} ends an answer with no control token: "
                "the model could never stop",
                where="model.template",
                fix="use llama3, chatml or plain, or a .jinja file that ends an assistant's turn with such a token",
            )
        return tail
