"""The recipe: what you want, in YAML; typed, frozen, hashable. Checked, never changed: no validator sets a value."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from tunesmith.recipe_evaluate import Evaluate
from tunesmith.section import List, Positive, Section

Every = Positive | Literal["epoch"]


class Model(Section):
    """The base model and how its frozen weights are held."""

    base: str
    """Hub id, local folder, or `starter` (the tiny embedded Llama)."""
    revision: str | None = None
    """Commit, tag or branch of a hub id."""
    tokenizer: str | None = None
    """Folder of another tokenizer than the base's own."""
    template: str = "auto"
    """Chat template: auto (the tokenizer's own; `plain` where it has none), llama3, chatml, plain, or a .jinja file."""
    quantize: Literal["none", "nf4", "int8"] = "none"
    """How frozen weights are stored. nf4 is double quantised (QLoRA)."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Type of the arithmetic, and of weights that are not quantised."""
    cache_dir: str | None = None
    """Where hub downloads go; the hub library's own cache unless given."""
    trust_remote_code: bool = False
    """Whether code from a model repository may run."""


class Split(Section):
    """Shares of data.train that are set aside where no file is given."""

    validation: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of rows, below 1."""
    test: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of rows, below 1."""
    group: str | None = None
    """Column that names the document: its rows never stand on both sides, and intervals are drawn by it."""
    stratify: str | None = None
    """Column whose shares are kept on each side; the report shows a slice for each of its values."""


class Source(Section):
    """One of several files, or a hub data set."""

    path: str | None = None
    """A file, or `starter`."""
    hub: str | None = None
    """Id of a hub data set; its files are downloaded once."""
    revision: str | None = None
    """Commit, tag or branch of the hub data set."""
    files: str | None = None
    """Which files of the hub data set, e.g. `data/train-*.parquet`; those named after the split unless given."""
    weight: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """How often an epoch reads each row: 2 reads all rows twice, 0.5 a fixed half of them. Training rows only."""

    @model_validator(mode="after")
    def _one_place(self) -> Source:
        if (self.path is None) == (self.hub is None):
            raise ValueError("a source has either a path or a hub id")
        if self.hub is None and (self.revision or self.files):
            raise ValueError("revision and files go with hub")
        return self


Sources = str | Annotated[tuple[Source, ...], Field(strict=False, min_length=1)]
Level = Literal["error", "warn", "ignore"]


class Checks(Section):
    """What each finding of the data inspection does: `error` ends check and run with exit code 3."""

    exact_leak: Level = "error"
    """A prompt of validation or test stands in train, or of test in validation, case and spaces aside."""
    group_leak: Level = "error"
    """A document (data.split.group) has rows on two sides."""
    near_leak: Level = "warn"
    """A validation or test row is almost a training row."""
    duplicate: Level = "warn"
    """The same prompt with the same answer, again."""
    near_duplicate: Level = "warn"
    """Almost the same row, again."""
    contradiction: Level = "warn"
    """The same prompt with different answers."""
    empty_answer: Level = "error"
    """There is nothing to learn but the end."""
    unparsable: Level = "error"
    """The task's own parser can't read the gold answer."""
    json_schema: Level = Field(
        default="error", alias="schema"
    )  # as in Data: pydantic has a `schema` of its own
    """The answer breaks data.schema, or the shape that nearly all answers share."""
    swapped_field: Level = "warn"
    """A field holds what belongs into another."""
    grounding: Level = "warn"
    """The answer, or a field of it, is not in the input."""
    cut_prompt: Level = "warn"
    """The prompt ends in the middle."""
    missing_cue: Level = "warn"
    """Nearly all prompts end with the same words, this one does not."""
    boilerplate: Level = "warn"
    """The answer is mostly text that many answers share."""
    phi: Literal["auto"] | Level = "auto"
    """What looks like a name's number: phone, mail, record number, … auto: error for chat and preference rows."""
    script: Level = "warn"
    """The answer is not in the script of the others."""


class Data(Section):
    """Rows, and how each becomes a conversation."""

    train: Sources
    """Path, `starter` (generated cancer reports, fixed seed), or a list of {path|hub, revision, files, weight}.
    .jsonl, .json, .csv, .tsv, .parquet, .txt, and PubTator files."""
    validation: Sources | None = None
    """As train. Chooses the checkpoint."""
    test: Sources | None = None
    """As train. Chooses nothing, so scores on it stand; without it the validation rows are scored."""
    format: Literal[
        "auto", "instruction", "prompt_completion", "messages", "sharegpt", "preference", "text"
    ] = "auto"
    """instruction: instruction/input/output; prompt_completion: prompt/completion; messages: chat turns with
    role/content; sharegpt: conversations with from/value; preference: prompt/chosen/rejected; text: all
    of it learned."""
    columns: dict[str, str] | None = None
    """The format's column: your column. E.g. {instruction: question, output: answer}."""
    processor: str | None = None
    """From one row to examples: diagnosis_treatment, annotated_abstract, record_request, visit_note, or
    package.module:function.
    A change of your code, or of modules that it imports, prepares the rows anew; data files that it reads are not
    looked at."""
    system: str | None = None
    """System prompt for rows that bring none."""
    instruction_role: Literal["system", "user"] = "user"
    """Turn that an instruction becomes: a system prompt, or the head of the user's turn."""
    split: Split = Split()
    """Shares to set aside from train, and what must stand on one side."""
    max_length: Annotated[int, Field(ge=2, lt=2**31)] = 2048
    """Tokens of prompt and answer together; two at least, the first of a text and one of it."""
    overlong: Literal["error", "drop", "trim_context"] = "error"
    """What happens to rows over max_length. Answers are never cut; trim_context cuts the front of the longest input,
    never an instruction or a cue. A row that has none apart from its instruction, or would keep less than a fifth of
    it, is still too long."""
    # pydantic's own `schema` method is deprecated, so the field goes by another name inside
    json_schema: str | None = Field(default=None, alias="schema")
    """JSON schema (file) that each answer must fit; inferred from the training answers where none is given."""
    checks: Checks = Checks()
    """Level of each data check."""


class Tune(Section):
    """What is trained."""

    method: Literal["lora", "full"] = "lora"
    """lora: low-rank adapters beside frozen weights (Hu et al. 2021); full: all weights."""
    rank: Positive = 16
    """Inner width r of each adapter."""
    alpha: Annotated[float, Field(gt=0)] = 32.0
    """Adapter outputs are scaled by alpha / rank (alpha / sqrt(rank) with rslora)."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of adapter inputs dropped in training."""
    target_modules: Literal["all"] | List = "all"
    """all: every linear of the decoder layers; or names such as [q_proj, v_proj]."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Which biases are trained."""
    rslora: bool = False
    """Rank-stabilised scaling (Kalajdzievski 2023)."""
    from_adapter: str | None = None
    """Folder of an adapter to go on from."""


class Train(Section):
    """The loop."""

    epochs: Annotated[float, Field(gt=0)] = 3
    """Passes over the training rows."""
    max_steps: Positive | None = None
    """Ends the run earlier; a run ends at epochs or max_steps, whichever comes first."""
    batch: Positive = 16
    """Examples per optimiser step, whatever the number of GPUs."""
    micro_batch: Literal["auto"] | Positive = "auto"
    """Rows that go through the model together; auto: as many tokens as memory takes. Changes no result."""
    memory: Literal["auto"] | Annotated[float, Field(gt=0)] = "auto"
    """GiB of accelerator memory to plan for; auto: all of the card."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    """Peak learning rate."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """How the learning rate falls after warm-up (it would be 0 one step after the last)."""
    warmup: Annotated[float, Field(ge=0)] = 0.03
    """Steps, or a share of all steps when below 1."""
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = "adamw"
    """adamw keeps fp32 state; the 8-bit ones are bitsandbytes'."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay."""
    clip: Annotated[float, Field(gt=0)] | None = 1.0
    """Largest global gradient norm; null for none."""
    packing: bool = True
    """Rows of a micro-batch as one stream without padding (the loss is the same, proved); false: a padded rectangle."""
    recompute: Literal["auto", "none", "full"] = "auto"
    """Whether layers are computed again in the backward pass to save memory."""
    engine: Literal["auto", "reference", "fused"] = "auto"
    """Which implementation of a training step."""
    fp8: bool = False
    """fp8 products with the frozen weights in training steps: faster, and inexact (numbers of 8 bits). Adapters stay
    in bf16; validation losses and proofs use the exact weights, and the loss in fp8 is proved to be near to theirs.
    Needs the fused engine, model.dtype: bfloat16 and a card of compute capability 8.9 or later; keeps two more bytes
    a frozen weight."""
    deterministic: bool = False
    """Only deterministic GPU kernels."""
    parallel: Literal["none", "ddp", "fsdp", "deepspeed"] = "none"
    """Several GPUs of one machine: ddp trains on all that are visible, each on its share of a step's rows."""
    log_every: Positive = 10
    """Steps between lines of metrics.jsonl."""
    evaluate_every: Every = "epoch"
    """Steps between validation losses, or `epoch`."""
    save_every: Every = "epoch"
    """Steps between checkpoints, or `epoch`. A new best is always saved."""
    keep: Positive = 2
    """Newest checkpoints kept, beside the best."""
    patience: Positive | None = None
    """Stops after so many validation losses in a row without a new best."""
    trackers: List = ()
    """Trackers beside TensorBoard, which always writes."""
    notify: str | None = None
    """Name of the environment variable that holds a webhook's address."""


GgufKind = Literal[
    "F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K",
    "IQ4_XS", "IQ4_NL",
]  # fmt: skip


class Ollama(Section):
    """The Modelfile."""

    num_ctx: Positive = 4096
    """Context length."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """Sampling temperature."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus."""


class Export(Section):
    """What is made of the adapter."""

    merged: bool = True
    """The adapter merged into a 16-bit Hugging Face folder."""
    gguf: Annotated[tuple[GgufKind, ...], Field(strict=False)] = ()
    """GGUF files to write, e.g. [F16, Q4_K_M]."""
    imatrix: bool = False
    """Importance matrix from training rows, for the GGUF kinds below 8 bits."""
    ollama: Ollama | None = None
    """Write a Modelfile for each GGUF file."""
    quantized: Annotated[tuple[Literal["nf4", "int8"], ...], Field(strict=False)] = ()
    """The merged model as quantised Hugging Face folders."""
    adapter_gguf: bool = False
    """The adapter alone as GGUF."""
    max_loss: Annotated[float, Field(ge=0)] | None = None
    """Largest loss of the headline score that a quantised model may have; more ends export with exit code 3."""


class Publish(Section):
    """Where finished things go."""

    hub: str | None = None
    """Repository id; private."""
    s3: str | None = None
    """s3://bucket/prefix."""


class Recipe(Section):
    """One recipe takes rows and a base model to an evaluated, merged model."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Name of the run folder."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Order of rows, dropout, initial adapter."""
    model: Model
    """Base model."""
    data: Data
    """Rows."""
    tune: Tune = Tune()
    """What is trained."""
    train: Train = Train()
    """The loop."""
    evaluate: Evaluate = Evaluate()
    """Scores."""
    export: Export = Export()
    """Files."""
    publish: Publish = Publish()
    """Places."""
    targets: dict[str, dict[str, Any]] = Field(default={})
    """Places to run, by name."""

    @model_validator(mode="after")
    def _sections_agree(self) -> Recipe:
        split = self.data.split
        if split.validation + split.test >= 1:
            raise ValueError("data.split: validation and test together leave no rows to train on")
        if self.data.validation is not None and split.validation:
            raise ValueError("data.validation and data.split.validation: give one of them")
        if self.data.test is not None and split.test:
            raise ValueError("data.test and data.split.test: give one of them")
        if self.tune.method == "full" and self.model.quantize != "none":
            raise ValueError(
                "tune.method: full needs model.quantize: none (quantised weights can't be trained)"
            )
        if self.tune.method == "full" and self.tune.from_adapter:
            raise ValueError("tune.from_adapter: only with tune.method: lora")
        self._fp8_can_be_had()
        if self.train.patience and not (self.data.validation or split.validation):
            raise ValueError("train.patience: needs data.validation or data.split.validation")
        if self.evaluate.decoding.samples > 1 and self.evaluate.decoding.temperature == 0:
            raise ValueError("evaluate.decoding.samples: more than one needs a temperature above 0")
        return self

    def _fp8_can_be_had(self) -> None:
        if not self.train.fp8:
            return
        if self.tune.method == "full":
            raise ValueError(
                "train.fp8: only with tune.method: lora (the products with frozen weights are fp8's)"
            )
        if self.train.engine == "reference":
            raise ValueError("train.fp8: only with train.engine: fused or auto")
        if self.model.dtype != "bfloat16":
            raise ValueError("train.fp8: needs model.dtype: bfloat16")

    def to_json(self) -> dict[str, Any]:
        """All keys with their values, as the file would spell them."""
        return self.model_dump(mode="json", by_alias=True)

    def hash(self) -> str:
        """sha256 of the resolved recipe."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()
