"""Small generated files in the shape of each mission's rows: invented people, fixed seeds."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

_SIGNS = "headache,cough,itching,stiffness,dizziness,numbness,heartburn,swelling,hoarseness,tiredness".split(
    ","
)
_PLACES = "left knee,right shoulder,lower back,neck,jaw,left hip,right ankle,chest,scalp,left wrist".split(
    ","
)
_CAUSES = "tendinitis,gastritis,migraine,eczema,sinusitis,bursitis,anaemia,laryngitis,sciatica,gout".split(
    ","
)
_STEPS = (
    "rest for a week,an ice pack in the evening,ibuprofen with food,a light diet,warm compresses,"
    "saline rinses,more water,a brace at night,daily stretching,an iron supplement"
).split(",")
_CHEMICALS = (
    "lorazine,metaprolid,cinoxat,valdurane,pentorolol,orbistat,tegravin,sulomide,amprazol,fenclarin".split(
        ","
    )
)
_DISEASES = (
    "neuropathy,bradycardia,hepatitis,tremor,anaemia,nephritis,urticaria,seizures,amnesia,colitis".split(",")
)
_SERVICES = "MEDICINE,SURGERY,CARDIOLOGY,NEUROLOGY,ORTHOPAEDICS".split(",")
_NAMES = "Alva,Brem,Corin,Dessa,Elko,Farun,Gesta,Hollo,Imra,Jorun,Keld,Losa,Mirn,Noll,Orla,Pesk".split(",")
_KANNADA = (
    "ನೀರು ಮರ ಮನೆ ಹಣ್ಣು ಊರು ದಾರಿ ಬೆಟ್ಟ ನದಿ ಹಕ್ಕಿ ಹೂವು ಮಳೆ ಸೂರ್ಯ ಚಂದ್ರ ಪುಸ್ತಕ ಶಾಲೆ ಗುರು ಕಥೆ ಹಾಡು ಊಟ ಕೆಲಸ "
    "ಬಣ್ಣ ಸಮುದ್ರ ಗಾಳಿ ಮಣ್ಣು ಬೀಜ ಕಾಡು ಹುಲಿ ಆನೆ ಮೀನು ಹಸು"
).split()
_SYLLABLES = "ba ce di fo gu ha ki lo mu ne pa ri so tu va we".split()


def word(draw: random.Random) -> str:
    """A word that nobody has written before."""
    return "".join(draw.choices(_SYLLABLES, k=3))


def cancer(draw: random.Random, number: int) -> dict[str, Any]:
    """A report and its seven fields."""
    kind, stage, drug = word(draw), draw.choice(("I", "II", "III", "IV")), word(draw)
    gene = draw.choice(("EGFR L858R", "KRAS G12C", None))
    text = f"Biopsy showed {kind} carcinoma, stage {stage}. Treated with {drug} in course {number}."
    if gene:
        text += f" Sequencing found {gene}."
    output = {
        "cancer_type": f"{kind} carcinoma",
        "stage": stage,
        "gene_mutation": gene,
        "biomarker": None,
        "treatment": drug,
        "response": None,
        "metastasis_site": None,
    }
    return {
        "instruction": "Extract all cancer-related entities from the text.",
        "input": text,
        "output": output,
    }


def question(draw: random.Random, number: int) -> dict[str, Any]:
    """A patient's question and a doctor's answer that says what it is and what to do."""
    sign, place, cause = draw.choice(_SIGNS), draw.choice(_PLACES), draw.choice(_CAUSES)
    first, second = draw.sample(_STEPS, 2)
    return {
        "instruction": "If you are a doctor, please answer the medical questions based on the patient's description.",
        "input": f"I have had {sign} and pain in my {place} for {number + 2} days, since a trip to {word(draw)}.",
        "output": f"Hello. This is most likely {cause}. I would advise {first} and {second}. Regards",
    }


def abstract(draw: random.Random, number: int) -> str:
    """A PubTator document: title, abstract, mentions with offsets, one relation."""
    (cause, other), (harm, _) = draw.sample(_CHEMICALS, 2), draw.sample(_DISEASES, 2)
    pmid = str(9_000_000 + number)
    title = f"{cause.capitalize()} and {harm} in {word(draw)} cohorts."
    body = f"We saw {harm} in {draw.randint(3, 60)} patients after {cause} at {word(draw)}; those on {other} had none."
    text, lines = f"{title} {body}", [f"{pmid}|t|{title}", f"{pmid}|a|{body}"]
    for name, kind, concept in (
        (cause, "Chemical", f"C{_CHEMICALS.index(cause):06}"),
        (other, "Chemical", f"C{_CHEMICALS.index(other):06}"),
        (harm, "Disease", f"D{_DISEASES.index(harm):06}"),
    ):
        at = text.lower().find(name)
        while at >= 0:
            lines.append(f"{pmid}\t{at}\t{at + len(name)}\t{text[at : at + len(name)]}\t{kind}\t{concept}")
            at = text.lower().find(name, at + 1)
    lines.append(f"{pmid}\tCID\tC{_CHEMICALS.index(cause):06}\tD{_DISEASES.index(harm):06}")
    return "\n".join(lines) + "\n"


def record(draw: random.Random, number: int) -> dict[str, Any]:
    """A request and an invented person's discharge record."""
    sex, service = draw.choice("MF"), draw.choice(_SERVICES)
    name = f"{draw.choice(_NAMES)} {word(draw).capitalize()}"
    course = " ".join(word(draw) for _ in range(12))
    text = (
        f"Name: {name}\nSex: {sex}\nService: {service}\nChief Complaint: {draw.choice(_SIGNS)} {word(draw)}\n"
        f"Brief Hospital Course: {course}.\nDischarge Condition: stable after {number + 1} days"
    )
    return {
        "instruction": "Write the discharge record of an invented patient.",
        "input": f"Sex: {sex}, Service: {service}",
        "output": text,
    }


def kannada(draw: random.Random, number: int) -> dict[str, Any]:
    """A conversation in ShareGPT's shape, in Kannada script."""
    asked, said = (" ".join(draw.choices(_KANNADA, k=k)) for k in (4, 6))
    return {
        "conversations": [
            {"from": "human", "value": f"{asked} {number}?"},
            {"from": "gpt", "value": f"{said}."},
        ]
    }


def pair(draw: random.Random, number: int) -> dict[str, Any]:
    """A prompt with a better and a worse answer, as whole dialogues."""
    thing, other = word(draw), " ".join(word(draw) for _ in range(6))
    asked = f"\n\nHuman: How do I mend a broken {thing} with {other}?\n\nAssistant:"
    better = f" Unplug the {thing} first, then ask somebody who repairs {word(draw)} for {number + 1} coins."
    return {"chosen": asked + better, "rejected": f"{asked} No idea, try {word(draw)}."}


def visit(draw: random.Random, number: int) -> dict[str, Any]:
    """A short conversation with the section of the note that it becomes, as MTS-Dialog heads it."""
    sign, place, cause = draw.choice(_SIGNS), draw.choice(_PLACES), draw.choice(_CAUSES)
    step, name = draw.choice(_STEPS), word(draw)
    said = {
        "CC": (f"Patient: It is the {sign}, in my {place}.", f"{sign.capitalize()}, {place}."),
        "PASTMEDICALHX": (f"Patient: I had {cause} in {name}.", f"{cause.capitalize()} in {name}."),
        "PLAN": (f"Doctor: Then {step}, please.", f"{step.capitalize()}, then review at {name}."),
    }
    header = draw.choice(sorted(said))
    turn, text = said[header]
    dialogue = (
        f"Doctor: What brings you to {name} on day {number}?\n{turn}\nDoctor: I see, {word(draw)} then."
    )
    return {"ID": number, "section_header": header, "section_text": text, "dialogue": dialogue}


SHAPES: dict[str, tuple[str, Callable[[random.Random, int], dict[str, Any] | str]]] = {
    "cancer-extraction": ("train.jsonl", cancer),
    "medical-qa": ("questions.jsonl", question),
    "chemical-disease": ("abstracts.PubTator.txt", abstract),
    "discharge-records": ("records.jsonl", record),
    "kannada": ("kannada.jsonl", kannada),
    "safe-answers": ("pairs.jsonl", pair),
    "visit-notes": ("visits.jsonl", visit),
}


def write_rows(mission: str, folder: Path, count: int, seed: int = 0) -> Path:
    """A file of `count` rows of the mission's shape."""
    name, make = SHAPES[mission]
    draw = random.Random(f"{mission} {seed}")
    path = folder / (name if not seed else f"{seed}-{name}")
    rows = [make(draw, number) for number in range(count)]
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
