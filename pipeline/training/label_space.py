"""The classes that a tested image may get, and the scores by which it gets one.

Axes: B images · C classes seen so far · A classes of all tasks · X classes that are scored ·
E joint width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.classifiers import Embedded
from pipeline.methods.base import Method, MethodContext
from pipeline.model.anchors import FixedAnchors
from pipeline.tasks import Task
from pipeline.training.checked_run import Run


class Scores(NamedTuple):
    """The scores of some images; the class with the greatest logit is the prediction."""

    logits_BX: Tensor  # minus infinity for classes that are not possible
    probability_BX: Tensor  # float32; each row sums to 1


class SeenClasses:
    """All classes seen so far, as ``method`` scores them."""

    def __init__(self, method: Method) -> None:
        self._method = method

    def size(self, task: Task, n_seen: int) -> int:
        """The number of possible classes of an image of ``task`` after ``n_seen`` classes."""
        return n_seen

    def scores(self, embedded: Embedded, task: Task) -> Scores:
        """The scores of images of ``task``."""
        return self._scores(self._method.logits(embedded))

    def _scores(self, logits_BC: Tensor) -> Scores:
        return Scores(logits_BC, self._method.classifier.probabilities(logits_BC))


class TaskClasses(SeenClasses):
    """The classes that the image's own task has images of.

    Source: the task-wise label space of MTIL, ZSCL, arXiv 2303.06628.
    """

    def size(self, task: Task, n_seen: int) -> int:
        """The number of classes of ``task``."""
        return len(task.classes)

    def scores(self, embedded: Embedded, task: Task) -> Scores:
        """The scores of images of ``task``; minus infinity for the classes of others."""
        logits_BC = self._method.logits(embedded)
        is_out_C = torch.ones(logits_BC.shape[1], dtype=torch.bool, device=logits_BC.device)
        is_out_C[list(task.classes)] = False
        return self._scores(logits_BC.masked_fill(is_out_C, -torch.inf))


class AllClasses(SeenClasses):
    """The classes of all tasks, also of those that are not learned yet.

    A class that is not learned has the text anchor of its name. Where the classifier compares with
    anchors too, one softmax covers all classes: the embedding with the anchors of the classifier
    and with these. Any other classifier knows learned classes alone. Then the nearest anchor over
    all classes decides: if its class is learned, the classifier chooses among the learned ones;
    otherwise that class is the prediction. After the last task every class is learned, and the
    predictions are those of :class:`SeenClasses`.

    Source: X-TAIL, arXiv 2406.18868, and ``primal_RAIL.py`` in the code of its authors (commit
    a0ecaef): zero-shot CLIP over the classes of all data sets selects the images that go to the
    ridge regression. RAIL then adds 0.1 of CLIP's probabilities to 0.9 of the regressed labels.
    That mixture is part of its classifier, not of the label space, and is left out here. In RAIL
    the image tower is frozen; here the anchors meet the embedding of the method as it is now.
    """

    def __init__(self, method: Method, name_anchor_AE: Tensor) -> None:
        super().__init__(method)
        self._name_anchor_AE = name_anchor_AE

    def size(self, task: Task, n_seen: int) -> int:
        """The number of classes of all tasks."""
        return len(self._name_anchor_AE)

    def scores(self, embedded: Embedded, task: Task) -> Scores:
        """The scores of images over the classes of all tasks."""
        learned = super().scores(embedded, task)
        n_learned, n_all = learned.logits_BX.shape[1], len(self._name_anchor_AE)
        if n_learned == n_all:
            return learned
        classifier, name_CE = self._method.classifier, self._name_anchor_AE[:n_learned]
        own_CE = name_CE if classifier.anchor_CE is None else classifier.anchor_CE
        anchor_AE = torch.cat([own_CE, self._name_anchor_AE[n_learned:]])
        cosine_BA = self._method.clip.logit_scale * embedded.embedding_BE @ anchor_AE.T
        by_name = Scores(cosine_BA, cosine_BA.double().softmax(dim=1).float())
        if classifier.logits_are_cosines:
            return by_name
        is_learned_B1 = cosine_BA.argmax(dim=1, keepdim=True) < n_learned
        padding = (0, n_all - n_learned)
        logits_BA = F.pad(learned.logits_BX, padding, value=-torch.inf)
        probability_BA = F.pad(learned.probability_BX, padding)
        return Scores(
            torch.where(is_learned_B1, logits_BA, cosine_BA.to(logits_BA.dtype)),
            torch.where(is_learned_B1, probability_BA, by_name.probability_BX),
        )


def open_label_space(run: Run, method: Method) -> SeenClasses:
    """The label space of ``evaluation.label_space``."""
    kind = run.config.evaluation.label_space
    if kind == "all":
        return AllClasses(method, _name_anchors(run, method))
    return {"seen": SeenClasses, "task": TaskClasses}[kind](method)


def _name_anchors(run: Run, method: Method) -> Tensor:
    """``anchor_AE`` of the frozen text tower, with the templates of each index."""
    context = MethodContext.of(run.config, method.clip)
    anchors = FixedAnchors(context.clip, context.prompts_of, ensemble=context.ensemble)
    for task in run.tasks:
        anchors.begin_task(task)
    return anchors.for_evaluation()
