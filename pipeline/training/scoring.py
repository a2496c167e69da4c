"""Exact accuracy over all ranks, and diagnostics of the embeddings.

Axes: B images · C classes seen so far · E joint width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.classifiers import Embedded
from pipeline.distributed.collectives import raise_on_all_ranks, sum_over_ranks
from pipeline.methods.base import Method
from pipeline.model.class_rows import positions


@dataclass(frozen=True)
class TaskScore:
    """One task's test after some stage; each image was counted once over all ranks."""

    correct: int
    images: int
    embedding_sum_E: Tensor  # sum of the image embeddings
    class_mean_CE: Tensor  # mean image embedding of each class of the task


@torch.no_grad()
def score_task(
    method: Method,
    encoded: Iterable[tuple[Embedded, Tensor]],
    *,
    classes: Sequence[int],
) -> TaskScore:
    """The score of one task from this rank's encoded images and class numbers.

    The highest logit over all classes seen so far wins; labels are class numbers. The task has
    images of ``classes``, which ascend.
    """
    width, device = method.embedding_width, method.clip.device
    correct = torch.zeros((), dtype=torch.float64, device=device)
    class_sum_CE = torch.zeros(len(classes), width, dtype=torch.float64, device=device)
    class_count_C = torch.zeros(len(classes), dtype=torch.float64, device=device)
    with raise_on_all_ranks():
        for embedded, label_B in encoded:
            predicted_B = method.logits(embedded).argmax(dim=1)
            correct += (predicted_B == label_B).sum()
            position_B = positions(classes, label_B)
            class_sum_CE.index_add_(0, position_B, embedded.embedding_BE.double())
            class_count_C.index_add_(0, position_B, torch.ones_like(position_B).double())
    packed = torch.cat([correct[None], class_count_C, class_sum_CE.flatten()])
    packed = sum_over_ranks(packed)
    count_C = packed[1 : 1 + len(classes)]
    sum_CE = packed[1 + len(classes) :].view(len(classes), width)
    return TaskScore(
        correct=int(packed[0]),
        images=int(count_C.sum()),
        embedding_sum_E=sum_CE.sum(dim=0).float(),
        class_mean_CE=(sum_CE / count_C.clamp(min=1)[:, None]).float(),
    )


def anchor_cosine(anchor_CE: Tensor) -> float:
    """Mean cosine between different anchors; towards 1 they have collapsed. 0 for a lone class."""
    n_classes = len(anchor_CE)
    if n_classes < 2:
        return 0.0
    return float(((anchor_CE @ anchor_CE.T).sum() - n_classes) / (n_classes * (n_classes - 1)))


def modality_gap(scores: Iterable[TaskScore], anchor_CE: Tensor) -> float:
    """Distance between the mean image embedding and the mean anchor, in [0, 2]."""
    scores = list(scores)
    mean_E = sum(s.embedding_sum_E for s in scores) / sum(s.images for s in scores)
    return float((mean_E - anchor_CE.mean(dim=0)).norm())


def feature_drift(now_CE: Tensor, learned_CE: Tensor) -> float:
    """Mean distance of class means from where they were when their task was learned, in [0, 2]."""
    return float((now_CE - learned_CE).norm(dim=1).mean())
