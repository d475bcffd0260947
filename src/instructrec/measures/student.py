"""Student's t: tail areas and quantiles, by the incomplete beta function's continued fraction (DLMF 8.17.22).

Degrees of freedom may be fractions, as Satterthwaite's are.
"""

from __future__ import annotations

import math
from functools import lru_cache

STEPS = 500
TINY = 1e-300


def two_sided(t: float, df: float) -> float:
    """Chance of a value at least as far from 0 as `t`, either way, with `df` degrees of freedom.

    Raises ValueError where df is not above 0.
    """
    if not df > 0:
        raise ValueError(f"degrees of freedom: want more than 0 (got {df})")
    if math.isinf(t):
        return 0.0
    return _beta(df / (df + t * t), df / 2, 0.5)


@lru_cache(maxsize=4096)
def quantile(p: float, df: float) -> float:
    """The value that a t with `df` degrees of freedom stays below with probability `p`, 0 < p < 1."""
    if not 0 < p < 1:
        raise ValueError(f"probability: want one between 0 and 1 (got {p})")
    if p < 0.5:
        return -quantile(1 - p, df)
    tail, low, high = 2 * (1 - p), 0.0, 1.0
    while two_sided(high, df) > tail:
        low, high = high, 2 * high
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if two_sided(middle, df) > tail else (low, middle)
        if high - low <= 1e-12 * high:
            break
    return (low + high) / 2


def _beta(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function I_x(a, b)."""
    if x <= 0 or x >= 1:
        return 0.0 if x <= 0 else 1.0
    if x > (a + 1) / (a + b + 2):  # the fraction is quick on this side only
        return 1.0 - _beta(1 - x, b, a)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    # Lentz's method
    c, d = 1.0, 1.0 / _kept(1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, STEPS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for part in (even, odd):
            d = 1.0 / _kept(1 + part * d)
            c = _kept(1 + part / c)
            value *= c * d
        if abs(c * d - 1) < 1e-14:
            break
    return front * value / a


def _kept(number: float) -> float:
    return number if abs(number) > TINY else TINY
