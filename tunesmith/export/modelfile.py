"""Ollama's Modelfile: the Contract's template, stops and system prompt, and how answers are drawn.

Ollama writes prompts by Go templates (github.com/ollama/ollama/blob/main/docs/template.md), the Contract by Jinja. The
Contract is rendered on marked conversations; what it writes around the marks becomes string constants of a Go template.
That is the same template only where the same text always stands at the same place, which is proved on conversations
that were not used to find it; any other template is refused.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from tunesmith import console
from tunesmith.contract import Contract
from tunesmith.errors import ModelError, RecipeError, RowError
from tunesmith.example import Message
from tunesmith.export.folder import unlist
from tunesmith.proof import Proof
from tunesmith.recipe import Ollama, Recipe
from tunesmith.run import Run, write_atomic

_SYSTEM, _FIRST, _SECOND, _ANSWER = "Bsystem1", "Buser1", "Buser2", "Banswer1"
_FIX = "give a model.template that writes each turn alone, or leave export.ollama out"


@dataclass(frozen=True)
class Pieces:
    """What stands between the turns."""

    head: str
    """Before the first question, where there is no system prompt."""
    before_system: str
    after_system: str
    """Between the system prompt and the first question."""
    after_user: str
    """Between a question and its answer."""
    before_next: str
    """Behind this, where the answer is to be written: Qwen 3's empty thoughts."""
    before_answer: str
    """Behind this, where the answer stands: Mistral's and Llama 2's own templates put a space there."""
    after_answer: str
    """Between an answer and the next question."""

    def render(self, messages: Sequence[Message]) -> str:
        """A conversation up to where the next answer begins, as the Go template writes it."""
        text = "" if messages[0].role == "system" else self.head
        for place, message in enumerate(messages):
            if message.role == "system":
                text += self.before_system + message.content + self.after_system
            elif message.role == "user":
                text += message.content + self.after_user
                text += self.before_next if place + 1 == len(messages) else ""
            else:
                text += self.before_answer + message.content
                text += self.after_answer if place + 1 < len(messages) else ""
        return text

    def template(self) -> str:
        """In Go's language. All text is in string constants: no white space of it is touched."""
        head, before, after, user = map(
            _constant, (self.head, self.before_system, self.after_system, self.after_user)
        )
        new, begin, answer = map(_constant, (self.before_next, self.before_answer, self.after_answer))
        if new:
            user += f"{{{{ if eq 1 (len (slice $.Messages $i)) }}}}{new}{{{{ end }}}}"
        return (
            "{{ range $i, $m := .Messages }}"
            f'{{{{ if eq $m.Role "system" }}}}{before}{{{{ $m.Content }}}}{after}'
            f'{{{{ else if eq $m.Role "user" }}}}{{{{ if eq $i 0 }}}}{head}{{{{ end }}}}{{{{ $m.Content }}}}{user}'
            f"{{{{ else }}}}{begin}{{{{ $m.Content }}}}{{{{ if lt $i (len (slice $.Messages 1)) }}}}"
            f"{answer}{{{{ end }}}}{{{{ end }}}}{{{{ end }}}}"
        )


def pieces_of(contract: Contract) -> Pieces:
    """What the Contract writes between turns. ModelError where a turn is left out."""
    plain = _split(contract, [Message("user", _FIRST)])
    told = _split(contract, [Message("system", _SYSTEM), Message("user", _FIRST)])
    turns = [Message("user", _FIRST), Message("assistant", _ANSWER), Message("user", _SECOND)]
    longer = _split(contract, turns)
    new, old = plain[-1], longer[1]
    both = next((one for one in (new, old) if new.startswith(one) and old.startswith(one)), "")
    return Pieces(plain[0], told[0], told[1], both, new.removeprefix(both), old.removeprefix(both), longer[2])


def modelfile(contract: Contract, file: str, settings: Ollama) -> str:
    """The text. `file`: the GGUF's name; the Modelfile lies beside it."""
    system = "" if contract.system is None else f"SYSTEM {_quoted(contract.system)}\n"
    stops = sorted({contract.terminator, contract.special.get("eos_token", contract.terminator)})
    parameters = {
        "num_ctx": settings.num_ctx,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        # Ollama's own defaults would change what was measured
        "top_k": 0,
        "min_p": 0.0,
        "repeat_penalty": 1.0,
    }
    lines = [f"PARAMETER {name} {value}\n" for name, value in parameters.items()]
    lines += [f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}\n" for stop in stops]
    return f"FROM ./{file}\nTEMPLATE {_quoted(pieces_of(contract).template())}\n{system}{''.join(lines)}"


def require_modelfile(recipe: Recipe, contract: Contract | None) -> None:
    """What write_modelfiles would refuse after hours. RecipeError, ModelError. `contract`: where it is made already."""
    settings = recipe.export.ollama
    if settings is None:
        return
    if not recipe.export.gguf:
        raise RecipeError(
            "a Modelfile is written for each GGUF file, and export.gguf names none",
            where="export.ollama",
            fix="export.gguf: [Q4_K_M], or leave export.ollama out",
        )
    if contract is not None:
        modelfile(contract, "model.gguf", settings)
        proof = template_equals_contract(contract)
        if not proof.passed:
            raise ModelError(
                f"Ollama can't write prompts as the template {contract.template_name!r} does: {proof.detail}",
                where="export.ollama",
                fix=_FIX,
            )


def write_modelfiles(recipe: Recipe, run: Run, contract: Contract) -> None:
    """gguf/Modelfile.KIND for each GGUF that is there; where Ollama is installed, it gets them too. ProofFailed."""
    for old in run.gguf.glob("Modelfile.*"):
        unlist(run.gguf, {old.name})
        old.unlink()
    settings = recipe.export.ollama
    if settings is None:
        return
    run.prove(template_equals_contract(contract))
    for kind in recipe.export.gguf:
        file = run.gguf / f"{recipe.name}-{kind}.gguf"
        if not file.is_file():
            continue  # its proof failed
        path = run.gguf / f"Modelfile.{kind}"
        write_atomic(path, modelfile(contract, file.name, settings).encode())
        console.note(f"for Ollama: {path}")
        if program := shutil.which("ollama"):
            _create(program, f"{recipe.name.lower()}:{kind.lower()}", path)


def _create(program: str, name: str, path: Path) -> None:
    done = subprocess.run(
        [program, "create", name, "-f", path.name], cwd=path.parent, capture_output=True, text=True
    )
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        console.warn(
            f"ollama create {name} failed: {said}; the Modelfile stands: ollama create {name} -f {path}"
        )
    else:
        console.note(f"ollama run {name}")


def template_equals_contract(contract: Contract) -> Proof:
    """The Modelfile's template against the Contract on conversations of every shape that it may meet."""
    pieces = pieces_of(contract)
    tried = [messages for messages in _conversations() if _renders(contract, messages)]
    wrong = [messages for messages in tried if pieces.render(messages) != contract.render(messages, True)]
    detail = f"conversations that Ollama's template writes otherwise than the contract, of {len(tried)}"
    if wrong:
        detail += f"; the first has the turns {', '.join(message.role for message in wrong[0])}"
    return Proof("ollama_template_equals_contract", bool(tried) and not wrong, len(wrong), 0, detail)


def _conversations() -> list[list[Message]]:
    texts = ("What is this?", 'Zwei\nZeilen: {{ x }} """ \'q\' \\n', "ಕನ್ನಡ 🧑‍⚕️ <b>&amp;</b>")
    made = []
    for system, turns, text in product((None, *texts), (1, 2, 3), texts):
        messages = [] if system is None else [Message("system", system)]
        for turn in range(turns):
            messages += [Message("user", f"{text} {turn}"), Message("assistant", f"{turn}: {text}")]
        made.append(messages[:-1])
    return made


def _renders(contract: Contract, messages: Sequence[Message]) -> bool:
    """Some templates take no system prompt, or one question only."""
    try:
        contract.render(messages, True)
    except (ModelError, RowError):
        return False
    return True


def _split(contract: Contract, messages: Sequence[Message]) -> list[str]:
    """The text around the turns. A template without system prompts has no place for one: the question's then."""
    try:
        text = contract.render(messages, True)
    except ModelError:
        if messages[0].role != "system":
            raise
        return ["", *_split(contract, messages[1:])]
    parts = []
    for message in messages:
        before, mark, text = text.partition(message.content)
        if not mark:
            raise ModelError(
                f"the template {contract.template_name!r} leaves the {message.role}'s turn out, or changes its text",
                where="export.ollama",
                fix=_FIX,
            )
        parts.append(before)
    return [*parts, text]


def _constant(text: str) -> str:
    """A Go string in a template action; letters beyond ASCII stand as they are."""
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if text else ""


def _quoted(text: str) -> str:
    """As a Modelfile takes several lines; three quotation marks can't stand in it."""
    if '"""' in text or text.endswith('"'):
        raise ModelError(
            "three quotation marks, or one at the end, can't be written in a Modelfile",
            where="data.system",
            fix="leave them out, or export.ollama",
        )
    return f'"""{text}"""'
