"""Paths of boxes that move only as far as the face does."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


def taut_path(at: Values, low: Values, high: Values) -> Values:
    """The shortest path over the places ``at`` that stays between ``low`` and ``high``; its ends are free.

    So a string lies that is pulled tight inside a tube: level where it can be, else straight from bend to bend, and
    never late. All are float64 (n,), ``at`` ascending.
    """
    places, values = [0], [_first_value(low, high)]
    last = _first_value(low[::-1], high[::-1])
    low, high = np.append(low[:-1], last), np.append(high[:-1], last)
    while places[-1] < len(at) - 1:
        place, value = _next_bend(at, low, high, places[-1], values[-1])
        places.append(place)
        values.append(value)
    return np.interp(at, at[places], values)


def _first_value(low: Values, high: Values) -> float:
    """Where the path begins: level, up to where the tube leaves that height."""
    floor, ceiling = np.maximum.accumulate(low), np.minimum.accumulate(high)
    leaves = np.flatnonzero(floor > ceiling)
    if len(leaves) == 0:
        return float(floor[-1] + ceiling[-1]) / 2
    rises = low[leaves[0]] > ceiling[leaves[0] - 1]
    return float((ceiling if rises else floor)[leaves[0] - 1])


def _next_bend(at: Values, low: Values, high: Values, start: int, value: float) -> tuple[int, float]:
    """The place and the value to which the path goes straight from ``start``."""
    least, least_at, most, most_at = -np.inf, start, np.inf, start
    for place in range(start + 1, len(at)):
        step = at[place] - at[start]
        lower, upper = (low[place] - value) / step, (high[place] - value) / step
        if lower > most:
            return most_at, high[most_at]
        if upper < least:
            return least_at, low[least_at]
        if lower >= least:
            least, least_at = lower, place
        if upper <= most:
            most, most_at = upper, place
    return len(at) - 1, low[-1]


def round_bends(values: Values, sigma: float) -> Values:
    """``values`` (n,), one a frame, weighted with a Gaussian of ``sigma`` frames; straight lines stay as they are."""
    reach = min(int(3 * sigma + 0.5), len(values) - 1)
    if reach < 1:
        return values
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    padded = np.pad(values, reach, mode="reflect", reflect_type="odd")
    return np.convolve(padded, weights / weights.sum(), mode="valid")
