"""A conversation between doctor and patient as the request for a note, or for one section of it under its heading."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.data.row import BadRow, first_text, name_of
from tunesmith.example import Example, Message

NOTE = "Write the visit note of this conversation, in sections, each under its heading."
SECTION = "Write the section of the visit note that this conversation is about, under its heading."

# headings as MTS-Dialog abbreviates them; any other heading is taken as it is written
HEADINGS = {
    "ALLERGY": "Allergies",
    "ASSESSMENT": "Assessment",
    "CC": "Chief complaint",
    "DIAGNOSIS": "Diagnosis",
    "DISPOSITION": "Disposition",
    "EDCOURSE": "Emergency department course",
    "EXAM": "Examination",
    "FAM/SOCHX": "Family and social history",
    "GENHX": "History of present illness",
    "GYNHX": "Gynecologic history",
    "IMAGING": "Imaging",
    "IMMUNIZATIONS": "Immunizations",
    "LABS": "Laboratory",
    "MEDICATIONS": "Medications",
    "OTHER_HISTORY": "Other history",
    "PASTMEDICALHX": "Past medical history",
    "PASTSURGICAL": "Past surgical history",
    "PLAN": "Plan",
    "PROCEDURES": "Procedures",
    "ROS": "Review of systems",
}


def visit_note(row: Mapping[str, Any]) -> list[Example]:
    """Columns: dialogue (or conversation, transcript); note, the whole note; or section_header and section_text, one
    section of it, whose heading becomes the slice `section`. Only the conversation may be cut (trim_context)."""
    dialogue = first_text(row, "dialogue", "conversation", "transcript")
    if dialogue is None:
        raise BadRow(
            "there is no conversation (a column dialogue, conversation or transcript; map yours in data.columns)"
        )
    system = row.get("system")
    heading, text, note = (
        first_text(row, "section_header"),
        first_text(row, "section_text"),
        first_text(row, "note", "output"),
    )
    if text is not None and heading is None:
        raise BadRow("section_text has no section_header: a section needs its heading")
    by_section = "section_header" in row or "section_text" in row
    shown = None if heading is None else HEADINGS.get(heading.strip().upper(), heading.strip())
    answer = f"{shown}:\n{text.strip()}" if text is not None else note
    turns = [Message("system", system)] if isinstance(system, str) and system else []
    turns.append(Message.asking(f"{SECTION if by_section else NOTE}\n\n", dialogue.strip()))
    if answer is not None:
        turns.append(Message("assistant", answer, learned=True))
    slices = {"section": shown} if shown else {}
    document = name_of(row.get("document")) or name_of(row.get("encounter_id"))
    return [Example(name_of(row.get("id")), tuple(turns), document, slices)]
