"""Forecasts corrected by how earlier ones turned out, so that a stated share of them comes true.

Conformal prediction, online: each bound is moved after every outcome, a little inwards if the outcome was on its right
side and much outwards if not, in proportions such that in the long run the stated share is on the wrong side, however
the farm changes (adaptive conformal inference: Gibbs and Candes, NeurIPS 2021; in the form of quantile tracking:
Angelopoulos, Candes and Tibshirani, NeurIPS 2023). A bound is moved by a factor on the time to go, so that what is far
away moves more.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import exp

from cloudfarm.domain.lease import ExpectedStart

Correction = tuple[float, float, float]
"""Of the earliest, the expected and the latest start: the logarithms of factors on the time to go."""
Corrections = Mapping[str, Correction]
"""By what the forecast stands on."""

NONE: Correction = (0.0, 0.0, 0.0)
FIRST: Correction = (-0.2, 0.0, 0.3)
"""Before anything has been learned: about what simulations came to."""
FIRST_WIDE: Correction = (-0.4, 0.1, 0.7)
"""Likewise, for what needs most of a host: smaller leases pass it, and more of them the longer it waits."""
FIRST_DUE: Correction = (0.0, 0.0, 0.1)
"""Likewise, where others are being stopped at a known time: what is left is the time that takes."""
WIDE = ", wide"
"""The end of a basis, if the lease needs most of a host."""
DUE = "due"
"""What a forecast stands on if others are making room for the lease."""
MISSED = 0.1
"""The share of starts that may be earlier than the earliest, and likewise later than the latest."""
STEP = 0.15
"""How fast is learned: larger follows a change sooner and wavers more."""
SOON_MS = 60_000
"""Added to the time to go before a factor is applied: what starts at once can be late by seconds, too."""
SECOND_MS = 1000


@dataclass(frozen=True, slots=True)
class Guess:
    """When a lease may start, in milliseconds from now, before correction."""

    basis: str
    """What it stands on; guesses of one kind are corrected together."""
    earliest: float
    expected: float
    latest: float
    by_limits: float
    """When it starts if everything runs to its limit."""
    is_bound: bool = False
    """Whether that bounds what is told: where nothing that comes later is likely to pass."""


def correction(corrections: Corrections, basis: str) -> Correction:
    """Return the correction of forecasts of one kind."""
    if basis in corrections:
        return corrections[basis]
    if basis.startswith(DUE):
        return FIRST_DUE
    return FIRST_WIDE if basis.endswith(WIDE) else FIRST


def corrected(guess: Guess, by: Correction, now_ms: int) -> ExpectedStart:
    """Return a guess corrected by experience, in whole seconds (rounded outwards), and never before now."""
    low, middle, high = (
        _stretched(each, factor)
        for each, factor in zip((guess.earliest, guess.expected, guess.latest), by, strict=True)
    )
    if guess.expected == 0:
        middle = 0.0  # nothing is in its way: it may be late, but nobody should count on that
    if guess.is_bound:
        bound = max(guess.latest, guess.by_limits)
        middle, high = min(middle, bound), min(high, bound)
    expected = now_ms + round(middle)
    return ExpectedStart(
        guess.basis,
        earliest_ms=max(now_ms, min(expected, now_ms + int(low)) // SECOND_MS * SECOND_MS),
        expected_ms=expected,
        latest_ms=-(-max(expected, now_ms + round(high)) // SECOND_MS) * SECOND_MS,
    )


def learned(
    corrections: Corrections, told: ExpectedStart, started_ms: int, weight: float = 1.0
) -> Corrections:
    """Return the corrections after one more lease has started of which a forecast had been told."""
    low, middle, high = correction(corrections, told.basis)
    step = STEP * weight
    is_later = (started_ms > told.expected_ms) - (started_ms < told.expected_ms)
    return {
        **corrections,
        told.basis: (
            low + step * (MISSED - (started_ms < told.earliest_ms)),
            middle + step * is_later / 2,
            high + step * ((started_ms > told.latest_ms) - MISSED),
        ),
    }


def _stretched(to_go: float, factor: float) -> float:
    return max(0.0, (to_go + SOON_MS) * exp(factor) - SOON_MS)
