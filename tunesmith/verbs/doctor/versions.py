"""Python, packages and extras: known good, untested, too old or missing.

Known good is what was run, not what was promised: by CI (`.ci/run`), or by the self-test on the GPU machine of
docs/benchmarks.md; a test fails in CI where the table claims more. What is too old comes from the package's own
requirements (pyproject.toml), so it stands nowhere twice.
"""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version

from tunesmith.verbs.doctor.finding import Finding

KNOWN_GOOD: dict[str, tuple[str, str]] = {
    "torch": ("2.11", "2.13"),
    "transformers": ("5.17", "5.23"),
    "tokenizers": ("0.23", "0.23"),
    "safetensors": ("0.8", "0.8"),
    "bitsandbytes": ("0.50", "0.50"),
    "huggingface_hub": ("1.33", "2.4"),
    "numpy": ("2.4", "2.5"),
    "pydantic": ("2.14", "2.14"),
}
"""Package → first and last minor version that tunesmith was run with."""
OPTIONAL = {"peft": ("0.21", "0.21")}
"""Packages that tunesmith does not need, but whose files it reads and writes."""
PYTHONS = ("3.11", "3.13")  # of CI
INTERNAL = ("test", "dev")  # extras for people who work on tunesmith itself

Version = tuple[int, ...]


def findings() -> list[Finding]:
    """Python, then each package of the tables."""
    floors = required()
    found = [python(platform.python_version())]
    for name, tested in KNOWN_GOOD.items():
        found.append(package(name, installed(name), floors.get(name), tested))
    for name, tested in OPTIONAL.items():
        if (there := installed(name)) is not None:
            found.append(package(name, there, None, tested))
    missing = [name for name in floors if name not in KNOWN_GOOD and installed(name) is None]
    if missing:
        words = f"not installed: {', '.join(missing)}"
        found.append(Finding("packages", "fail", words, f"pip install {' '.join(missing)}"))
    return found


def python(there: str) -> Finding:
    """Whether this Python is one that tunesmith is made for."""
    first, last = (_numbers(one) for one in PYTHONS)
    if first <= _numbers(there)[:2] <= last:
        return Finding("python", "ok", f"{there} ({sys.executable})")
    words = f"{there}; tunesmith is made for {PYTHONS[0]} to {PYTHONS[1]}"
    return Finding("python", "fail", words, f"python{PYTHONS[1]} -m venv .venv")


def package(name: str, there: str | None, floor: str | None, tested: tuple[str, str]) -> Finding:
    """One package: missing and too old fail, untested warns."""
    low, high = tested
    wanted = f'pip install "{name}>={low},<{_next(high)}"'
    span = low if low == high else f"{low} to {high}"
    if there is None:
        return Finding(name, "fail", "not installed", wanted)
    if floor is not None and _numbers(there) < _numbers(floor):
        return Finding(name, "fail", f"{there}, too old (known good: {span})", wanted)
    if _numbers(low) <= _numbers(there)[:2] <= _numbers(high):
        return Finding(name, "ok", f"{there}, known good")
    return Finding(name, "warn", f"{there}, untested (known good: {span})", wanted)


def extras() -> list[Finding]:
    """Each optional part of tunesmith: there, or the command that brings it. None of them is needed."""
    found = []
    for extra, packages in _extras().items():
        missing = [name for name in packages if installed(name) is None]
        words = "installed" if not missing else f"not installed (optional): {', '.join(missing)}"
        fix = f'pip install "tunesmith[{extra}]"' if missing else None
        found.append(Finding(extra, "ok", words, fix))
    return found


def installed(name: str) -> str | None:
    """The version of a package, read without importing it."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def required() -> dict[str, str | None]:
    """What tunesmith itself asks for: package → lowest version; names with underscores, as in the tables."""
    return {name.lower().replace("-", "_"): floor for name, floor, extra in _requirements() if extra is None}


def _extras() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, _, extra in _requirements():
        if extra is not None and extra not in INTERNAL:
            found.setdefault(extra, []).append(name)
    return found


def _requirements() -> Iterator[tuple[str, str | None, str | None]]:
    """(package, lowest version, extra) of each line of tunesmith's metadata."""
    try:
        lines = requires("tunesmith") or []
    except PackageNotFoundError:  # run from its folder without being installed
        lines = []
    for line in lines:
        spec, _, marker = line.partition(";")
        name = re.match(r"[\w.-]+", spec.strip())
        floor = re.search(r">=\s*([\d.]+)", spec) or re.search(r"==\s*([\d.]+)", spec)
        extra = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", marker)
        if name:
            yield name[0], floor and floor[1], extra and extra[1]


def _numbers(text: str) -> Version:
    """(2, 13, 0) of 2.13.0+cpu; what follows a letter counts for nothing."""
    return tuple(int(part) for part in re.findall(r"\d+", re.split(r"[+a-z]", text)[0]))


def _next(text: str) -> str:
    *first, last = _numbers(text)
    return ".".join(map(str, [*first, last + 1]))
