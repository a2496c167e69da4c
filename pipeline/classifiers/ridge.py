"""Ridge regression of the class labels, accumulated task by task; exact, as if all were one task.

Axes: B images, held out for λ · S images kept · X the fewer of S and M · C classes seen so far ·
F width of the vectors · M random features.

Source: RanPAC, arXiv 2307.02251: random projection, ReLU, Gram matrix, ridge regression.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from pipeline.classifiers.base import (
    ClassifierContext,
    Embedded,
    EmbeddedImages,
    Moment,
    split_off,
)
from pipeline.classifiers.closed_form import ClosedForm, ClosedFormOptions
from pipeline.classifiers.heads import LinearHead
from pipeline.classifiers.vectors import vectors_of, width_of
from pipeline.errors import ConfigError
from pipeline.model.prompts import unit
from pipeline.rng import torch_stream
from pipeline.tasks import Task

_MOST_BYTES = 256 * 10**6  # of the Gram matrix, in memory and in the file of each task
_GIVE_STRENGTH = "give `strength` beside its other options (300 suits 2,000 random features)"
_STRENGTHS = tuple(10 ** (half / 2) for half in range(-8, 13))  # two per decade


class RidgeOptions(ClosedFormOptions):
    """The random projection of the vectors, and the strength of the penalty."""

    projection: int = Field(0, ge=0)  # M random ReLU features; 0 = the vectors themselves
    strength: float | None = Field(None, gt=0)  # λ; None = chosen in the first task

    @field_validator("projection")
    @classmethod
    def _fits_in_memory(cls, projection: int) -> int:
        size = 8 * projection**2
        if size > _MOST_BYTES:
            most = int((_MOST_BYTES / 8) ** 0.5)
            raise ValueError(
                f"projection: {projection} random features make a matrix of {projection:,} × "
                f"{projection:,} doubles, {size / 1e6:,.0f} MB in memory and in the file of each "
                f"task; choose at most {most}"
            )
        return projection

    @model_validator(mode="after")
    def _map_is_linear(self) -> RidgeOptions:
        if self.drift_map and self.projection:
            raise ValueError(
                f"drift_map is true and projection is {self.projection}: no linear map moves "
                "random features; set projection to 0, or drift_map to false"
            )
        return self


class Ridge(ClosedForm):
    """``logits = φ(x) (G + λ I)⁻¹ Q`` with ``G = Σ φ φᵀ`` and ``Q`` the sum of φ of each class.

    ``φ(x) = relu(x P)`` with a fixed random ``P``, or ``x`` itself. Without a given strength, λ is
    chosen on every fifth training image of the first task, which the others then classify: the
    candidate with the smallest squared error of the labels (RanPAC, section 4).
    """

    Options = RidgeOptions
    probability_scale = 25.0  # see docs/PREDICT.md

    def __init__(self, context: ClassifierContext, options: RidgeOptions) -> None:
        width = width_of(options.vectors, context)
        size = options.projection or width
        super().__init__(context, options, width=size)
        self._projection_FM: Tensor | None = None
        if options.projection:
            stream = torch_stream("ridge projection", context.seed)
            projection_FM = torch.randn(width, size, generator=stream, dtype=torch.float64)
            self._projection_FM = projection_FM.to(context.clip.device)
        self.gram_MM: Tensor
        self.strength: Tensor
        self.register_buffer("gram_MM", torch.zeros(size, size, dtype=torch.float64))
        self.register_buffer("strength", torch.zeros((), dtype=torch.float64))
        self._weight_MC: Tensor | None = None

    @classmethod
    def check(cls, options: RidgeOptions, tasks: Sequence[Task]) -> str | None:
        """Refuse to choose λ where no class competes with another one."""
        if options.strength or len(tasks[0].classes) > 1:
            return None
        return (
            "tasks: the first task has one class, and the strength of 'ridge' is chosen on "
            f"images of two or more; {_GIVE_STRENGTH}"
        )

    def fit(self, moment: Moment, images: EmbeddedImages) -> None:
        """Add the task's images to the Gram matrix and to the sums of their classes."""
        map_FF = self.follow_drift(moment, images)
        if moment == "start":
            return
        if map_FF is not None:
            self.gram_MM.copy_(map_FF.T @ self.gram_MM @ map_FF)
        if not float(self.strength):
            self.strength.fill_(self.options.strength or self._choose_strength(images))
        gram_MM, sum_CM = self._statistics(images)
        self.gram_MM += gram_MM
        self.sums[-1].add_(sum_CM)

    def end_task(self, task: Task) -> None:
        """Forget the weights; they are solved for when they are first needed."""
        self._weight_MC = None

    def logits(self, embedded: Embedded) -> Tensor:
        """Regressed labels ``logits_BC``, near 1 for the class of an image."""
        return self.read(embedded) @ self._weights()

    def heads(self) -> list[LinearHead]:
        """One head: the weights, on random features if there is a projection."""
        vectors = tuple((vector,) for vector in self.options.vectors)
        return [LinearHead(vectors, self._weights().T, self._projection_FM)]

    def read(self, embedded: Embedded) -> Tensor:
        """``φ(x)`` of each image, ``expanded_BM``, of vectors that each have length 1."""
        vector_BF = torch.cat(
            [unit(vectors_of(embedded, [vector])) for vector in self.options.vectors], dim=1
        )
        if self._projection_FM is None:
            return vector_BF
        return (vector_BF @ self._projection_FM).relu()

    def _weights(self) -> Tensor:
        """``weight_MC``, solved for when it is first needed."""
        if self._weight_MC is None:
            targets_MC = self.total_sums().T
            self._weight_MC = _solve(self.gram_MM, targets_MC, float(self.strength))
        return self._weight_MC

    def _statistics(self, images: EmbeddedImages) -> tuple[Tensor, Tensor]:
        """The Gram matrix of some images of the task, and the sums of their classes."""
        gram_MM, sum_CM = torch.zeros_like(self.gram_MM), torch.zeros_like(self.sums[-1])
        for embedded, label_B in images:
            expanded_BM = self.read(embedded)
            gram_MM += expanded_BM.T @ expanded_BM
            sum_CM += self.class_sums(expanded_BM, label_B)
        return gram_MM, sum_CM

    def _choose_strength(self, images: EmbeddedImages) -> float:
        kept, held = split_off(images)
        expanded_BM, target_BC = self._together(held)
        if not len(target_BC):
            raise ConfigError(
                "the first task has too few training images: the strength of 'ridge' is chosen "
                f"on every fifth one; {_GIVE_STRENGTH}"
            )
        if sum(len(label_B) for _, label_B in kept) < len(self.gram_MM):
            # (ΦᵀΦ + λ I)⁻¹ Φᵀ = Φᵀ (ΦΦᵀ + λ I)⁻¹: the smaller matrix gives the same predictions.
            kept_SM, sum_XC = self._together(kept)
            gram_XX, input_BX = kept_SM @ kept_SM.T, expanded_BM @ kept_SM.T
        else:
            gram_XX, sum_CM = self._statistics(kept)
            sum_XC, input_BX = sum_CM.T, expanded_BM

        # In the basis of eigenvectors each candidate costs one product instead of a solution.
        value_X, vector_XX = torch.linalg.eigh(gram_XX)
        rotated_BX, sum_XC = input_BX @ vector_XX, vector_XX.T @ sum_XC

        def error(strength: float) -> float:
            predicted_BC = rotated_BX @ (sum_XC / (value_X + strength)[:, None])
            return float((predicted_BC - target_BC).square().mean())

        return min(_STRENGTHS, key=error)

    def _together(self, images: EmbeddedImages) -> tuple[Tensor, Tensor]:
        """``φ(x)`` of some images of the task as ``expanded_SM``, and their ``one_hot_SC``."""
        expanded_SM = torch.cat([self.read(embedded) for embedded, _ in images])
        return expanded_SM, self.one_hot(torch.cat([label_B for _, label_B in images]))


def _solve(gram_MM: Tensor, targets_MC: Tensor, strength: float) -> Tensor:
    """The weights ``(G + λ I)⁻¹ Q``."""
    penalty_MM = strength * torch.eye(len(gram_MM), dtype=gram_MM.dtype, device=gram_MM.device)
    return torch.linalg.solve(gram_MM + penalty_MM, targets_MC)
