"""The cards that people train on, by the names they type: memory, speed and age, from their makers' datasheets.

`memory` is what torch reports, not what stands on the box: on the low side of what its messages show (drivers differ by
up to 0.3 GiB); that of the H200 is measured. Speeds are the published dense ones, sums in fp32 (a figure with sparsity
halved), float16's for a card without bfloat16. Written down in November 2026 from what NVIDIA publishes of each card
(nvidia.com, datasheets and architecture papers); none but the H200 was at hand to check them on.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches

from tunesmith.errors import SetupError

GIB = 1 << 30


@dataclass(frozen=True)
class Card:
    """`memory` in bytes; `half` and `fp8` (0: none) in dense operations a second; `bandwidth` of its memory and `host`
    of its link in bytes a second; `capability` as CUDA counts."""

    name: str
    memory: int
    half: float
    fp8: float
    bandwidth: float
    host: float
    capability: tuple[int, int]


def _card(
    name: str, gib: float, half: float, fp8: float, bandwidth: float, link: int, capability: tuple[int, int]
) -> Card:
    """In GiB, TFLOP/s, TFLOP/s, GB/s and the generation of PCIe (16 lanes, four fifths of them usable)."""
    host = {3: 12e9, 4: 25e9, 5: 50e9}[link]
    return Card(name, int(gib * GIB), half * 1e12, fp8 * 1e12, bandwidth * 1e9, host, capability)


_CARDS = (
    _card("T4", 14.56, 65, 0, 320, 3, (7, 5)),
    _card("V100-16GB", 15.77, 125, 0, 900, 3, (7, 0)),
    _card("V100-32GB", 31.73, 125, 0, 900, 3, (7, 0)),
    _card("RTX 2080 Ti", 10.75, 53.8, 0, 616, 3, (7, 5)),
    _card("A10", 21.98, 125, 0, 600, 4, (8, 6)),
    _card("A10G", 21.98, 70, 0, 600, 4, (8, 6)),
    _card("A40", 44.32, 149.7, 0, 696, 4, (8, 6)),
    _card("A100-40GB", 39.38, 312, 0, 1555, 4, (8, 0)),
    _card("A100-80GB", 79.14, 312, 0, 2039, 4, (8, 0)),
    _card("A100-80GB PCIe", 79.14, 312, 0, 1935, 4, (8, 0)),
    _card("RTX A5000", 23.55, 111.1, 0, 768, 4, (8, 6)),
    _card("RTX A6000", 47.40, 154.8, 0, 768, 4, (8, 6)),
    _card("RTX 3060", 11.63, 51.2, 0, 360, 4, (8, 6)),
    _card("RTX 3090", 23.56, 71, 0, 936, 4, (8, 6)),
    _card("L4", 22.03, 121, 242, 300, 4, (8, 9)),
    _card("L40", 44.32, 181, 362, 864, 4, (8, 9)),
    _card("L40S", 44.32, 362, 733, 864, 4, (8, 9)),
    _card("RTX 4060 Ti 16GB", 15.57, 44.1, 88.2, 288, 4, (8, 9)),
    _card("RTX 4080", 15.57, 97.5, 195, 717, 4, (8, 9)),
    _card("RTX 4090", 23.52, 165.2, 330.3, 1008, 4, (8, 9)),
    _card("RTX 6000 Ada", 47.37, 364.2, 728.5, 960, 4, (8, 9)),
    _card("H100", 79.10, 989, 1979, 3350, 5, (9, 0)),
    _card("H100 PCIe", 79.10, 756, 1513, 2000, 5, (9, 0)),
    _card("H100 NVL", 93.0, 835, 1671, 3938, 5, (9, 0)),
    _card("H200", 139.8, 989, 1979, 4800, 5, (9, 0)),
    _card("B200", 178.35, 2250, 4500, 7700, 5, (10, 0)),
    _card("RTX 5090", 31.33, 209.5, 419, 1792, 5, (12, 0)),
    _card("RTX PRO 6000", 94.97, 503.8, 1007, 1792, 5, (12, 0)),
)
_ALIASES = {
    "V100": "V100-16GB", "A100": "A100-40GB", "H100-80GB": "H100", "A6000": "RTX A6000", "A5000": "RTX A5000",
    "6000 Ada": "RTX 6000 Ada", "RTX 4060 Ti": "RTX 4060 Ti 16GB",
    "A100-PCIE-40GB": "A100-40GB", "V100-PCIE-16GB": "V100-16GB", "V100-PCIE-32GB": "V100-32GB",
    "H100 80GB PCIe": "H100 PCIe",
    # machines of clouds, by the card in them
    "g4dn": "T4", "g5": "A10G", "g6": "L4", "gr6": "L4", "g6e": "L40S", "p3": "V100-16GB", "p3dn": "V100-32GB",
    "p4d": "A100-40GB", "p4de": "A100-80GB", "p5": "H100", "p5e": "H200", "p5en": "H200", "p6-b200": "B200",
    "g2-standard": "L4", "a2-highgpu": "A100-40GB", "a2-ultragpu": "A100-80GB",
    "a3-highgpu": "H100", "a3-megagpu": "H100", "a3-ultragpu": "H200",
}  # fmt: skip


def _plain(name: str) -> str:
    """`NVIDIA A100-SXM4-80GB` and `a100 80gb` are the same card; so are `g6.xlarge` and `g6`."""
    words = r"nvidia|geforce|tesla|ampere|hopper|blackwell|tensor|core|gpu|sxm\d?|hbm\w*"
    words += "|generation|workstation|server|edition"
    return re.sub(r"[^a-z0-9]", "", re.sub(rf"\b({words})\b", " ", name.lower().split(".")[0]))


_LEAST = 0.9  # of the memory on the box is what torch reports

_BY_NAME = {_plain(card.name): card for card in _CARDS}
_BY_NAME |= {_plain(alias): _BY_NAME[_plain(name)] for alias, name in _ALIASES.items()}
_BY_NAME |= {
    key.removeprefix("rtx"): card for key, card in list(_BY_NAME.items()) if re.fullmatch(r"rtx\d.*", key)
}


def names() -> list[str]:
    """The cards, by their first names."""
    return [card.name for card in _CARDS]


def card_of(name: str) -> Card:
    """The card of this name, however it is spelled. Raises SetupError, naming what comes close."""
    typed = re.sub(r"^([a-z]\d-[a-z]+)-\d+g?$", r"\1", name.strip(), flags=re.IGNORECASE)  # a2-highgpu-1g
    plain = _plain(typed)
    found = _BY_NAME.get(plain) or _BY_NAME.get(f"{plain}gb")
    if found is None and (sized := re.fullmatch(r"(.+?)[\s-]*\b(\d+)\s*(g|gb|gib)?", typed.lower())):
        found = _BY_NAME.get(_plain(sized[1]))
        if found and not _LEAST * int(sized[2]) <= found.memory / GIB <= int(sized[2]):
            found = None  # a card of this name with another memory is another card
    if found:
        return found
    close = [_BY_NAME[key].name for key in get_close_matches(plain, list(_BY_NAME), n=3, cutoff=0.5)]
    guess = f"; did you mean {', '.join(dict.fromkeys(close))}?" if close else ""
    raise SetupError(
        f"there is no card named {name!r} here{guess}",
        where="--gpu",
        fix=f"one of {', '.join(names())}; for another card, give one of the same kind and train.memory: GIB",
    )
