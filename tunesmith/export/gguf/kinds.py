"""What each of llama.cpp's quantised kinds is made of, to be checked in a finished file.

A kind is a mixture: most matrices in its own type, some in wider ones (llama.cpp: src/llama-quant.cpp). Where a row's
length is no multiple of a type's block, llama.cpp takes another type; such a file is not what its name says.
"""

from __future__ import annotations

from typing import NamedTuple

BLOCK = 256  # values of a K-quant's super-block; every kind here uses one of them somewhere


class Kind(NamedTuple):
    """llama.h's number (llama_ftype), the type of most matrices, and the wider ones of the others."""

    number: int
    own: str
    wider: frozenset[str]


def _kind(number: int, own: str, *wider: str) -> Kind:
    return Kind(number, own, frozenset(wider))


QUANTISED = {
    "Q2_K": _kind(10, "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
    "Q3_K_S": _kind(11, "Q3_K", "Q5_K", "Q6_K"),
    "Q3_K_M": _kind(12, "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
    "Q3_K_L": _kind(13, "Q3_K", "Q5_K", "Q6_K"),
    "Q4_K_S": _kind(14, "Q4_K", "Q5_K", "Q6_K"),
    "Q4_K_M": _kind(15, "Q4_K", "Q5_K", "Q6_K"),
    "Q5_K_S": _kind(16, "Q5_K", "Q6_K"),
    "Q5_K_M": _kind(17, "Q5_K", "Q6_K"),
    "Q6_K": _kind(18, "Q6_K"),
    "IQ4_NL": _kind(25, "IQ4_NL", "Q5_K", "Q6_K"),
    "IQ4_XS": _kind(30, "IQ4_XS", "Q5_K", "Q6_K"),
}
