"""Statistics of paired runs: what a difference is, how sure, and when it is not resolved."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

__all__ = ["CONFIDENCE", "Difference", "Summary", "difference", "holm", "summary_of"]

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Summary:
    """Mean, sample standard deviation and a t interval for the mean; NaN for one run."""

    num_runs: int
    mean: float
    spread: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """Mean paired difference, its t interval and the paired t test's p; NaN for one pair.

    Args:
        num_pairs: Seeds that both arms have.
        mean: Of the differences.
        spread: Their sample standard deviation.
        low: Lower end of the interval.
        high: Upper end.
        p: Two-sided.
    """

    num_pairs: int
    mean: float
    spread: float
    low: float
    high: float
    p: float

    @property
    def is_resolved(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0

    @property
    def verdict(self) -> str:
        """In a word: above, below, or unresolved."""
        if not self.is_resolved:
            return "unresolved"
        return "above" if self.mean > 0 else "below"


def summary_of(values: Sequence[float]) -> Summary:
    """Return what there is to say of one arm's runs.

    Raises:
        ValueError: If there is none, or a value is not finite: a failed run is not left out.
    """
    sample = _finite(values)
    if len(sample) == 1:
        return Summary(1, float(sample[0]), math.nan, math.nan, math.nan)
    mean, spread = float(sample.mean()), float(sample.std(ddof=1))
    margin = _margin(spread, len(sample))
    return Summary(len(sample), mean, spread, mean - margin, mean + margin)


def difference(mine: Mapping[int, float], other: Mapping[int, float]) -> Difference:
    """Return the paired difference of two arms, over the seeds that both have.

    Args:
        mine: A value a seed.
        other: Likewise.

    Raises:
        ValueError: If they have no seed in common, or a value is not finite.
    """
    seeds = sorted(set(mine) & set(other))
    if not seeds:
        raise ValueError(f"arms must have a seed in common, got {sorted(mine)} and {sorted(other)}")
    gaps = _finite([mine[seed] for seed in seeds]) - _finite([other[seed] for seed in seeds])
    mean = float(gaps.mean())
    if len(gaps) == 1:
        return Difference(1, mean, math.nan, math.nan, math.nan, math.nan)
    spread = float(gaps.std(ddof=1))
    if spread == 0:  # the test divides by it: no doubt, or no difference
        return Difference(len(gaps), mean, 0.0, mean, mean, 1.0 if mean == 0 else 0.0)
    margin = _margin(spread, len(gaps))
    p = float(stats.ttest_1samp(gaps, 0.0).pvalue)
    return Difference(len(gaps), mean, spread, mean - margin, mean + margin, p)


def holm(values: Sequence[float]) -> list[float]:
    """Return p values corrected for there being many, by Holm's step-down; NaN stays.

    Reference:
        Holm, *A Simple Sequentially Rejective Multiple Test Procedure*, 1979.
    """
    known = sorted((p, at) for at, p in enumerate(values) if not math.isnan(p))
    corrected = [math.nan] * len(values)
    largest = 0.0
    for rank, (p, at) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        corrected[at] = largest
    return corrected


def _finite(values: Sequence[float]) -> np.ndarray:
    sample = np.asarray(values, np.float64)
    if not len(sample) or not np.isfinite(sample).all():
        raise ValueError(f"values must be finite, and at least one, got {list(values)}.")
    return sample


def _margin(spread: float, count: int) -> float:
    quantile = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1))
    return quantile * spread / math.sqrt(count)
