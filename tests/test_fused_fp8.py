"""fp8 steps of the fused engine: near to the exact ones, equal at every level of memory, proved; and their mutants."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_engine_exact import ALL, ONE_BY_ONE, ROWS, batch, total
from test_engine_exact import recipe as plain_recipe
from test_fused_engine import _one
from tiny_models import KINDS
from tiny_project import make_project, prepare_run
from torch import Tensor, nn

from tunesmith.base import resolve
from tunesmith.engine import fused_fits, fused_fp8
from tunesmith.engine.fused import FusedEngine
from tunesmith.engine.fused_fp8 import Fp8Weights, product
from tunesmith.engine.fused_memory import LEVELS, FusedShape
from tunesmith.engine.fused_stream import Stream
from tunesmith.engine.fused_weights import Projection
from tunesmith.engine.plan import MicroBatchPlan
from tunesmith.errors import RecipeError, SetupError
from tunesmith.evaluate.report import _method
from tunesmith.kernels.plain import FP8_LARGEST, quantise_rows
from tunesmith.model.lora import adapters, linears
from tunesmith.model.weights import Dense
from tunesmith.recipe import Recipe
from tunesmith.recipe_file import load_recipe
from tunesmith.rows import Rows
from tunesmith.run import Run
from tunesmith.train import build, proofs


def recipe(*, fp8: bool = True, dropout: float = 0.1, **train: Any) -> Recipe:
    found = plain_recipe(dropout=dropout, **train)
    model = found.model.model_copy(update={"dtype": "bfloat16"})
    return found.model_copy(update={"model": model, "train": found.train.model_copy(update={"fp8": fp8})})


def engine(
    kind: str = "llama",
    *,
    fp8: bool = True,
    dropout: float = 0.1,
    dtype: torch.dtype = torch.bfloat16,
    quantize: str = "none",
) -> FusedEngine:
    made: FusedEngine = _one(FusedEngine, kind, dtype, recipe(fp8=fp8, dropout=dropout), quantize, {})
    return made


def cosine(a: Tensor, b: Tensor) -> float:
    return torch.cosine_similarity(a.flatten().double(), b.flatten().double(), dim=0).item()


# ---- rows of numbers in 8 bits


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float32], ids=str)
def test_rows_come_back_within_a_sixteenth(kind: torch.dtype) -> None:
    x = torch.randn(9, 80, generator=torch.Generator().manual_seed(0)).to(kind)
    x[2], x[3], x[4] = x[2] * 1e-12, x[3] * 1e12, 0
    small, scales = quantise_rows(x)
    again = small.float() * scales
    most = x.float().abs().amax(1, keepdim=True)
    assert torch.equal(small.float().abs().amax(1)[[0, 2, 3]], torch.full((3,), FP8_LARGEST))
    # half a step of 3 bits, or half of e4m3's smallest number
    assert bool(((again - x.float()).abs() <= x.float().abs() / 16 + most / FP8_LARGEST * 2**-10).all())
    assert not small[4].float().any()
    for strange in (float("nan"), float("inf")):
        x[5, 7] = strange
        small, scales = quantise_rows(x)
        assert bool((small[5].float() * scales[5]).isnan().any())


def test_products_are_those_of_the_numbers() -> None:
    """Of the 8-bit numbers, exactly; and so near to the true ones as their rounding is."""
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(n, 64, generator=generator).bfloat16() for n in (5, 48))
    w[3] *= 50  # a channel of its own size
    copies = Fp8Weights(w, _kernels())
    whole = torch.empty(5, 64, dtype=torch.bfloat16)
    y = copies.forward(x, whole[:, :48])
    (x8, sx), (w8, sw) = quantise_rows(x), copies.forward_copy
    told = (x8.double() * sx) @ (w8.double() * sw).t()
    assert y.data_ptr() == whole.data_ptr() and ((y - told).abs() <= told.abs() / 200 + 1e-3).all()
    true = x.double() @ w.double().t()
    assert (y - true).norm() < 0.05 * true.norm()
    d = torch.randn(5, 48, generator=generator).bfloat16()
    d[1] *= 1e-6  # a token of its own size
    dx, true = copies.input_gradient(d), d.double() @ w.double()
    assert all((dx[t] - true[t]).norm() < 0.06 * true[t].norm() for t in range(5))


def test_torch_s_own_product_is_ours() -> None:
    """What a card computes has the meaning of what a CPU computes here."""
    x, w = quantise_rows(torch.randn(64, 128)), quantise_rows(torch.randn(32, 128))
    told = product(x, w, torch.empty(64, 32, dtype=torch.bfloat16))
    found = torch._scaled_mm(x[0], w[0].t(), x[1], w[1].t(), out_dtype=torch.bfloat16)
    assert (found.float() - told.float()).norm() < 4e-3 * told.float().norm()


def _kernels() -> Any:
    from tunesmith.kernels.plain import PLAIN

    return PLAIN


# ---- whole steps


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_steps_are_near_to_the_exact_ones(kind: str, dropout: float) -> None:
    told = total(engine(kind, fp8=False, dropout=dropout, dtype=torch.float32), ALL)
    fused = engine(kind, dropout=dropout)
    found = total(fused, ALL)
    fused.fp8 = False
    exact = total(fused, ALL)
    assert abs(found[0] - told[0]) < 0.01 * told[0]
    assert cosine(exact[1], told[1]) > 0.999 > cosine(found[1], told[1]) > 0.97
    assert 0.95 < (found[1].norm() / told[1].norm()).item() < 1.05


@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_copies_are_made_of_quantised_weights(quantize: str) -> None:
    fused = engine("qwen2", quantize=quantize)
    found = total(fused, ALL)
    fused.fp8 = False
    told = total(fused, ALL)
    assert 0.97 < cosine(found[1], told[1]) < 0.9999


def test_bits_are_those_of_all_products() -> None:
    """Every frozen product of a step is fp8's: none reads the exact weights."""
    fused = engine()
    told = total(fused, ALL)
    for layer in fused.layers:
        for projection in layer.projections:
            assert projection._image is not None
            projection._image[: projection.N, : projection.K] = torch.nan
    found = total(fused, ALL)
    assert found[0] == told[0] and torch.equal(found[1], told[1])


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_recomputing_changes_no_bit(kind: str, dropout: float) -> None:
    fused = engine(kind, dropout=dropout)
    told = total(fused, ALL)
    for levels in [(level, level) for level in LEVELS] + [("full", "none")]:
        fused.use(MicroBatchPlan(tokens=100, rows=None, recompute=levels))
        found = total(fused, ALL)
        assert told[0] == found[0] and torch.equal(told[1], found[1]), levels


def test_rows_alone_and_together() -> None:
    """A scale a token knows nothing of other rows; what is left is rounding."""
    fused = engine()
    found, told = total(fused, ONE_BY_ONE), total(fused, ALL)
    assert abs(found[0] - told[0]) < 5e-3 * told[0] and cosine(found[1], told[1]) > 0.99


def test_everything_but_steps_is_exact() -> None:
    fused, usual = engine(), engine(fp8=False)
    whole = batch(range(ROWS))
    assert torch.equal(fused.logits(whole), usual.logits(whole))
    assert torch.equal(fused.row_losses(whole)[0], usual.row_losses(whole)[0])
    before = total(fused, ALL)[0]
    fused.fp8 = False
    assert before != total(fused, ALL)[0] == total(usual, ALL)[0]


def test_the_plan_counts_the_copies() -> None:
    fused = engine()
    copies = [p._fp8 for layer in fused.layers for p in layer.projections]
    held = sum(t.numel() * t.element_size() for c in copies if c for t in (*c.forward_copy, *c.backward_copy))
    config = fused.model.config.to_dict()
    with_fp8, without = (FusedShape.of(config, recipe(fp8=fp8)) for fp8 in (True, False))
    assert with_fp8.always(0) - without.always(0) == held == with_fp8.fp8_bytes
    assert with_fp8.per_token(("none",) * 2)[1] > without.per_token(("none",) * 2)[1]


# ---- what can't be had


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Run, Rows]:
    folder = tmp_path_factory.mktemp("fp8")
    path = make_project(folder, train={"engine": "fused", "fp8": True})
    found, run = prepare_run(path, folder / "runs")
    return found, run, Rows.open(run.data, "train")


def _with(found: Recipe, **train: Any) -> Recipe:
    return found.model_copy(update={"train": found.train.model_copy(update=train)})


def test_it_is_refused_by_name(
    made: tuple[Recipe, Run, Rows], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = made[0]
    model = build.build_model(found, resolve(found.model), torch.device("cpu"))
    chosen = build.choose_engine(found, model)
    assert isinstance(chosen, FusedEngine) and chosen.fp8 and "inexact" in capsys.readouterr().err
    for wanted, why in [
        (_with(found, engine="auto"), "made for CUDA"),
        (_with(found, packing=False), "padded rectangle"),
    ]:
        with pytest.raises(SetupError, match=f"fp8 can't be had here: .*{why}") as caught:
            build.choose_engine(wanted, model)
        assert caught.value.where == "train.fp8" and caught.value.fix == "set train.fp8: false"
    monkeypatch.setattr(fused_fits, "SIZES", 48)
    with pytest.raises(SetupError, match=r"layers\.0\.self_attn\.q_proj is \d+ -> \d+; fp8 needs multiples"):
        build.choose_engine(found, model)


@pytest.mark.parametrize(
    "change, why",
    [
        ({"model": {"dtype": "float32"}}, "needs model.dtype: bfloat16"),
        ({"tune": {"method": "full"}}, "only with tune.method: lora"),
        ({"train": {"engine": "reference"}}, "only with train.engine: fused or auto"),
    ],
    ids=str,
)
def test_recipes_that_can_t_have_it(tmp_path: Path, change: dict[str, Any], why: str) -> None:
    path = tmp_path / "recipe.yaml"
    sections: dict[str, Any] = {"train": {"fp8": True}, "model": {"base": "starter", "dtype": "bfloat16"}}
    for name, values in change.items():
        sections[name] = sections.get(name, {}) | values
    path.write_text(json.dumps({"name": "a", "data": {"train": "starter"}} | sections, indent=1))
    with pytest.raises(RecipeError, match=rf"line \d+  train\.fp8: {why}"):
        load_recipe(path)


def test_the_report_says_so() -> None:
    assert _method(recipe()).endswith("on all linears; trained with fp8 products, which are inexact")
    assert "fp8" not in _method(recipe(fp8=False))


def test_an_old_card_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnCard:
        device = torch.device("cuda")

    class Model(nn.Module):
        def parameters(self, recurse: bool = True) -> Any:
            return iter([OnCard()])

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    why = fused_fits.why_no_fp8(Model())  # type: ignore[arg-type]
    assert why == "the card has compute capability 8.6; fp8 begins with 8.9"


# ---- the proofs, and mutants that they have to catch


def _copies(trainer: FusedEngine, group: int) -> list[Fp8Weights]:
    return [layer.projections[group]._fp8 for layer in trainer.layers]  # type: ignore[misc]


def _swap_backward(trainer: FusedEngine) -> None:
    """The transposed copies of two layers' feed-forward, exchanged."""
    one, other, *_ = _copies(trainer, 3)
    one.backward_copy, other.backward_copy = other.backward_copy, one.backward_copy


def _swap_forward(trainer: FusedEngine) -> None:
    one, other, *_ = _copies(trainer, 0)
    one.forward_copy, other.forward_copy = other.forward_copy, one.forward_copy


def _scale_of_the_wrong_axis(trainer: FusedEngine) -> None:
    """A square weight, whose two copies have equally many scales."""
    for copies in _copies(trainer, 1):
        copies.forward_copy = copies.forward_copy[0], copies.backward_copy[1]


def _no_adapter(trainer: FusedEngine) -> None:
    """The way back of one linear without its adapter's share."""

    class Forgetful(Projection):
        def input_gradient(self, d_TN: Tensor, stream: Stream) -> Tensor:
            if not stream.fp8:
                return super().input_gradient(d_TN, stream)
            assert self._fp8 is not None
            return self._fp8.input_gradient(d_TN[:, : self.N])

    trainer.layers[1].down.__class__ = Forgetful


def _one_scale_for_all_tokens(trainer: FusedEngine) -> None:
    kernels = trainer.kernels

    class Forgetful(Fp8Weights):
        def input_gradient(self, d_TN: Tensor) -> Tensor:
            small, scales = kernels.quantise_rows(d_TN)
            out = d_TN.new_empty(len(d_TN), self.backward_copy[0].shape[0])
            return product((small, torch.full_like(scales, 1e-3)), self.backward_copy, out)

    for group in range(4):
        for copies in _copies(trainer, group):
            copies.__class__ = Forgetful


Spoil = Callable[[FusedEngine], None]
MUTANTS: list[Spoil] = [
    _swap_backward,
    _swap_forward,
    _scale_of_the_wrong_axis,
    _one_scale_for_all_tokens,
    _no_adapter,
]


def _failed(found: Recipe, rows: Rows, spoil: Spoil | None) -> set[str]:
    model = build.build_model(found, resolve(found.model), torch.device("cpu"))
    torch.manual_seed(0)
    for name in linears(model):  # channels of different sizes, as in a model that has learned
        weight = model.get_submodule(name).weight
        assert isinstance(weight, Dense)
        weight.data.mul_(torch.randn(len(weight.data), 1).exp())
    trainer = FusedEngine(model, found)
    for adapter in adapters(trainer.model):
        adapter.B.data.normal_(0, 0.3)
    if spoil is not None:
        spoil(trainer)
    sample = proofs.sample(rows, range(len(rows)), 16)
    both = [proofs.fp8_matches_bf16(trainer, rows, sample), proofs.fp8_products(trainer)]
    print([proof.line() for proof in both])
    assert trainer.fp8 and not trainer.parameters.grad.any()
    return {proof.name for proof in both if not proof.passed}


def test_sound_steps_pass(made: tuple[Recipe, Run, Rows]) -> None:
    assert not _failed(made[0], made[2], None)


@pytest.mark.parametrize("spoil", MUTANTS, ids=lambda spoil: spoil.__name__)
def test_mutants_fail(made: tuple[Recipe, Run, Rows], spoil: Spoil) -> None:
    assert "fp8_products" in _failed(made[0], made[2], spoil)


def test_a_run_in_fp8_is_proved(made: tuple[Recipe, Run, Rows], tmp_path: Path) -> None:
    """The stage from end to end: proofs at the start and the end, and a spoiled product stops it."""
    from tunesmith.errors import ProofFailed
    from tunesmith.train.train import train

    found, run, _ = made
    train(_with(found, max_steps=3, evaluate_every=3, save_every=3), run)
    names = {proof["name"] for proof in run.proofs() if proof["passed"]}
    assert {"fp8_matches_bf16", "fp8_products", "adapter_reloads"} <= names
    other = prepare_run(make_project(tmp_path, train={"engine": "fused", "fp8": True}), tmp_path / "runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused_fp8, "product", _of_nobody)
        with pytest.raises(ProofFailed, match="fp8_"):
            train(*other)


def _of_nobody(x: Any, w: Any, out: Tensor) -> Tensor:
    """Without the weights' scales."""
    return product(x, (w[0], torch.full_like(w[1], 1e-3)), out)
