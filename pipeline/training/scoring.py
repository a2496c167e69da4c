"""Exact accuracy over all ranks, and diagnostics of the embeddings.

Axes: B images · C classes seen so far · E joint width.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.distributed.collectives import raise_on_all_ranks, sum_over_ranks
from pipeline.methods.base import Method
from pipeline.model.class_rows import positions
from pipeline.tasks import Task
from pipeline.training.encoder import EncodedBatch
from pipeline.training.label_space import SeenClasses
from pipeline.training.predictions import TopClasses


@dataclass(frozen=True)
class TaskScore:
    """One task's test after some stage; each image was counted once over all ranks."""

    class_correct: tuple[int, ...]  # of the images of each class of the task
    class_images: tuple[int, ...]
    embedding_sum_E: Tensor  # sum of the image embeddings
    class_mean_CE: Tensor  # mean image embedding of each class of the task

    @property
    def correct(self) -> int:
        """Images that were classified correctly."""
        return sum(self.class_correct)

    @property
    def images(self) -> int:
        """Images that were tested."""
        return sum(self.class_images)

    @property
    def accuracy(self) -> float:
        """Correct predictions over images, in [0, 1]."""
        return self.correct / self.images


@torch.no_grad()
def score_task(
    method: Method,
    encoded: Iterable[EncodedBatch],
    *,
    task: Task,
    label_space: SeenClasses | None = None,
    top: TopClasses | None = None,
) -> TaskScore:
    """The score of ``task`` from this rank's encoded images; ``top`` gets their best classes.

    The highest logit over the classes of ``label_space`` wins, by default over all seen so far;
    labels are class numbers.
    """
    space, classes = label_space or SeenClasses(method), task.classes
    width, device = method.embedding_width, method.clip.device
    # Per class of the task: correct images, images, sum of the embeddings.
    total_CX = torch.zeros(len(classes), 2 + width, dtype=torch.float64, device=device)
    with raise_on_all_ranks():
        for embedded, label_B, sample_B in encoded:
            scores = space.scores(embedded, task)
            right_B = scores.logits_BX.argmax(dim=1) == label_B
            columns = right_B[:, None], torch.ones_like(right_B)[:, None], embedded.embedding_BE
            value_BX = torch.cat([column.double() for column in columns], dim=1)
            total_CX.index_add_(0, positions(classes, label_B), value_BX)
            if top is not None:
                top.add(sample_B, *scores)
    total_CX = sum_over_ranks(total_CX)
    if top is not None:
        top.gather()
    count_C, sum_CE = total_CX[:, 1], total_CX[:, 2:]
    count_2C = total_CX[:, :2].T.cpu()
    return TaskScore(
        class_correct=tuple(map(int, count_2C[0])),
        class_images=tuple(map(int, count_2C[1])),
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
