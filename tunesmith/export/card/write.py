"""README.md in the folder of each thing that export made: the model card.

Metadata by huggingface_hub (hf.co/docs/hub/model-cards). No text of rows stands in a card, nor a path of this machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tunesmith.export.card import sections
from tunesmith.export.card.facts import Facts
from tunesmith.export.card.licence import hand_on, named
from tunesmith.export.card.usage import usage
from tunesmith.export.folder import unlist, write_sums
from tunesmith.recipe import Recipe
from tunesmith.run import Run, write_atomic

_LIBRARY = {"adapter": "peft", "merged": "transformers", "quantized": "transformers", "gguf": "gguf"}
_RELATION = {"adapter": "adapter", "merged": "finetune", "quantized": "quantized", "gguf": "quantized"}


def withdraw_cards(run: Run) -> None:
    """Before anything changes: a card of an export that was killed would tell another model's scores."""
    for folder, _ in _folders(run):
        unlist(folder, {"README.md"})
        (folder / "README.md").unlink(missing_ok=True)


def write_cards(recipe: Recipe, run: Run) -> None:
    """A card into each folder that is there, with the base's licence; its checksums are brought up to date.

    To be called once the report has the scores of what was exported.
    """
    facts = Facts.of(recipe, run)
    for folder, kind in _folders(run):
        unlist(folder, {"README.md", "NOTICE", *(path.name for path in facts.licence.files)})
        hand_on(facts.licence, folder)
        write_atomic(folder / "README.md", card(facts, folder, kind).encode())
        write_sums(folder)


def _folders(run: Run) -> Iterator[tuple[Path, str]]:
    known = [(run.adapter, "adapter"), (run.merged, "merged"), (run.gguf, "gguf")]
    known += [(folder, "quantized") for folder in sorted(run.quantized.glob("[!.]*"))]
    yield from ((folder, kind) for folder, kind in known if folder.is_dir())


def card(facts: Facts, folder: Path, kind: str) -> str:
    """The text of one card."""
    kind = "merged" if kind == "adapter" and facts.recipe.tune.method == "full" else kind
    name = named(facts.recipe.name, facts.licence)
    built = f"{facts.licence.built_with}.\n\n" if facts.licence.built_with else ""
    listed = [
        ("Scores", sections.scores(facts)),
        ("Use", usage(facts, kind, sorted(path.name for path in folder.iterdir()))),
        ("Limits", sections.limits(facts)),
        ("Data", sections.data(facts)),
        ("Training", sections.training(facts)),
        ("Proofs", sections.proofs(facts)),
        ("Licence", sections.licence(facts)),
        ("Recipe", f"```yaml\n{facts.recipe_text}\n```\n"),
    ]
    body = "\n".join(f"## {title}\n\n{text}" for title, text in listed if text)
    return f"---\n{_metadata(facts, kind, name)}---\n\n# {name}\n\n{built}{_lead(facts, kind)}\n{body}"


def _metadata(facts: Facts, kind: str, name: str) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    report = facts.report
    results = []
    if found := report.get("headline"):
        results = [
            EvalResult(
                task_type="text-generation",
                dataset_type=facts.recipe.name,
                dataset_name=f"{facts.recipe.name}, {report['split']} rows",
                metric_type=found["metric"],
                metric_name=found["metric"],
                metric_value=round(float(found["tuned"]), 6),
            )
        ]
    licence = facts.licence
    relation = "finetune" if kind == "gguf" and facts.recipe.export.gguf == ("F16",) else _RELATION[kind]
    data = ModelCardData(
        model_name=name if results else None,
        base_model=facts.hub_base or None,
        base_model_relation=relation if facts.hub_base else None,
        license=licence.id or "unknown",
        license_name=licence.name if licence.id == "other" and licence.name else None,
        license_link=licence.link if licence.id == "other" and licence.link else None,
        library_name=_LIBRARY[kind],
        pipeline_tag="text-generation",
        tags=["tunesmith", "full" if facts.recipe.tune.method == "full" else "lora"],
        datasets=_hub_data(facts) or None,
        eval_results=results or None,
    )
    return f"{data.to_yaml()}\n"


def _hub_data(facts: Facts) -> list[str]:
    sources = [facts.recipe.data.train, facts.recipe.data.validation, facts.recipe.data.test]
    listed = [one for given in sources if isinstance(given, tuple | list) for one in given]
    return sorted({str(one.hub) for one in listed if getattr(one, "hub", None)})


def _lead(facts: Facts, kind: str) -> str:
    what = {
        "adapter": "A LoRA adapter for",
        "merged": "A fine-tuned model, made of",
        "gguf": "GGUF files of a fine-tuned model, made of",
        "quantized": "A quantised fine-tuned model, made of",
    }[kind]
    method = facts.report.get("method") or facts.recipe.tune.method
    revision = f" (revision {facts.base.revision})" if facts.base.revision else ""
    text = f"{what} {facts.base_name}{revision}: {method}, by tunesmith.\n"
    if found := facts.report.get("headline"):
        change, n = found["difference"], f"n = {found['n']:,}"
        text += (
            f"\n**{found['metric']}: base {found['base']:.3f}, tuned {found['tuned']:.3f}**, difference "
            f"{change['value']:+.3f} (95 % interval {change['low']:+.3f} to {change['high']:+.3f}), {n}\n"
        )
    return text
