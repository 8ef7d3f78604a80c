"""Dropout is a counter: pinned bits, the right share, no correlation, the same under any batch shape."""

from __future__ import annotations

import hashlib

import pytest
import torch

from tunesmith.model.dropout import Dropout, Mask, feature_factors, keep_mask, token_keys

M64 = (1 << 64) - 1


def m(z: int) -> int:
    """The docstring's m in plain Python."""
    z = (z + 0x9E3779B97F4A7C15) & M64
    z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & M64
    z = ((z ^ z >> 27) * 0x94D049BB133111EB) & M64
    return z ^ z >> 31


def keeps(p: float, seed: int, step: int, row: int, position: int, module: str, feature: int) -> bool:
    """The docstring's rule in plain Python."""
    key = m(m(m(m(seed) + step) + row) + position) >> 32 | 1
    name = m(int.from_bytes(hashlib.sha256(module.encode()).digest()[:8], "little"))
    product = key * (m(name + feature) >> 32 | 1) & 0xFFFFFFFF
    signed = product - (1 << 32) if product >= 1 << 31 else product
    return signed >= round(p * 2**32) - 2**31


def mask(
    p: float = 0.1,
    *,
    seed: int = 0,
    step: int = 1,
    rows: torch.Tensor,
    module: str = "a",
    features: int = 64,
):
    """Mask of tokens 0, 1, 2, ... of one row each in `rows` (a row number per token)."""
    positions = torch.arange(len(rows))
    keys = token_keys(seed, step, rows, positions)
    return keep_mask(keys, feature_factors(module, features), Dropout(p).threshold)


def test_bits_are_pinned() -> None:
    keys = token_keys(7, 3, torch.tensor([0, 5, 123456789]), torch.tensor([0, 9, 2047]))
    assert keys.tolist() == [-334106477, 506169129, 394167677]
    assert feature_factors("model.layers.0.self_attn.q_proj", 3).tolist() == [
        1881584475,
        -2031456785,
        109179629,
    ]
    kept = keep_mask(
        keys,
        feature_factors("model.layers.0.self_attn.q_proj", 12),
        Dropout(0.5).threshold,
    )
    assert ["".join(str(int(bit)) for bit in row) for row in kept] == [
        "100000111000",
        "101000110101",
        "110000110111",
    ]


@pytest.mark.parametrize("p", [0.1, 0.5, 0.93])
def test_rule_equals_its_description(p: float) -> None:
    for seed, step in [(0, 0), (12345678901234567890, 7), (3, 10**7)]:
        keys = token_keys(seed, step, torch.tensor([4, 4, 399_999]), torch.tensor([0, 1, 131_071]))
        kept = keep_mask(keys, feature_factors("x.y", 40), Dropout(p).threshold)
        told = [
            [keeps(p, seed, step, r, t, "x.y", j) for j in range(40)]
            for r, t in [(4, 0), (4, 1), (399_999, 131_071)]
        ]
        assert kept.bool().tolist() == told


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5])
def test_share(p: float) -> None:
    kept = mask(p, rows=torch.zeros(4096, dtype=torch.int64), features=512).double()
    n = kept.numel()
    spread = (p * (1 - p) / n) ** 0.5
    assert abs(kept.mean().item() - (1 - p)) < 5 * spread
    by_token = kept.mean(1).var().item() / (
        p * (1 - p) / 512
    )  # 1 when features are independent within a token
    by_feature = kept.mean(0).var().item() / (p * (1 - p) / 4096)
    assert 0.85 < by_token < 1.15 and 0.7 < by_feature < 1.3


def test_no_correlation_between_rows_steps_modules_seeds_positions() -> None:
    zeros = torch.zeros(4096, dtype=torch.int64)
    first = mask(rows=zeros).double()
    others = {
        "row": mask(rows=zeros + 1),
        "step": mask(rows=zeros, step=2),
        "seed": mask(rows=zeros, seed=1),
        "module": mask(rows=zeros, module="b"),
        "position": first.roll(1, 0),
        "feature": first.roll(1, 1),
    }
    for name, other in others.items():
        pair = torch.stack([first.flatten(), other.double().flatten()])
        assert abs(torch.corrcoef(pair)[0, 1].item()) < 5 / first.numel() ** 0.5, name


def test_no_pair_of_features_is_correlated() -> None:
    kept = mask(0.1, rows=torch.zeros(65_536, dtype=torch.int64), features=256).double()
    correlations = torch.corrcoef(kept.T) - torch.eye(256)
    assert (
        correlations.abs().max().item() < 6 / 65_536**0.5
    )  # the largest of 32,640 normal draws is about 4.2
    assert abs(correlations.std().item() * 65_536**0.5 - 1) < 0.05


def test_batch_shape_changes_nothing() -> None:
    """Any subset of tokens, in any order, draws what it draws in the whole."""
    rows, positions = torch.randint(0, 50, (300,)), torch.randint(0, 2048, (300,))
    factors, threshold = feature_factors("a", 64), Dropout(0.3).threshold
    whole = keep_mask(token_keys(1, 2, rows, positions), factors, threshold)
    some = torch.randperm(300)[:77]
    assert torch.equal(
        keep_mask(token_keys(1, 2, rows[some], positions[some]), factors, threshold),
        whole[some],
    )


def test_draws_end_with_their_block() -> None:
    dropout, keys = Dropout(0.1), torch.ones(3, dtype=torch.int32)

    def fail() -> None:
        with dropout.draws(keys):
            assert dropout.keys is keys
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert dropout.keys is None
    never = Dropout(0.0)
    with never.draws(keys):
        assert never.keys is None  # p = 0 costs nothing


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dropping_is_multiplying_by_the_mask(dtype: torch.dtype) -> None:
    _require_product(torch.device("cpu"), dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_kernel_is_multiplying_by_the_mask(dtype: torch.dtype) -> None:
    _require_product(torch.device("cuda"), dtype)


def _require_product(device: torch.device, dtype: torch.dtype) -> None:
    tokens = torch.arange(333, device=device)
    mask = Mask(
        token_keys(1, 2, tokens, tokens), feature_factors("a", 1500).to(device), Dropout(0.3).threshold
    )
    x = torch.randn(333, 1500, device=device).to(dtype)
    told, before = x * mask.kept.bool(), x.clone()
    assert torch.equal(mask.drop(x), told) and torch.equal(x, before)
    column = torch.randn(333, 1600, device=device).to(dtype)[:, 50:1550]  # rows with a gap between them
    assert torch.equal(mask.drop(column), column * mask.kept.bool())
    assert torch.equal(mask.drop_(x), told) and torch.equal(x, told)


@pytest.mark.gpu
def test_cuda_gives_the_same_bits() -> None:
    rows, positions = torch.arange(1000) // 10, torch.arange(1000) % 10
    factors, threshold = feature_factors("a", 256), Dropout(0.1).threshold
    there = keep_mask(token_keys(1, 2, rows.cuda(), positions.cuda()), factors.cuda(), threshold)
    assert torch.equal(
        there.cpu(),
        keep_mask(token_keys(1, 2, rows, positions), factors, threshold).bool(),
    )
