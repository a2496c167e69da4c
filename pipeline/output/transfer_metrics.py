"""What a run transfers to tasks that it has not learned yet, from the accuracy on all tasks.

``accuracy[n][k]`` is the accuracy on task ``k`` after ``n`` tasks, a fraction. Row 0 is the frozen
CLIP before the first task. T is the number of tasks; the papers number stages and tasks from 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

Square = Sequence[Sequence[float]]  # T + 1 rows of T accuracies


def transfer(accuracy: Square) -> float | None:
    """Mean over tasks of the mean accuracy on each before it is learned; None for one task.

    Row 0 and the first task are in no mean.

    Source: "Transfer" of ZSCL, arXiv 2303.06628, section 5.1 and the notebook of its authors.
    """
    n_tasks = len(accuracy) - 1
    columns = (fmean(accuracy[n][k] for n in range(1, k + 1)) for k in range(1, n_tasks))
    return fmean(columns) if n_tasks > 1 else None


def average_over_matrix(accuracy: Square) -> float:
    """Mean over tasks of the mean accuracy on each over all stages, before and after it is learned.

    Row 0 is in no mean.

    Source: "Avg." of ZSCL, arXiv 2303.06628.
    """
    return fmean(map(fmean, accuracy[1:]))


def last_over_tasks(accuracy: Square) -> float:
    """Mean over tasks of the accuracy on each after the last one.

    Source: "Last" of ZSCL, arXiv 2303.06628.
    """
    return fmean(accuracy[-1])


def forward_transfer(accuracy: Square) -> float | None:
    """Mean of ``R[k-1][k] - b[k]``: what the tasks before a task change on it; None for one task.

    In [-1, 1]. The baseline b is the frozen CLIP; in the paper it is a random initialisation.

    Source: FWT of GEM, arXiv 1706.08840, equation 4.
    """
    n_tasks = len(accuracy) - 1
    changes = (accuracy[k][k] - accuracy[0][k] for k in range(1, n_tasks))
    return fmean(changes) if n_tasks > 1 else None


def transfer_figures(accuracy: Sequence[Sequence[float | None]]) -> dict[str, float | None] | None:
    """All figures of a finished run; None if an accuracy was not measured."""
    complete = [[value for value in row if value is not None] for row in accuracy]
    if not complete or any(len(row) + 1 != len(complete) for row in complete):
        return None
    return {
        "transfer": transfer(complete),
        "average_over_matrix": average_over_matrix(complete),
        "last_over_tasks": last_over_tasks(complete),
        "forward_transfer": forward_transfer(complete),
    }
