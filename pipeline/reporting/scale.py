"""Where a value lies on an axis: linear, logarithmic, or one place for each of a few values."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.sweep.progress import format_value
from pipeline.sweep.space import Domain

_STEPS = (1, 2, 2.5, 5, 10)
_N_TICKS = 5


@dataclass(frozen=True)
class Scale:
    """An axis from 0 to 1; ``places`` are the values that have one each, empty on a number axis."""

    low: float = 0.0
    high: float = 1.0
    is_log: bool = False
    places: tuple[str, ...] = ()

    def position(self, value: Any) -> float:
        """Where ``value`` lies: 0 at the lower end, 1 at the upper; beyond them outside."""
        if self.places:
            return (self.places.index(_key(value)) + 0.5) / len(self.places)
        low, high, here = (self._straight(each) for each in (self.low, self.high, float(value)))
        return (here - low) / (high - low)

    def ticks(self) -> list[tuple[float, str]]:
        """A few positions with what stands beside them, from the lower end on."""
        if self.places:
            labels = (str(json.loads(place)) for place in self.places)
            return [((n + 0.5) / len(self.places), label) for n, label in enumerate(labels)]
        values = self._powers() if self.is_log else self._round_values()
        return [(self.position(value), _label(value)) for value in values]

    def _straight(self, value: float) -> float:
        return math.log10(value) if self.is_log else value

    def _round_values(self) -> list[float]:
        rough = (self.high - self.low) / _N_TICKS
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * each for each in _STEPS if power * each >= rough * (1 - 1e-9))
        first, last = math.ceil(self.low / step - 1e-6), math.floor(self.high / step + 1e-6)
        return [round(number * step, 12) for number in range(first, last + 1)]

    def _powers(self) -> list[float]:
        """Powers of ten, or what lies between where there is but one; the ends if there is none."""
        low, high = math.log10(self.low), math.log10(self.high)
        exponents = range(math.floor(low), math.ceil(high) + 1)
        for factors in ((1,), (1, 3), (1, 2, 5)):
            values = [factor * 10.0**exponent for exponent in exponents for factor in factors]
            inside = [v for v in values if self.low * 0.999 <= v <= self.high * 1.001]
            if len(inside) > 2:
                return inside
        return [self.low, self.high]


def scale_for(values: Sequence[Any], domain: Domain | None = None) -> Scale:
    """The axis on which all ``values`` lie, and all that ``domain`` could have given.

    Numbers lie on a number axis, unless the domain is a choice; there they have a place each.
    """
    if domain is not None and domain.choice is None:
        return spanning([*domain.extremes, *values], is_log=domain.log_uniform is not None)
    everything = [*(domain.choice or [] if domain else []), *values]
    if domain is None and all(type(value) in (int, float) for value in values):
        return spanning(everything)
    return Scale(places=tuple(dict.fromkeys(map(_key, everything))))


def spanning(values: Iterable[float], *, is_log: bool = False) -> Scale:
    """The number axis from the lowest of ``values`` to the highest; wide enough to be one."""
    found = sorted(values)
    low, high = found[0], found[-1]
    if math.isclose(low, high, rel_tol=1e-9, abs_tol=1e-12):
        low, high = (low / 2, high * 2) if is_log else (low - 0.5, high + 0.5)
    return Scale(float(low), float(high), is_log=is_log)


def _key(value: Any) -> str:
    """Equal for equal values of plain types; a text differs from what looks like it."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _label(value: float) -> str:
    if value and not 1e-3 <= abs(value) < 1e5:
        mantissa, exponent = f"{value:.0e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    return format_value(value) if value != round(value) else f"{value:.0f}"
