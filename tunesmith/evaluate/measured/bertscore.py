"""BERTScore (Zhang et al. 2020, arXiv 1904.09675) with a model from a local folder; nothing is ever downloaded.

Each word piece of one text is matched with the nearest of the other by the cosine of their vectors from one layer;
precision is the mean over the answer's pieces, recall over the gold's. As the authors' bert-score: no idf weights, no
rescaling, special tokens may be matched but don't count. tests/test_bertscore.py holds the figures to that package's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from tunesmith import console
from tunesmith.base import Base
from tunesmith.errors import RecipeError
from tunesmith.evaluate.measured.bertscore_counts import FILE, PARTS
from tunesmith.example import Example
from tunesmith.model.tuned import default_device
from tunesmith.recipe import Recipe
from tunesmith.run import Run, write_atomic
from tunesmith.tasks.score import read_predictions
from tunesmith.view.series import read_lines

_KEY = "evaluate.bertscore_model"
_ROWS = 32  # whose gold vectors are held while all systems' answers are compared with them
_TOKENS = 8192  # of a batch, padding counted
# layers that agree best with people's judgement (bert-score's table), by name, else by kind and number of layers
_BEST = {
    "bert-base-chinese": 8, "roberta-large-mnli": 19, "deberta-base-mnli": 9, "deberta-large-mnli": 18,
    "deberta-xlarge": 18, "deberta-xlarge-mnli": 40, "scibert_scivocab_uncased": 8,
}  # fmt: skip
_BEST_OF_KIND = {
    ("bert", 12): 9, ("bert", 24): 18, ("roberta", 12): 10, ("roberta", 24): 17, ("distilbert", 6): 5,
    ("roberta", 6): 5, ("xlm-roberta", 12): 9, ("xlm-roberta", 24): 17, ("deberta", 12): 9, ("deberta", 24): 16,
}  # fmt: skip
_PREFIXED = (
    "roberta",
    "xlm-roberta-xl",
    "longformer",
    "bart",
    "gpt2",
)  # byte-level: a first word looks like others


@dataclass(frozen=True)
class Scorer:
    """A model that turns texts into vectors."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    layer: int
    made_with: str
    """What to print beside a figure: model, its hash, layer, versions."""

    @classmethod
    def load(cls, name: str) -> Scorer:
        """RecipeError where `name` is no folder with an encoder in it."""
        folder = model_folder(name)
        model = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        layers = int(model.config.num_hidden_layers)
        layer = _BEST.get(folder.name) or _BEST_OF_KIND.get((model.config.model_type, layers), layers)
        content = Base(name, folder, None, model.config.to_dict(), folder).fingerprint[:12]
        versions = f"no-idf, no rescaling, transformers {transformers.__version__}"
        told = f"{folder.name} (sha256 {content}), layer {min(layer, layers)} of {layers}, {versions}"
        return cls(model.eval().to(default_device()), tokenizer, min(layer, layers), told)

    @property
    def room(self) -> int:
        """Tokens of a text that the model reads, special ones counted."""
        config, most = self.model.config, int(self.tokenizer.model_max_length)
        positions = getattr(config, "max_position_embeddings", None) or most
        if config.model_type in ("roberta", "xlm-roberta", "camembert"):
            positions -= int(config.pad_token_id) + 1  # its positions begin behind the padding's number
        return min(most, int(positions))

    def pieces(self, text: str) -> tuple[list[int], list[bool], bool]:
        """Ids, which of them are special, and whether the text was cut to what the model reads."""
        text = text.strip()
        text = f" {text}" if text and self.model.config.model_type in _PREFIXED else text
        found = self.tokenizer(text, truncation=True, max_length=self.room, return_special_tokens_mask=True)
        ids = list(found["input_ids"])
        full = len(ids) >= self.room and len(self.tokenizer(text, verbose=False)["input_ids"]) > self.room
        return ids, [bool(one) for one in found["special_tokens_mask"]], full

    @torch.inference_mode()
    def vectors(self, texts: Sequence[Sequence[int]]) -> list[Tensor]:
        """Unit vectors [pieces, width] of each text."""
        made: dict[int, Tensor] = {}
        for batch in _batches([len(ids) for ids in texts]):
            longest = max(len(texts[i]) for i in batch)
            ids_BT = torch.zeros(len(batch), longest, dtype=torch.long)
            seen_BT = torch.zeros(len(batch), longest, dtype=torch.long)
            ids_BT += int(self.tokenizer.pad_token_id or 0)
            for row, i in enumerate(batch):
                ids_BT[row, : len(texts[i])] = torch.tensor(texts[i])
                seen_BT[row, : len(texts[i])] = 1
            device = self.model.device
            found = self.model(
                input_ids=ids_BT.to(device), attention_mask=seen_BT.to(device), output_hidden_states=True
            )
            hidden_BTD = found.hidden_states[self.layer].float()
            unit_BTD = hidden_BTD / hidden_BTD.norm(dim=-1, keepdim=True)
            made |= {i: unit_BTD[row, : len(texts[i])] for row, i in enumerate(batch)}
        return [made[i] for i in range(len(texts))]

    def score(self, golds: Sequence[str], answers: Sequence[Sequence[str]]) -> list[list[tuple[float, ...]]]:
        """For each row and each of its answers: precision, recall, F1, and 1.0 where a text was cut."""
        read = [self.pieces(gold) for gold in golds]
        gold_vectors = self.vectors([ids for ids, _, _ in read])
        said = [[self.pieces(answer) for answer in row] for row in answers]
        flat = iter(self.vectors([ids for row in said for ids, _, _ in row]))
        return [
            [
                (*_match(vector, next(flat), gold[1], one[1]), float(gold[2] or one[2]))
                for one in row
            ]
            for vector, gold, row in zip(gold_vectors, read, said, strict=True)
        ]  # fmt: skip


def model_folder(name: str) -> Path:
    """The folder that `evaluate.bertscore_model` names. RecipeError where it isn't one, or holds no encoder."""
    folder = Path(name)
    if not folder.is_dir():
        raise RecipeError(
            f"there is no folder {name}: the model for BERTScore is never downloaded by itself",
            where=_KEY,
            fix="fetch one and name its folder: hf download FacebookAI/roberta-large --local-dir models/roberta-large",
        )
    config = folder / "config.json"
    try:
        known = json.loads(config.read_text())
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"no model lies in {name}: config.json can't be read ({error})", where=_KEY
        ) from None
    if known.get("is_encoder_decoder") or not isinstance(
        known.get("num_hidden_layers", known.get("n_layers")), int
    ):
        raise RecipeError(
            f"{name} is a {known.get('model_type', 'model')}, not an encoder with numbered layers",
            where=_KEY,
            fix="take an encoder such as roberta-large, deberta-xlarge-mnli or bert-base-multilingual-cased",
        )
    if not any(folder.glob("*.safetensors")):
        raise RecipeError(
            f"{name} holds no weights in safetensors",
            where=_KEY,
            fix="download the repository's model.safetensors",
        )
    return folder


def write_bertscore(recipe: Recipe, run: Run, examples: Sequence[Example]) -> None:
    """Scores every system of `run.predictions` into report/bertscore.jsonl, one line a row; nothing where the recipe
    names no model. What was scored before with the same model and texts is kept."""
    path = run.report / FILE
    if recipe.evaluate.bertscore_model is None:
        path.unlink(missing_ok=True)
        return
    scorer = Scorer.load(recipe.evaluate.bertscore_model)
    systems = {one.stem: _answers(one) for one in sorted(run.predictions.glob("*.jsonl"))}
    ids = {example.id for example in examples}
    systems = {name: answers for name, answers in systems.items() if answers.keys() == ids}
    before = {row["id"]: row for row in read_lines(path) if row.get("made_with") == scorer.made_with}
    lines: list[dict[str, Any]] = []
    with console.progress("bertscore", total=len(examples), unit="rows") as bar:
        for begin in range(0, len(examples), _ROWS):
            lines += _rows(scorer, examples[begin : begin + _ROWS], systems, before)
            bar.update(len(examples[begin : begin + _ROWS]))
    run.report.mkdir(parents=True, exist_ok=True)
    write_atomic(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())


def _rows(
    scorer: Scorer,
    examples: Sequence[Example],
    systems: Mapping[str, Mapping[str, list[str]]],
    before: Mapping[str, Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Lines {id, made_with, texts, precision, recall, f1, cut}, the last five by system; samples are averaged."""
    lines: list[dict[str, Any]] = []
    for example in examples:
        line: dict[str, Any] = {"id": example.id, "made_with": scorer.made_with, "texts": {}}
        lines.append(line | {part: {} for part in (*PARTS, "cut")})
    for name, answers in systems.items():
        wanted = []
        for line, example in zip(lines, examples, strict=True):
            line["texts"][name] = key = _key(example.answer or "", answers[example.id])
            old = before.get(example.id, {})
            if old.get("texts", {}).get(name) == key:
                for part in (*PARTS, "cut"):
                    line[part][name] = old[part][name]
            else:
                wanted.append((line, example))
        golds = [example.answer or "" for _, example in wanted]
        found = scorer.score(golds, [answers[example.id] for _, example in wanted]) if wanted else []
        for (line, _), samples in zip(wanted, found, strict=True):
            for part, values in zip((*PARTS, "cut"), zip(*samples, strict=True), strict=True):
                line[part][name] = sum(values) / len(values)
    return lines


def _answers(path: Path) -> dict[str, list[str]]:
    made: dict[str, list[str]] = {}
    for line in read_predictions(path):
        made.setdefault(line["id"], []).append(line["answer"])
    return made


def _key(gold: str, answers: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps([gold, *answers]).encode()).hexdigest()[:16]


def _match(
    gold_GD: Tensor, answer_AD: Tensor, special_G: list[bool], special_A: list[bool]
) -> tuple[float, ...]:
    """Precision, recall, F1; 0 where a text has no pieces of its own."""
    if all(special_G) or all(special_A):
        return 0.0, 0.0, 0.0
    near_AG = answer_AD @ gold_GD.T
    counted = [~torch.tensor(one, device=near_AG.device) for one in (special_A, special_G)]
    precision = float(near_AG.max(dim=1).values[counted[0]].mean())
    recall = float(near_AG.max(dim=0).values[counted[1]].mean())
    both = precision + recall
    return precision, recall, 2 * precision * recall / both if both else 0.0


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Texts of like length together, at most _TOKENS with their padding."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if batch and (len(batch) + 1) * lengths[i] > _TOKENS:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
