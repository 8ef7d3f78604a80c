"""Near-duplicate rows: texts whose word 3-grams are mostly the same."""

from __future__ import annotations

from tunesmith.data.minhash import HASHES, signatures, similarity
from tunesmith.data.shingles import jaccard, shingles

__all__ = ["HASHES", "jaccard", "shingles", "signatures", "similarity"]
