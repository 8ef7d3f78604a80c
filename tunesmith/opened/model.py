"""A MODEL that can answer: its Contract, what its run measured, and on demand a generator for batches or a live one.

What a run trained answers as it was trained: the same quantised weights, the same type, the adapter live on them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from tunesmith import console
from tunesmith.base import Base, resolve
from tunesmith.contract import Contract
from tunesmith.errors import AccessError, ModelError, SetupError, TunesmithError
from tunesmith.generate.protocol import Decoding, Generator, LiveGenerator
from tunesmith.lookup import nearest
from tunesmith.opened.adapter_base import require_own_base
from tunesmith.opened.place import Place, unknown
from tunesmith.recipe import Model, Recipe
from tunesmith.recipe_file import load_recipe
from tunesmith.run import Run
from tunesmith.tasks import Task, make_task
from tunesmith.trained_with import require_same
from tunesmith.view.scored import run_decoding, run_task, training_answers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Engine = Literal["transformers", "llama.cpp", "vllm"]
ENGINES: tuple[Engine, ...] = ("transformers", "llama.cpp", "vllm")
LONGEST = 512  # tokens of an answer, for a model that no run tells more about
CONTEXT = 8192  # tokens of a prompt and its answer, where nobody says; less where the model has fewer places
SLOTS = 8  # answers side by side in llama.cpp, where nobody says


class Measured(NamedTuple):
    """What a run tells of how its answers were scored."""

    recipe: Recipe
    decoding: Decoding
    schema: Mapping[str, Any] | None


@dataclass(frozen=True)
class Opened:
    """A model that is there and fits together; nothing of its weights is in memory yet."""

    name: str
    place: Place
    engine: Engine
    contract: Contract
    decoding: Decoding
    """As it was measured; for a model of no run greedy, with LONGEST."""
    recipe: Recipe | None
    run: Run | None
    base: Base | None
    """Whose weights are loaded; None for a GGUF file."""
    adapter: Path | None
    """Live on that base."""
    quantize: str
    dtype: str

    def task(self) -> Task:
        """The task of its run; `text` for any other model."""
        if self.recipe is None or self.run is None:
            return make_task("text")
        return _task(self.recipe, self.run, self.place.foreign)

    def schema(self) -> Mapping[str, Any] | None:
        """The JSON schema of that task, where it has one."""
        return _schema(self.task())

    def created(self) -> int:
        """When its weights were written; seconds since 1970."""
        files = [self.place.path] if self.base is None else self.base.weight_files
        if self.adapter is not None:
            files = sorted(self.adapter.glob("*.safetensors"))
        return max((int(path.stat().st_mtime) for path in files), default=0)

    def bytes(self) -> int:
        """Of the weights, on disk."""
        files = [self.place.path] if self.base is None else self.base.weight_files
        return sum(path.stat().st_size for path in files)

    def context(self, wanted: int | None = None) -> int:
        """Most tokens of a prompt and its answer."""
        if self.base is None:
            from tunesmith.generate.llama_cpp.file import read_gguf

            positions = read_gguf(self.place.path).size("context_length", CONTEXT)
        else:
            positions = int(self.base.config.get("max_position_embeddings") or CONTEXT)
        return min(wanted or CONTEXT, positions)

    def served_context(self, wanted: int | None) -> int:
        """`context`; TunesmithError where more is asked for than the model has."""
        most = self.context(wanted)
        if wanted is not None and wanted > most:
            raise TunesmithError(
                f"the model has {most:,} positions, not {wanted:,}",
                where="--context",
                fix=f"--context {most}, or leave it out",
            )
        return most

    def generator(self, batch: int | Literal["auto"], longest: int) -> Generator:
        """For many prompts at once. `longest`: tokens of the longest prompt and its answer."""
        if self.engine == "llama.cpp":
            from tunesmith.generate.llama_cpp import LlamaGenerator, LlamaModel

            slots = SLOTS if batch == "auto" else batch
            return LlamaGenerator(
                LlamaModel.open(self.place.path, context=self.context(longest), slots=slots)
            )
        if self.engine == "vllm":
            raise SetupError(
                "vllm serves, it does not predict",
                where="--engine",
                fix="--engine transformers, or serve the model",
            )
        from tunesmith.generate.slots import SlotGenerator
        from tunesmith.model.adapter import load_adapter

        model = self.load()
        if self.adapter is not None:
            load_adapter(model, self.adapter)
        return SlotGenerator(model, slots=batch)

    def live(
        self, *, slots: int | Literal["auto"], context: int | None, adapters: Mapping[str, Path]
    ) -> LiveGenerator:
        """For requests that come at any time. `adapters`: name → folder (llama.cpp: one GGUF adapter at most, for all).

        Its own adapter has its own name; a request without any is answered by the base alone.
        """
        if self.engine == "llama.cpp":
            from tunesmith.generate.llama_cpp import LiveLlama, LlamaModel

            adapter = next(iter(adapters.values()), None)
            count = SLOTS if slots == "auto" else slots
            held = LlamaModel.open(
                self.place.path, adapter=adapter, context=self.served_context(context), slots=count
            )
            return LiveLlama(held, self.contract)
        from tunesmith.generate.lean import why_not_lean
        from tunesmith.generate.live.engine import LiveSlots
        from tunesmith.model.lora_bank import LoraBank

        room = self.served_context(context)
        folders = ({self.name: self.adapter} if self.adapter else {}) | dict(adapters)
        model = self.load()
        bank = LoraBank(model, folders) if folders else None
        if model.device.type == "cuda" and (why := why_not_lean(model)):
            console.note(f"{self.name}: layers go through transformers' own forward, which is slower: {why}")
        return LiveSlots(model, self.contract, slots=slots, context=room, adapters=bank)

    def load(self) -> PreTrainedModel:
        """The base's weights, as they are trained on and served, without any adapter."""
        from tunesmith.model.load import load_model
        from tunesmith.model.room import room
        from tunesmith.model.tuned import default_device

        assert self.base is not None
        device = default_device()
        console.note(f"loading {self.name} ({self.dtype}, quantize: {self.quantize}) on {device}")
        with room(
            "loading the model",
            "free the card, or serve a smaller form of it (a quantised folder, a GGUF file)",
        ):
            return load_model(self.base, dtype=self.dtype, quantize=self.quantize, device=device)


def open_model(place: Place, engine: str = "auto", runs_dir: Path = Path("runs")) -> Opened:
    """Looks through the model's files. AccessError, ModelError, SetupError: what is wrong and what to type next."""
    chosen = chosen_engine(engine)
    if place.kind == "gguf" or (place.kind == "run" and chosen == "llama.cpp"):
        return _open_gguf(place, chosen)
    if chosen == "llama.cpp":
        raise ModelError(
            "llama.cpp answers from GGUF files, and this is none",
            where=place.asked,
            fix="name the .gguf file, or --engine transformers; export.gguf in a recipe makes one",
        )
    engine_ = chosen or "transformers"
    if place.kind == "run":
        return _open_run(place, engine_)
    try:
        base = resolve(Model(base="starter" if place.asked == "starter" else str(place.path)))
    except AccessError as error:
        raise (unknown(place, error, runs_dir) if place.kind == "hub" else error) from None
    return _open_folder(place, engine_, base)


def chosen_engine(engine: str) -> Engine | None:
    """None: auto. SetupError for a name that none has."""
    for one in ENGINES:
        if engine == one:
            return one
    if engine == "auto":
        return None
    guess = nearest(engine, ENGINES)
    raise SetupError(
        f"there is no engine {engine!r}" + (f"; did you mean {guess!r}?" if guess else ""),
        where="--engine",
        fix=f"auto, {', '.join(ENGINES)}",
    )


def _open_run(place: Place, engine: Engine) -> Opened:
    run = place.run
    assert run is not None
    recipe = _recipe(run)
    if not any(run.adapter.glob("*.safetensors")):
        fix = "tunesmith run RECIPE trains one"
        raise ModelError("this run has no adapter yet", where=str(run.path), fix=fix)
    base, adapter = resolve(recipe.model), None
    if recipe.tune.method == "full":
        base = replace(base, folder=run.adapter)
    else:
        adapter = run.adapter
        require_own_base(adapter, base)
    return Opened(
        place.name, place, engine, Contract.load(run.contract_folder), _decoding(recipe, run), recipe, run, base,
        adapter, recipe.model.quantize, recipe.model.dtype,
    )  # fmt: skip


def _open_folder(place: Place, engine: Engine, base: Base) -> Opened:
    """A model's folder: what its run measured, where it lies in one."""
    stored = str(base.config.get("dtype") or base.config.get("torch_dtype") or "bfloat16")
    contract = _folder_contract(base, place.run)
    recipe = _recipe(place.run) if place.run else None
    decoding = _decoding(recipe, place.run) if recipe and place.run else Decoding(LONGEST)
    return Opened(
        place.name, place, engine, contract, decoding, recipe, place.run, base, None, _held(base), stored,
    )  # fmt: skip


def _open_gguf(place: Place, engine: Engine | None) -> Opened:
    if engine not in (None, "llama.cpp"):
        raise ModelError(
            f"a GGUF file is answered from by llama.cpp, not by {engine}",
            where=place.asked,
            fix="leave --engine out, or name the model's folder",
        )
    from tunesmith.generate.llama_cpp import contract_of_gguf, read_gguf, require_llama_cpp

    require_llama_cpp()
    path = place.path if place.kind == "gguf" else _only_gguf(place)
    file = read_gguf(path)
    if file.is_adapter:
        raise ModelError(
            "this GGUF file holds an adapter without its base",
            where=str(path),
            fix=f"tunesmith serve BASE.gguf --adapter NAME={path}",
        )
    place = replace(place, kind="gguf", path=path)
    if place.run is None:
        contract, recipe, decoding = contract_of_gguf(path), None, Decoding(LONGEST)
    else:
        contract, recipe = Contract.load(place.run.contract_folder), _recipe(place.run)
        decoding = _decoding(recipe, place.run)
        _require_vocabulary(contract, list(file.metadata.get("tokenizer.ggml.tokens") or ()), path)
    return Opened(
        place.name, place, "llama.cpp", contract, decoding, recipe, place.run, None, None, "none", "gguf"
    )


def _only_gguf(place: Place) -> Path:
    """The GGUF file of a run, where it has one alone."""
    run = place.run
    assert run is not None
    files = [one for one in sorted(run.gguf.glob("*.gguf")) if not one.stem.endswith("-adapter")]
    if len(files) != 1:
        names = ", ".join(one.name for one in files)
        raise ModelError(
            f"this run has several GGUF files: {names}" if files else "this run has no GGUF file",
            where=str(run.gguf),
            fix=f"name one of them: {files[0]}"
            if files
            else f"export: {{gguf: [Q8_0]}} in its recipe, then: tunesmith export {run.path}",
        )
    return files[0]


def measured(run: Run) -> Measured:
    """Decoding and schema of a run of this machine. RunChanged where its recipe is not the trained one."""
    recipe = _recipe(run)
    return Measured(recipe, _decoding(recipe, run), _schema(_task(recipe, run, foreign=False)))


def _task(recipe: Recipe, run: Run, foreign: bool) -> Task:
    if not (run.data / "train.jsonl").is_file():
        return make_task("text")
    if foreign:  # the names of tasks are known; code that it names, or a file, is left alone
        named = recipe.evaluate.task
        return make_task("text") if ":" in named else make_task(named, None, training_answers(run))
    return run_task(recipe, run)


def _schema(task: Task) -> Mapping[str, Any] | None:
    found: Mapping[str, Any] | None = getattr(task, "schema", None)
    return found


def _recipe(run: Run) -> Recipe:
    recipe = load_recipe(run.recipe_file)
    require_same(recipe, run)
    return recipe


def _decoding(recipe: Recipe, run: Run) -> Decoding:
    """As it is measured; where the rows are not here (a run that was fetched), as the report says, else the recipe."""
    if (run.data / "train.jsonl").is_file():
        return run_decoding(recipe, run)
    given = recipe.evaluate.decoding
    told = run.read_json(run.report / "report.json").get("decoding", {}).get("max_tokens", LONGEST)
    longest = int(told) if given.max_tokens == "auto" else given.max_tokens
    return Decoding(longest, given.temperature, given.top_p, given.seed, given.samples)


def _folder_contract(base: Base, run: Run | None) -> Contract:
    """contract.json of the folder, else one made of its tokenizer. ModelError where the two don't belong together."""
    if (base.folder / "contract.json").is_file():
        contract = Contract.load(base.folder)
    elif run is not None:
        raise ModelError(
            "the folder has lost its contract.json",
            where=str(base.folder),
            fix=f"tunesmith export {run.path}",
        )
    else:
        contract = Contract.make(base.tokenizer_folder)
    words = int(base.config.get("vocab_size") or contract.vocabulary_size)
    if contract.vocabulary_size > words:
        raise ModelError(
            f"the tokenizer has {contract.vocabulary_size} tokens, the model only {words}",
            where=str(base.folder),
            fix="the folder mixes two models: download or export it again",
        )
    return contract


def _require_vocabulary(contract: Contract, tokens: list[str], path: Path) -> None:
    for token, one in contract.tokenizer.get_vocab(with_added_tokens=True).items():
        if one >= len(tokens) or tokens[one] != token:
            raise ModelError(
                f"the file's tokenizer is not the one of its run: id {one} is {token!r} there",
                where=str(path),
                fix="export the run again: tunesmith export RUN",
            )


def _held(base: Base) -> str:
    from tunesmith.model.load import stored_quantized

    return stored_quantized(base)


def adapter_contract(folder: Path, own: Contract) -> Contract:
    """How prompts for an adapter over this base are rendered: as it was trained, where that lies beside it."""
    if not (folder / "contract.json").is_file():
        return own
    try:
        contract = Contract.load(folder)
    except json.JSONDecodeError as error:
        raise ModelError(f"its contract.json is broken: {error}", where=str(folder)) from None
    if contract.tokenizer.get_vocab(True) != own.tokenizer.get_vocab(True):
        raise ModelError(
            "the adapter was trained with another tokenizer than this base has",
            where=str(folder / "tokenizer.json"),
            fix="serve it on the base that it was trained on",
        )
    return contract
