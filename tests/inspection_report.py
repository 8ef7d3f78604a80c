"""Reports of the data inspection, written by hand: one like an extraction task, one like plain text, one hostile."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

CHECKS = {
    "exact_leak": ("error", "a validation or test prompt stands in train, to the letter"),
    "group_leak": ("error", "a document has rows on two sides"),
    "near_leak": ("warn", "a validation or test row is almost a training row"),
    "duplicate": ("warn", "the same prompt with the same answer, again"),
    "near_duplicate": ("warn", "almost the same row, again"),
    "contradiction": ("warn", "the same prompt with different answers"),
    "empty_answer": ("error", "there is nothing to learn but the end"),
    "unparsable": ("error", "the task's own parser can't read the gold answer"),
    "schema": ("error", "the answer breaks the schema"),
    "swapped_field": ("warn", "a field holds what belongs into another"),
    "grounding": ("warn", "the answer, or a field of it, is not in the input"),
    "cut_prompt": ("warn", "the prompt ends in the middle"),
    "missing_cue": ("warn", "nearly all prompts end with the same words, this one does not"),
    "boilerplate": ("warn", "the answer is mostly text that many answers share"),
    "phi": ("warn", "what looks like a person's number: phone, mail, record number"),
    "script": ("warn", "the answer is not in the script of the others"),
}
HOSTILE = (
    "</main></details><script>alert(1)</script>",
    '"><img src=https://example.invalid/x onerror=alert(1)>',
    "\x1b[31mred\x1b[0m\x07 \u2028\u2029\x85 \u202eright to left",
    "half a pair \ud83d, a null \x00, & &amp; &#60;b&#62;",
    "<style>*{display:none}</style>",
    "ಕನ್ನಡ ಪಠ್ಯ 漢字漢字 👩‍🔬",
    "x" * 3000,
)


def check(
    name: str, rows: int = 0, of: int = 4500, examples: list[dict[str, str]] | None = None, level: str = ""
) -> dict[str, Any]:
    """One line of "checks"."""
    usual, meaning = CHECKS[name]
    return {
        "name": name,
        "level": level or usual,
        "rows": rows,
        "of": of,
        "share": rows / of if of else 0.0,
        "meaning": meaning,
        "examples": examples or [],
    }


def place(number: int, detail: str, file: str = "train.jsonl", split: str = "train") -> dict[str, str]:
    """One example of a finding."""
    source = f"{file}:{number}"
    return {"id": source, "source": source, "split": split, "detail": detail}


def whole(inspection: dict[str, Any], refused: int = 0) -> dict[str, Any]:
    """data/report.json around an inspection."""
    splits = {}
    for name, one in inspection["lengths"].items():
        rows = sum(one["histogram"]["counts"])
        splits[name] = {"rows": rows, "documents": rows, "tokens": 180 * rows, "learned_tokens": 71 * rows,
                        "length": one["tokens"], "longest_answer": one["answer"]["max"]}  # fmt: skip
    sources = [
        {
            "split": name,
            "name": f"{name}.jsonl",
            "rows": one["rows"],
            "refused": refused,
            "weight": 1.0,
            "revision": None,
        }
        for name, one in splits.items()
    ]
    return {
        "schema_version": 1, "splits": splits, "sources": sources, "left_out": 0,
        "refused": [{"what": f"{refused} of 9 rows can't be used:\n  train.jsonl:3: {HOSTILE[0]}\n  x: {HOSTILE[2]}",
                     "where": "train.jsonl:3", "fix": "mend"}] if refused else [],
        "overlong": {"rows": 0, "of": 0, "longest": 0, "first": []}, "trimmed": {"rows": 0, "tokens": 0},
        "unscorable": None, "positions": 4096, "inspection": inspection,
        "cache": "5f1c0d3a9be04f7c",
    }  # fmt: skip


def spread(low: int, p50: int, p90: int, p99: int, high: int) -> dict[str, int]:
    """Quantiles."""
    return {"min": low, "p50": p50, "p90": p90, "p99": p99, "max": high}


def cancer() -> dict[str, Any]:
    """5,000 reports to JSON: leaks, ungrounded fields, off-list stages."""
    edges = list(range(100, 381, 20))
    fields = [
        ("cancer_type", 0, 0.725, 0.731, 0.952, [["lung adenocarcinoma", 1203], ["melanoma", 711]]),
        ("stage", 103, 0.53, 0.55, 0.63, [["IV", 3120], ["IIIB", 401], ["III A", 44], ["I (T1c)", 24]]),
        ("gene_mutation", 1116, 0.867, 0.871, 0.93, [["EGFR L858R", 388], ["KRAS G12C", 300]]),
        ("biomarker", 402, 0.207, 0.25, 0.929, [["PD-L1 5%", 97], ["ER positive; PR positive", 91]]),
        ("treatment", 21, 0.267, 0.31, 0.937, [["osimertinib", 402], ["FOLFOX", 180]]),
        ("response", 240, 0.572, 0.6, 0.91, [["partial response", 1822], ["stable disease", 903]]),
        ("metastasis_site", 890, 0.424, 0.5, 0.88, [["brain", 1033], ["liver; bone", 411]]),
    ]
    return {
        "checks": [
            check("exact_leak", 12, 500, [
                place(n, f"the prompt of train.jsonl:{n * 31}", "validation_a.jsonl", "validation")
                for n in (3, 18, 77, 120, 311)
            ]),
            check("group_leak", 0, 500),
            check("near_leak", 11, 500, [
                place(40, "0.84 like train.jsonl:2210", "validation_a.jsonl", "validation")
            ]),
            check("duplicate"),
            check("near_duplicate", 31, 5000, [place(812, "0.91 like train.jsonl:44")]),
            check("contradiction"),
            check("empty_answer", 2, 5000, [place(91, "the answer is empty"), place(92, "the answer is empty")]),
            check("unparsable"),
            check("schema", 68, 5000, [place(412, '$.stage: "III A" is not one of I, IA, IB, II, III, IIIA, IV')]),
            check("swapped_field", 18, 5000, [place(7, "gene_mutation and biomarker both hold EGFR L858R")]),
            check("grounding", 1799, 5000, [place(2, "stage: no word of 'IV' is in the input")]),
            check("cut_prompt"), check("missing_cue"), check("boilerplate"),
            check("phi"), check("script", 3, 5000, level="ignore"),
        ],
        "lengths": {
            "train": {
                "tokens": spread(96, 181, 240, 300, 362), "prompt": spread(60, 110, 160, 199, 231),
                "answer": spread(36, 71, 90, 110, 151),
                "histogram": {"edges": edges,
                              "counts": [90, 310, 640, 820, 790, 600, 402, 360, 198, 120, 90, 50, 20, 10]},
            },
            "validation": {
                "tokens": spread(101, 180, 238, 297, 341), "prompt": spread(61, 111, 158, 190, 220),
                "answer": spread(37, 70, 91, 108, 140),
                "histogram": {"edges": edges, "counts": [9, 30, 60, 90, 80, 70, 50, 41, 30, 20, 10, 7, 3, 0]},
            },
        },
        "limits": [
            {"limit": 256, "over": 402, "share": 0.0804, "answer_lost": 3, "cue_cut": 9, "answer_cut": 390,
             "answer_tokens_share": 0.021},
            {"limit": 512, "over": 0, "share": 0.0, "answer_lost": 0, "cue_cut": 0, "answer_cut": 0,
             "answer_tokens_share": 0.0},
            {"limit": 1024, "over": 0, "share": 0.0, "answer_lost": 0, "cue_cut": 0, "answer_cut": 0,
             "answer_tokens_share": 0.0},
        ],
        "leaks": {
            "validation in train": {
                "exact": {"rows": 12, "share": 0.024}, "near": {"rows": 11, "share": 0.022},
                "group": {"rows": 0, "share": 0.0}, "of": 500,
            }
        },
        "parse": {"rows": 5000, "parsed": 4998, "share": 4998 / 5000},
        "schema": {"rows": 5000, "valid": 4932, "share": 4932 / 5000, "inferred": False},
        "grounding": {"rows": 5000, "verbatim": 0.53, "normalised": 0.56, "coverage": 0.89},
        "fields": [
            {"name": name, "rows": 5000, "null": null, "distinct": 40 + 30 * i, "top": top,
             "separators": {";": 900, ",": 120, " and ": 77} if i > 2 else {},
             "verbatim": verbatim, "normalised": normalised, "coverage": coverage,
             "nothing": 0.37 if name == "stage" else 0.01}
            | ({"off_list": 68, "off_list_top": [["III A", 44], ["I (T1c)", 24]]} if name == "stage" else {})
            for i, (name, null, verbatim, normalised, coverage, top) in enumerate(fields)
        ],
        "prompt": {"cue": "the text.", "with_cue": 4990, "of": 5000, "ends": {"the text.": 4990, "text": 10}},
        "boilerplate": {"share": 0.0, "phrases": []},
        "phi": {"phone": 0, "mail": 0, "record": 0},
        "scripts": {"prompt": {"Latin": 0.9995, "Greek": 0.0005}, "answer": {"Latin": 1.0},
                    "strays": {"replacement": 3, "zero_width": 12}},
        "pairs": {},
        "duplicates": {"prompts_repeated": 0, "prompts_with_different_answers": 0, "exact": 0, "near": 31},
    }  # fmt: skip


def questions() -> dict[str, Any]:
    """Patients' questions, three splits: no fields, phones and mails, boilerplate, cut answers."""
    edges = [0, 64, 128, 256, 512, 1024, 2048, 4096]
    report = deepcopy(cancer())
    for gone in ("fields", "schema"):
        del report[gone]
    report["checks"] = [
        check("exact_leak", of=1000), check("group_leak", of=1000),
        check("near_leak", 17, 1000, [place(8, "0.81 like train.csv:12", "test.csv", "test")]),
        check("duplicate", 149, 5239, [place(31, "as train.csv:30", "train.csv")]),
        check("near_duplicate", 210, 5239, [place(61, "0.88 like train.csv:60", "train.csv")]),
        check("contradiction", 282, 5239, [place(70, "3 answers to one question", "train.csv")]),
        check("empty_answer", of=5239), check("unparsable", of=5239), check("schema", of=0),
        check("swapped_field", of=0), check("grounding", of=5239), check("cut_prompt", of=5239),
        check("missing_cue", of=5239),
        check("boilerplate", 430, 5239, [place(90, "81 % of the answer", "train.csv")]),
        check("phi", 22, 5239, [place(5, "phone", "train.csv"), place(6, "mail", "train.csv")]),
        check("script", of=5239),
    ]  # fmt: skip
    counts = [12, 320, 1400, 1630, 600, 190, 39]
    report["lengths"] = {
        split: {
            "tokens": spread(33, 301, 900, 2100, 3809), "prompt": spread(9, 16, 30, 44, 71),
            "answer": spread(20, 280, 880, 2080, 3790),
            "histogram": {"edges": edges, "counts": [n // part for n in counts]},
        }
        for split, part in (("train", 1), ("validation", 8), ("test", 8))
    }  # fmt: skip
    report["limits"] = [
        {"limit": limit, "over": over, "share": over / 5239, "answer_lost": 0, "cue_cut": 0,
         "answer_cut": over, "answer_tokens_share": lost}
        for limit, over, lost in ((512, 1030, 0.31), (1024, 284, 0.12), (2048, 48, 0.02), (4096, 0, 0.0))
    ]  # fmt: skip
    leak = {
        "exact": {"rows": 0, "share": 0.0}, "near": {"rows": 17, "share": 0.017}, "group": {"rows": 0, "share": 0.0},
        "similarity": {"p50": 0.05, "p90": 0.3, "max": 0.93, "at_least": {"0.3": 120, "0.5": 44, "0.8": 17},
                       "of": 500},
    }  # fmt: skip
    report["leaks"] = {
        f"{pair}": leak for pair in ("validation in train", "test in train", "test in validation")
    }
    report["prompt"] = {"cue": "", "with_cue": 0, "of": 5239, "ends": {"?": 5100, ".": 139}}
    report["boilerplate"] = {
        "share": 0.082,
        "phrases": [
            ["For more information, see the resources listed below.", 430],
            ["Thanks for writing.", 210],
        ],
    }
    report["phi"] = {"phone": 17, "mail": 5}
    report["duplicates"] = {
        "prompts_repeated": 431, "prompts_with_different_answers": 282, "exact": 149, "near": 210
    }  # fmt: skip
    report["parse"] = {"rows": 5239, "parsed": 5239, "share": 1.0}
    report["grounding"] = {"rows": 5239, "verbatim": 0.01, "normalised": 0.01, "coverage": 0.4}
    report["scripts"] = {
        "prompt": {"Latin": 0.98, "Kannada": 0.02},
        "answer": {"Kannada": 0.91, "Latin": 0.09},
    }
    return report


def clean() -> dict[str, Any]:
    """Nothing is wrong."""
    report = cancer()
    report["checks"] = [check(name, of=5000) for name in CHECKS]
    leak = report["leaks"]["validation in train"]
    leak |= {kind: {"rows": 0, "share": 0.0} for kind in ("exact", "near")}
    leak["similarity"] = {"p50": 0.12, "p90": 0.24, "max": 0.41, "at_least": {"0.3": 11, "0.5": 0, "0.8": 0},
                          "of": 500}  # fmt: skip
    report["limits"][0] |= {"over": 0, "share": 0.0, "answer_lost": 0, "cue_cut": 0, "answer_cut": 0,
                            "answer_tokens_share": 0.0}  # fmt: skip
    return report


def hostile() -> dict[str, Any]:
    """Every place that quotes rows quotes something that wants out."""
    report = cancer()
    for one in report["checks"]:
        one["rows"] = len(HOSTILE)
        one["examples"] = [
            {"id": text, "source": f"{text}.jsonl:1", "split": "train", "detail": text} for text in HOSTILE
        ]
    for field in report["fields"]:
        field["name"] = HOSTILE[0] + field["name"]
        field["top"] = [[text, 10] for text in HOSTILE]
        field["separators"] = dict.fromkeys(HOSTILE, 3)
    report["prompt"] = {"cue": HOSTILE[1], "with_cue": 5, "of": 9, "ends": dict.fromkeys(HOSTILE, 2)}
    report["boilerplate"] = {"share": 0.5, "phrases": [[text, 4] for text in HOSTILE]}
    report["leaks"] = {HOSTILE[0]: report["leaks"]["validation in train"]}
    report["lengths"] = {HOSTILE[4]: report["lengths"]["train"]}
    report["scripts"]["prompt"] = {HOSTILE[0]: 0.5, HOSTILE[3]: 0.5}
    return report


def one_row() -> dict[str, Any]:
    """The least a report can hold."""
    return {
        "checks": [check(name, of=1) for name in CHECKS],
        "lengths": {
            "train": {kind: spread(5, 5, 5, 5, 5) for kind in ("tokens", "prompt", "answer")}
            | {"histogram": {"edges": [5, 6], "counts": [1]}}
        },
        "limits": [],
        "leaks": {},
        "grounding": {"rows": 0, "verbatim": None, "normalised": None, "coverage": None},
        "fields": [],
        "prompt": {"cue": "", "with_cue": 0, "of": 1, "ends": {}},
        "boilerplate": {"share": 0.0, "phrases": []},
        "phi": {},
        "scripts": {"prompt": {}, "answer": {}},
        "duplicates": {"prompts_repeated": 0, "prompts_with_different_answers": 0, "exact": 0, "near": 0},
    }
