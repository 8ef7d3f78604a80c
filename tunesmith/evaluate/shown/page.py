"""report.html: one file that needs no network. Every text from rows or models is escaped."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from tunesmith.evaluate.shown.examples import Quoted
from tunesmith.evaluate.shown.page_faults import faults_section
from tunesmith.evaluate.shown.page_head import findings, head, measured
from tunesmith.evaluate.shown.page_rows import examples_section, mistakes_section
from tunesmith.evaluate.shown.page_systems import scores_section, systems_section
from tunesmith.evaluate.shown.page_tables import (
    fields_section,
    lengths_section,
    slices_section,
    studies_section,
)
from tunesmith.evaluate.shown.wording import number, signed
from tunesmith.view import figures
from tunesmith.view.page_parts import document, folded, table
from tunesmith.view.page_script import SCRIPT
from tunesmith.view.series import Series, gaps


def render(content: Mapping[str, Any], series: Mapping[str, Series], quoted: Quoted | None) -> str:
    """The whole page from report.json's `content`; without `quoted` it holds no text of rows or answers."""
    rows, metric = content["rows"], content["headline"]["metric"]
    sections = {
        "findings": ("Findings", findings(content)),
        "measured": ("What was measured", measured(content)),
        "systems": ("Systems", systems_section(content)),
        "scores": ("Scores", scores_section(content)),
        "faults": ("Faults", faults_section(content)),
        "mistakes": ("Frequent mistakes", mistakes_section(quoted.mistakes) if quoted else ""),
        "examples": ("Examples", examples_section(quoted.rows, rows, metric) if quoted else _withheld()),
        "fields": ("Fields and classes", fields_section(content)),
        "studies": ("Confusion and confidence", studies_section(content)),
        "slices": ("Slices", slices_section(content) + lengths_section(content)),
        "training": ("Training", _training(series)),
        "proofs": ("Proofs", _proofs(content)),
    }
    held = {key: made for key, made in sections.items() if made[1]}
    links = "".join(f'<a href="#{key}">{escape(title)}</a>' for key, (title, _) in held.items())
    parts = [
        f'<section id="{key}"><h2>{escape(title)}</h2>{inside}</section>'
        for key, (title, inside) in held.items()
    ]
    top = [head(content), f'<nav aria-label="Sections">{links}</nav>']
    title = content["run"] if "alone" in content else f"{content['run']}: base and tuned"
    return document(title, [*top, *parts], script=SCRIPT, skip="findings")


def _withheld() -> str:
    return (
        "<p>Left out: this report is redacted. It holds no text of rows or answers; ids of rows, names of fields and "
        "values of slices stay.</p>"
    )


def _training(series: Mapping[str, Series]) -> str:
    if "loss" not in series:
        return ""
    curves = figures.svg(figures.loss_curves(series), "training and validation loss")
    parts = [f"<figure>{curves}</figure>"]
    found = gaps(dict(series))
    if found:
        rows = [
            [
                str(gap.step),
                number(gap.training),
                number(gap.validation),
                signed(gap.gap) if gap.gap is not None else "–",
            ]
            for gap in found[-12:]
        ]
        listed = table(["step", "training loss", "validation loss", "gap"], rows, name="Loss and gap")
        note = (
            '<p class="note">Training loss is the mean over the last quarter of the steps before. A growing gap means '
            "that the model learns its rows by heart.</p>"
        )
        said = f"The gap between training and validation: {rows[-1][3]} at step {rows[-1][0]}"
        parts.append(folded(said, listed + note))
    if "learning_rate" in series:
        steps = figures.svg(figures.step_curves(series), "learning rate, gradient norm and speed")
        parts.append(f"<figure>{steps}</figure>")
    return "".join(parts)


def _proofs(content: Mapping[str, Any]) -> str:
    if not content["proofs"]:
        return ""
    rows = [
        [
            escape(proof["name"]),
            '<span class="passed">✓ proved</span>'
            if proof["passed"]
            else '<span class="failed">✗ FAILED</span>',
            escape(number(proof["figure"])),
            escape(number(proof["limit"])),
            escape(proof["detail"]),
        ]
        for proof in content["proofs"]
    ]
    return table(
        ["proof", "", "figure", "limit", "what was compared"], rows, kind="text proofs", name="Proofs"
    )
