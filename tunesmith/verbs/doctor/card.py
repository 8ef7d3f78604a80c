"""The card: whether torch sees it, whether driver, build and card fit together, and what it can hold.

`look` collects facts on this machine; `judge` turns facts into findings and needs no card.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

from tunesmith.verbs.doctor.finding import Finding
from tunesmith.verbs.doctor.needs import longest_row
from tunesmith.verbs.doctor.versions import KNOWN_GOOD, installed

GIB = 1 << 30
BF16_FROM = (8, 0)  # Ampere; earlier cards have no bf16 in hardware
_FEW_TOKENS = 512  # an 8B model whose rows have to be shorter than this is no use
_BUSY = 0.1  # of a card's memory in other hands
_LOW, _HIGH = KNOWN_GOOD["torch"]
_TORCH = f'"torch>={_LOW},<{_HIGH.partition(".")[0]}.{int(_HIGH.partition(".")[2]) + 1}"'


@dataclass(frozen=True, slots=True)
class Card:
    """One accelerator, as torch sees it. Memory in bytes."""

    name: str
    capability: tuple[int, int]
    total: int
    free: int


@dataclass(frozen=True, slots=True)
class CardFacts:
    """What this machine says about itself."""

    torch: str | None = None
    """Its version; None where it is not installed."""
    torch_error: str | None = None
    """Why it can't be imported."""
    built_for: str | None = None
    """CUDA version of torch's build; None for a CPU build."""
    rocm: str | None = None
    """ROCm version of torch's build."""
    architectures: tuple[str, ...] = ()
    """What torch's build has code for: sm_80, compute_90, …"""
    on_bus: int = 0
    """NVIDIA cards that the kernel lists, with or without a driver."""
    driver: tuple[int, int] | None = None
    """Newest CUDA that the driver can run; None without a driver."""
    visible: str | None = None
    """CUDA_VISIBLE_DEVICES."""
    cards: tuple[Card, ...] = ()
    cuda_error: str | None = None
    """Why torch sees no card, in CUDA's words."""
    bitsandbytes_for: tuple[str, ...] | None = None
    """CUDA versions (128 is 12.8) that the installed bitsandbytes has a library for; None: not installed."""


def findings() -> list[Finding]:
    """All checks of the card on this machine."""
    return judge(look())


def look() -> CardFacts:
    """Imports torch where it is installed. Never raises for what is broken here."""
    on_bus, driver, visible = _on_bus(), _driver(), os.environ.get("CUDA_VISIBLE_DEVICES")
    there = installed("torch")
    if there is None:
        return CardFacts(on_bus=on_bus, driver=driver, visible=visible)
    try:
        import torch
    except (
        Exception
    ) as error:  # a half-installed torch fails in its own ways: OSError, ImportError, AttributeError
        words = f"{type(error).__name__}: {error}".splitlines()[0]
        return CardFacts(torch=there, torch_error=words, on_bus=on_bus, driver=driver, visible=visible)
    cards: list[Card] = []
    problem = None
    if torch.version.cuda or torch.version.hip:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what CUDA has to say is asked for below
            try:
                torch.cuda.init()  # type: ignore[no-untyped-call]  # torch's is untyped
                for number in range(torch.cuda.device_count()):
                    about = torch.cuda.get_device_properties(number)
                    free, total = torch.cuda.mem_get_info(number)
                    cards.append(Card(about.name, (about.major, about.minor), total, free))
            except Exception as error:  # RuntimeError, AssertionError, AcceleratorError by version
                problem = str(error).splitlines()[0] if str(error) else type(error).__name__
    return CardFacts(
        torch=there,
        built_for=torch.version.cuda,
        rocm=torch.version.hip,
        architectures=tuple(torch.cuda.get_arch_list()) if cards else (),
        on_bus=on_bus,
        driver=driver,
        visible=visible,
        cards=tuple(cards),
        cuda_error=problem,
        bitsandbytes_for=_bitsandbytes(),
    )


def judge(facts: CardFacts) -> list[Finding]:
    """Findings named `card`, `driver`, `build` and, for each card torch can use, `card 0` and so on."""
    if facts.torch is None:
        return []  # the versions say so already
    if facts.torch_error:
        fix = f"pip install --force-reinstall {_TORCH}"
        return [Finding("torch import", "fail", f"torch can't be imported: {facts.torch_error}", fix)]
    if facts.cards:
        return [one for number, card in enumerate(facts.cards) for one in _usable(facts, number, card)] + (
            _quantisation(facts)
        )
    return [_unseen(facts)]


def _unseen(facts: CardFacts) -> Finding:
    """Why torch sees no card."""
    there = facts.on_bus or facts.driver
    if not there:
        return Finding(
            "card",
            "warn",
            "no NVIDIA card: everything runs on the CPU, which is enough for the starter and small models",
            "for an 8B model use a machine with a card of 16 GB or more (docs/small-gpus.md)",
        )
    if facts.built_for is None and not facts.rocm:
        words = f"this machine has an NVIDIA card, but torch {facts.torch} is a build for the CPU"
        return Finding("card", "fail", words, f"pip uninstall -y torch && pip install {_TORCH}")
    if facts.driver is None:
        words = "there is an NVIDIA card, but its driver is not loaded (no libcuda)"
        fix = "install NVIDIA's driver and restart; in a container: docker run --gpus all …"
        return Finding("card", "fail", words, fix)
    if facts.visible is not None and facts.visible.strip() in ("", "-1", "none", "NoDevFiles"):
        words = f"CUDA_VISIBLE_DEVICES={facts.visible!r} hides every card"
        return Finding("card", "fail", words, "unset CUDA_VISIBLE_DEVICES")
    if facts.built_for and int(facts.built_for.partition(".")[0]) > facts.driver[0]:
        words = (
            f"torch is built for CUDA {facts.built_for}, the driver runs CUDA {_dotted(facts.driver)} at most"
        )
        fix = f"update NVIDIA's driver, or install torch's build for CUDA {facts.driver[0]} (pytorch.org, Get started)"
        return Finding("driver", "fail", words, fix)
    words = f"torch sees no card: {facts.cuda_error or 'CUDA counts no devices'}"
    return Finding(
        "card", "fail", words, "nvidia-smi   (does the driver answer? if not, restart the machine)"
    )


def _usable(facts: CardFacts, number: int, card: Card) -> list[Finding]:
    name, found = f"card {number}", []
    major, minor = card.capability
    words = f"{card.name}, {card.total / GIB:.1f} GiB, compute capability {major}.{minor}"
    if facts.rocm:
        return [Finding(name, "warn", f"{words}; torch is a ROCm build: untested")]
    if not covers(facts.architectures, card.capability):
        built = ", ".join(facts.architectures)
        return [
            Finding(
                name,
                "fail",
                f"{words}; torch's build for CUDA {facts.built_for} has no code for it ({built})",
                "install torch's build for CUDA 12.6, the last one with code for sm_50 to sm_70 (pytorch.org)",
            )
        ]
    bf16 = card.capability >= BF16_FROM
    found.append(Finding(name, "ok", f"{words}, torch built for CUDA {facts.built_for}"))
    if not bf16:
        found.append(
            Finding("bf16", "warn", f"{name} has no bfloat16", "model.dtype: float16   (in the recipe)")
        )
    found.append(_room(card, bf16))
    held = card.total - card.free
    if held > _BUSY * card.total:
        words = f"{held / GIB:.1f} GiB of {name} are in use; a plan counts on the whole card"
        fix = f"nvidia-smi   (whose?), or train.memory: {card.free / GIB:.0f}"
        found.append(Finding("card memory", "warn", words, fix))
    return found


def _room(card: Card, bf16: bool) -> Finding:
    tokens = longest_row(card.total, "bfloat16" if bf16 else "float16")
    if tokens < _FEW_TOKENS:
        return Finding(
            "8B model",
            "warn",
            "an 8B model does not fit, even in NF4 (predicted)",
            "use a base of 1B to 3B with model.quantize: nf4 (docs/small-gpus.md)",
        )
    return Finding(
        "8B model", "ok", f"in NF4, rows of up to {tokens:,} tokens train on this card (predicted, rank 16)"
    )


def _quantisation(facts: CardFacts) -> list[Finding]:
    """bitsandbytes carries one library for each CUDA version; without the right one NF4 fails on first use."""
    if facts.bitsandbytes_for is None or facts.built_for is None:
        return []
    wanted = "".join(facts.built_for.split(".")[:2])
    if wanted in facts.bitsandbytes_for:
        return []
    has = ", ".join(facts.bitsandbytes_for) or "none"
    words = f"the installed version has no library for CUDA {facts.built_for} (it has {has})"
    return [Finding("bitsandbytes", "fail", words, "pip install --upgrade bitsandbytes")]


def covers(architectures: tuple[str, ...], capability: tuple[int, int]) -> bool:
    """Whether a build runs on a card: code of its generation (sm_80 runs on 8.6), or code to be compiled for it."""
    for name in architectures:
        match = re.fullmatch(r"(sm|compute)_(\d+)(\d)[a-z]?", name)
        if match is None:
            continue
        built = int(match[2]), int(match[3])
        if built <= capability and (match[1] == "compute" or built[0] == capability[0]):
            return True
    return False


def _on_bus() -> int:
    """NVIDIA display controllers by the kernel's list of PCI devices (Linux)."""
    count = 0
    for device in Path("/sys/bus/pci/devices").glob("*"):
        try:
            vendor, kind = (device / "vendor").read_text().strip(), (device / "class").read_text().strip()
        except OSError:
            continue
        count += vendor == "0x10de" and kind.startswith("0x03")
    return count


def _driver() -> tuple[int, int] | None:
    """The newest CUDA that the driver can run, asked from the driver itself."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
        number = ctypes.c_int()
        if library.cuDriverGetVersion(ctypes.byref(number)) != 0 or not number.value:
            return None
    except (OSError, AttributeError):
        return None
    return number.value // 1000, number.value % 1000 // 10


def _bitsandbytes() -> tuple[str, ...] | None:
    spec = importlib.util.find_spec("bitsandbytes")
    if spec is None or spec.origin is None:
        return None
    files = Path(spec.origin).parent.glob("libbitsandbytes_cuda*.so")
    return tuple(sorted(match[1] for file in files if (match := re.search(r"cuda(\d+)", file.name))))


def _dotted(numbers: tuple[int, int]) -> str:
    return f"{numbers[0]}.{numbers[1]}"
