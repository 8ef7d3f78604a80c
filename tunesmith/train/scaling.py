"""Loss scaling for float16: gradients that would round to zero are lifted out of the way, and brought back after.

A step whose gradients overflow is done again at half the factor, so no row is lost. Micikevicius et al., ICLR 2018.
"""

from __future__ import annotations

from tunesmith.train.state import State

FIRST, LOWEST, HIGHEST, DOUBLE_AFTER = 2.0**16, 1.0, 2.0**24, 2000


def start(state: State, dtype: str) -> None:
    """The factor of a fresh run."""
    state.loss_scale = FIRST if dtype == "float16" else 1.0


def overflowed(state: State) -> bool:
    """Halves the factor; False when it can't go lower (then the numbers themselves are at fault)."""
    if state.loss_scale <= LOWEST:
        return False
    state.loss_scale, state.steps_at_scale = state.loss_scale / 2, 0
    return True


def went_well(state: State) -> None:
    """Doubles the factor after enough good steps."""
    state.steps_at_scale += 1
    if state.steps_at_scale >= DOUBLE_AFTER and state.loss_scale < HIGHEST:
        state.loss_scale, state.steps_at_scale = state.loss_scale * 2, 0
