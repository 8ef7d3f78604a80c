"""Does llama.cpp turn a head by the same angles as transformers, as far as the file says that it reaches?

Proof rows are short, and Llama 3.1's scaling is made for positions far behind them: within a few hundred tokens a wrong
factor moves logits by less than rounding does. So the angles themselves are compared: those of the file's keys and
tensors, by llama.cpp's formulas (ggml: rope_yarn; src/llama-model.cpp), and those of transformers' own module.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from tunesmith.base import Base
from tunesmith.export.gguf.architecture import read_architecture
from tunesmith.export.gguf.library import require_gguf
from tunesmith.export.gguf.tensors import ROPE_FACTORS
from tunesmith.export.record import proof_prefix
from tunesmith.generate.llama_cpp.file import GgufFile, read_gguf
from tunesmith.proof import Proof

LIMIT = 1e-4  # relative; both sides compute in fp32
_FAST, _SLOW = 32.0, 1.0  # llama.cpp's own beta_fast and beta_slow


def gguf_positions_equal(name: str, path: Path, base: Base) -> Proof:
    """The file `path` against its base's config.json: the angle of each pair, and how far the file says it reaches."""
    plain = {key: value for key, value in base.config.items() if key != "quantization_config"}
    config = read_architecture(plain, base.folder / "config.json").config
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    wanted = type(model.get_submodule(model.base_model_prefix).rotary_emb)(config).inv_freq.float()
    file, proof = read_gguf(path), f"{proof_prefix(name)}positions_equal"
    reach, most = file.size("context_length"), _reach(config)
    if reach > most:
        detail = "positions that the file speaks of; the limit is up to where llama.cpp computes as transformers does"
        return Proof(proof, False, reach, most, detail)
    found = _angles(file, path)
    same = found.shape == wanted.shape
    figure = float(((found - wanted).abs() / wanted).max()) if same else float("inf")
    detail = (
        f"largest relative difference of the angles by which llama.cpp and transformers turn a head's "
        f"{len(wanted)} pairs from one position to the next, by the file's keys; {reach:,} positions"
    )
    return Proof(proof, figure <= LIMIT, figure, LIMIT, detail)


def _angles(file: GgufFile, path: Path) -> Tensor:
    """fp32 [head_dim / 2]: the angle a position of each pair."""
    meta, arch = file.metadata, file.metadata["general.architecture"]
    dim = int(meta.get(f"{arch}.rope.dimension_count", meta[f"{arch}.attention.key_length"]))
    base = float(meta.get(f"{arch}.rope.freq_base", 10000.0))
    plain = base ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    if ROPE_FACTORS in file.tensors:
        stored = next(one for one in require_gguf().GGUFReader(path).tensors if one.name == ROPE_FACTORS)
        plain = plain / torch.tensor(stored.data, dtype=torch.float64).flatten()
    kind = meta.get(f"{arch}.rope.scaling.type", "none")
    factor = float(meta.get(f"{arch}.rope.scaling.factor", 1.0))
    if kind == "linear":
        plain = plain / factor
    elif kind == "yarn":
        old = float(meta[f"{arch}.rope.scaling.original_context_length"])
        low, high = (
            dim * math.log(old / (float(meta.get(f"{arch}.rope.scaling.{key}", beta)) * 2 * math.pi))
            / (2 * math.log(base))
            for key, beta in (("yarn_beta_fast", _FAST), ("yarn_beta_slow", _SLOW))
        )  # fmt: skip
        low, high = max(0.0, math.floor(low)), min(dim - 1.0, math.ceil(high))
        kept = 1 - ((torch.arange(dim // 2) - low) / max(0.001, high - low)).clamp(0, 1)
        plain = plain * (kept + (1 - kept) / factor)
    return plain.float()


def _reach(config: object) -> int:
    """Positions up to which a model that looks at all earlier tokens computes the same."""
    longest = int(getattr(config, "max_position_embeddings"))  # noqa: B009
    window = getattr(config, "sliding_window", None)
    slides = "sliding_attention" in (getattr(config, "layer_types", None) or ["sliding_attention"])
    return min(longest, int(window)) if window and slides else longest
