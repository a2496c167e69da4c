"""Figures under names of this field that other codes compute in another way.

They are written beside the figures of :mod:`pipeline.output.metrics`, so that a run can be compared
with a published figure of the same formula. ``accuracy[t][k]`` is as there; T is the number of
stages so far.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

Triangle = Sequence[Sequence[float]]  # row t has the accuracies of tasks 0 to t


def forgetting_over_all_stages(accuracy: Triangle) -> float | None:
    """Mean drop of each old task from its best accuracy, the last stage included; in [0, 1].

    Never negative: a task that gains at the end counts as 0. None for fewer than two stages.

    Source: ``print_forget`` of LAMDA-PILOT, and the code of the L2P family.
    """
    if len(accuracy) < 2:
        return None
    last = len(accuracy) - 1
    return fmean(
        max(accuracy[t][k] for t in range(k, last + 1)) - accuracy[last][k] for k in range(last)
    )


def forgetting_of_continuum_1_2_7(accuracy: Triangle) -> float | None:
    """The figure that the package ``continuum`` 1.2.7 calls forgetting; in [-1, 1].

    It leaves out the last old task and the stage before the last one, and divides by T - 1 all the
    same. Published figures of RAPF, MG-CLIP, MoE-Adapters and ZSCL come from it. None for fewer
    than two stages.

    Source: ``continuum.metrics.metrics.forgetting``, release 1.2.7.
    """
    n_stages = len(accuracy)
    if n_stages < 2:
        return None
    drops = [
        max(accuracy[t][k] for t in range(k, n_stages - 2)) - accuracy[-1][k]
        for k in range(n_stages - 2)
    ]
    return sum(drops) / (n_stages - 1)


def backward_transfer_over_stages(accuracy: Triangle) -> float | None:
    """Mean of ``a[t][k] - a[k][k]`` over all stages t and old tasks k < t; in [-1, 1].

    None for fewer than two stages.

    Source: arXiv 1810.13166, equation 3.
    """
    pairs = [accuracy[t][k] - accuracy[k][k] for t in range(1, len(accuracy)) for k in range(t)]
    return fmean(pairs) if pairs else None


def average_macro_accuracy(accuracy: Triangle) -> float | None:
    """Mean over stages of the mean over tasks; in [0, 1]. None before the first stage.

    Source: the average accuracy of CODA-Prompt (arXiv 2211.13218) and of the L2P family.
    """
    return fmean(fmean(row) for row in accuracy) if accuracy else None


VARIANTS: dict[str, Callable[[Triangle], float | None]] = {
    "average_macro_accuracy": average_macro_accuracy,
    "forgetting_over_all_stages": forgetting_over_all_stages,
    "forgetting_of_continuum_1_2_7": forgetting_of_continuum_1_2_7,
    "backward_transfer_over_stages": backward_transfer_over_stages,
}
