"""Positions of values on an axis: linear, logarithmic, or one band for each category."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

Tick = tuple[float, str]  # position and label

_STEPS = (1, 2, 2.5, 5, 10)  # between ticks, times a power of ten
_N_STEPS = 5  # about so many steps between the ticks of an axis
_MAX_POWERS = 9  # ticks of a logarithmic axis; beyond that some powers of ten have none
_DIGITS = 6  # of a label; more where neighbouring ticks would look alike


class Scale(Protocol):
    """An axis from 0, its lower end, to 1, its upper end."""

    def position(self, value: Any) -> float:
        """Position of a value; below 0 or above 1 if it lies outside the axis."""

    def ticks(self) -> list[Tick]:
        """A few positions with their labels, from the lower end upwards."""


@dataclass(frozen=True)
class LinearScale:
    """Equal differences have equal lengths."""

    low: float
    high: float
    is_whole: bool = False  # ticks at whole numbers alone

    def position(self, value: Any) -> float:
        """Position of a number."""
        return (float(value) - self.low) / (self.high - self.low)

    def ticks(self) -> list[Tick]:
        """Multiples of a round step."""
        step = _round_step(self.high - self.low)
        first, last = math.ceil(self.low / step - 1e-6), math.floor(self.high / step + 1e-6)
        largest = max(abs(self.low), abs(self.high))
        digits = max(_DIGITS, math.ceil(math.log10(largest / step)) + 2)
        values = [float(f"{number * step:.12g}") for number in range(first, last + 1)]
        values = [each for each in values if each.is_integer() or not self.is_whole]
        return [(self.position(value), _label(value, digits)) for value in values]


@dataclass(frozen=True)
class LogScale:
    """Equal factors have equal lengths; both ends are above 0."""

    low: float
    high: float

    def position(self, value: Any) -> float:
        """Position of a number above 0."""
        low, high, here = (math.log10(each) for each in (self.low, self.high, float(value)))
        return (here - low) / (high - low)

    def ticks(self) -> list[Tick]:
        """Powers of ten; numbers between them if there are fewer than three; else the ends."""
        low, high = math.log10(self.low), math.log10(self.high)
        every = math.ceil((high - low) / _MAX_POWERS)
        exponents = range(math.floor(low), math.ceil(high) + 1, every)
        for factors in ((1,), (1, 3), (1, 2, 5)):
            values = [factor * 10.0**exponent for exponent in exponents for factor in factors]
            inside = [v for v in values if self.low * 0.999 <= v <= self.high * 1.001]
            if len(inside) > 2:
                return [(self.position(value), _label(value)) for value in inside]
        return [(0.0, _label(float(f"{self.low:.3g}"))), (1.0, _label(float(f"{self.high:.3g}")))]


@dataclass(frozen=True)
class CategoricalScale:
    """One band of equal width for each category; ``categories`` are their values as JSON."""

    categories: tuple[str, ...]

    @property
    def band(self) -> float:
        """Width of a category's band, as a fraction of the axis."""
        return 1 / len(self.categories)

    def position(self, value: Any) -> float:
        """The middle of the band of ``value``, which must be one of the categories."""
        return (self.categories.index(_as_json(value)) + 0.5) * self.band

    def ticks(self) -> list[Tick]:
        """The middle of each band."""
        labels = (str(json.loads(category)) for category in self.categories)
        return [((number + 0.5) * self.band, label) for number, label in enumerate(labels)]


def linear_scale(
    values: Iterable[float], *, is_rounded: bool = False, is_whole: bool = False
) -> LinearScale:
    """The axis from the lowest of ``values`` to the highest; equal values lie in its middle.

    ``is_rounded`` extends it on both sides to the next tick. ``is_whole``: values are integers.

    Raises:
        ValueError: there are no values.
    """
    found = sorted(map(float, values))
    if not found:
        raise ValueError("an axis needs at least one value")
    low, high = found[0], found[-1]
    if math.isclose(low, high, rel_tol=1e-9, abs_tol=1e-12):
        margin = max(0.5, 1e-6 * abs(low))  # a large float would swallow a half
        low, high = low - margin, high + margin
    if is_rounded:
        step = _round_step(high - low)
        low, high = math.floor(low / step + 1e-6) * step, math.ceil(high / step - 1e-6) * step
    return LinearScale(low, high, is_whole)


def log_scale(values: Iterable[float]) -> LogScale:
    """The axis from the lowest of ``values`` to the highest; equal values lie in its middle.

    Raises:
        ValueError: there are no values, or one is not above 0.
    """
    found = sorted(map(float, values))
    if not found or found[0] <= 0:
        raise ValueError(f"a logarithmic axis needs values above 0, found {found[:1]}")
    low, high = found[0], found[-1]
    return LogScale(low / 2, high * 2) if math.isclose(low, high) else LogScale(low, high)


def categorical_scale(values: Iterable[Any]) -> CategoricalScale:
    """The axis with one band for each different value, in the order of their first appearance.

    Values are plain (JSON) values. The number 1, the text "1" and true are different.

    Raises:
        ValueError: there are no values.
    """
    categories = tuple(dict.fromkeys(map(_as_json, values)))
    if not categories:
        raise ValueError("an axis needs at least one category")
    return CategoricalScale(categories)


def _as_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _round_step(length: float) -> float:
    """The round number that divides an axis of that length into about ``_N_STEPS`` steps."""
    rough = length / _N_STEPS
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * each for each in _STEPS if power * each >= rough * (1 - 1e-9))


def _label(value: float, digits: int = _DIGITS) -> str:
    if value and not 1e-3 <= abs(value) < 1e5:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{value:.{digits}g}"
