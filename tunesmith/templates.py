"""Chat templates: the named ones, and a sandboxed Jinja environment in which the date stands still."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith.errors import ModelError

Render = Callable[[Sequence[Mapping[str, str]], bool, Mapping[str, str]], str]

# Meta's format of Llama 3 (github.com/meta-llama/llama-models, chat_format.py): content trimmed, no date, no tools
_LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
_CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# for bases without a template: headings in plain text, answers ended by the eos that pre-training ended documents with
_PLAIN = (
    "{{ bos_token | default('') }}{% for m in messages %}"
    "{{ '### ' + {'system': 'System', 'user': 'User', 'assistant': 'Answer'}[m['role']] + ':\n' }}"
    "{{ m['content'] | trim }}"
    "{{ eos_token + '\n\n' if m['role'] == 'assistant' else '\n\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Answer:\n' }}{% endif %}"
)
NAMED: dict[str, str] = {"llama3": _LLAMA3, "chatml": _CHATML, "plain": _PLAIN}


def choose_template(wanted: str, own: str | None) -> tuple[str, str]:
    """Name and source of the template that `model.template` asks for; `own`: the tokenizer's, if it has one."""
    if wanted == "auto":
        return ("own", own) if own else ("plain", NAMED["plain"])
    if wanted in NAMED:
        return wanted, NAMED[wanted]
    file = Path(wanted)
    if not file.is_file():
        raise ModelError(
            f"there is no template {wanted!r}",
            where="model.template",
            fix=f"use auto, {', '.join(NAMED)}, or the path of a .jinja file",
        )
    try:
        return file.name, file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(
            f"the template can't be read: {error}", where=f"model.template: {file}", fix="save it as UTF-8"
        ) from None


def compile_template(source: str, date: str) -> Render:
    """A function (turns, answer_next, special tokens) → text. `date` is what the template sees as today.

    Behaves as transformers' `apply_chat_template(tokenize=False)` with `date_string` given and `enable_thinking` false:
    rows hold answers without thoughts, before which Qwen 3's template writes an empty block, in rows whatever is said,
    in prompts only then. ModelError where the template is no Jinja, or refuses the turns.
    """
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks answers for other programs; here it only prints what it holds."""

        tags = {"generation"}  # noqa: RUF012  (the base class declares it so)

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> None:
        raise ModelError(f"the chat template refuses this conversation: {message}", where="model.template")

    def dumps(value: object, ensure_ascii: bool = False, indent: int | None = None, **_: object) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation]
    )
    environment.filters["tojson"] = dumps
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda _: date
    try:
        template = environment.from_string(source)
    except jinja2.TemplateError as error:
        raise ModelError(f"the chat template is not valid Jinja: {error}", where="model.template") from None

    known = {**template.globals, "tools": None, "date_string": date, "enable_thinking": False}

    def render(turns: Sequence[Mapping[str, str]], answer_next: bool, special: Mapping[str, str]) -> str:
        try:
            given = known | {"messages": list(turns), "add_generation_prompt": answer_next} | dict(special)
            # as `template.render`, which merges the same globals anew for every row
            return "".join(template.root_render_func(template.new_context(given, shared=True)))
        except ModelError:
            raise
        except Exception as error:  # a template is a program of the user's: 1 // 0, "text" + 1
            raise ModelError(f"the chat template fails: {error}", where="model.template") from None

    return render


def no_prefix_fix(source: str, answer: str) -> str:
    """What to do where a prompt is no prefix of the row that it is of."""
    if "enable_thinking" in source and "</think>" in answer:
        return (
            "this template is told not to think: strip the thoughts; or, to train on them, give as model.template a "
            "copy of it that begins with {% set enable_thinking = true %}"
        )
    return (
        "an answer that begins with a line break merges with the prompt: strip it; "
        "or the template rewrites earlier turns: give another model.template"
    )


def frozen(source: str, date: str) -> str:
    """The template for other programs: it finds `date` as today's, and no thinking, whatever these programs say."""
    head = ""
    if "date_string" in source or "strftime_now" in source:
        head = f"{{%- macro strftime_now(form) -%}}{date}{{%- endmacro -%}}"
        head += f'{{%- set date_string = "{date}" %}}'
    if "enable_thinking" in source:
        head += "{%- set enable_thinking = false %}"
    if not head:
        return source
    return head + ("\n" if source.startswith("\n") else "") + source  # a block eats the line break after it
