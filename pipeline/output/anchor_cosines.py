"""Cosines between the anchors of different classes before learning and now, in ``results.json``.

Before learning means: of the frozen CLIP, in the form in which it is tested.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

N_BINS = 40  # of equal width over [-1, 1]; a value between two bins belongs to the upper one
N_CLOSEST = 10  # pairs before learning, and as many now

_Cosine = Annotated[float, Field(ge=-1.01, le=1.01)]  # with the rounding errors of float32
_Counts = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=N_BINS, max_length=N_BINS)]


class AnchorPair(BaseModel):
    """Two classes, by their numbers, and the cosine between their anchors."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    classes: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]]
    before: _Cosine
    now: _Cosine


class AnchorCosines(BaseModel):
    """All pairs of classes that are learned."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    before: _Counts  # pairs in each bin
    now: _Counts
    closest: list[AnchorPair]  # the ten closest before and the ten closest now, the latter first

    @model_validator(mode="after")
    def _check_pairs(self) -> AnchorCosines:
        if sum(self.before) != sum(self.now):
            raise ValueError("before and now count different numbers of pairs")
        return self

    @property
    def last_class(self) -> int:
        """The highest class number of a pair; -1 without pairs."""
        return max((number for pair in self.closest for number in pair.classes), default=-1)
