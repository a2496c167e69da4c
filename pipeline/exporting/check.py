"""Every form of an export classifies the test images of its run, and the figures are compared.

Axes: B images · C classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline import storage
from pipeline.config import CacheConfig
from pipeline.data.cache import SegmentCache
from pipeline.data.index import ShardIndex
from pipeline.data.stream import ShardSource, eval_stream
from pipeline.data.transforms import build_transform
from pipeline.errors import DataError
from pipeline.exporting.form import random_images
from pipeline.exporting.program import Predict
from pipeline.inference.export_record import TRANSFORMS, ExportRecord

_BATCH = 64
_NEARLY = 1e-4  # difference of scores, in units of the largest one
_FEW = 1e-3  # of the images: those between two classes, which rounding decides


@dataclass(frozen=True)
class Check:
    """How one form has classified the test images."""

    form: str
    correct: int
    images: int
    different: int  # predictions that differ from those of the run itself

    @property
    def accuracy(self) -> float:
        """A fraction."""
        return self.correct / self.images


def check_scores(run: Predict, forms: Mapping[str, Predict], image_size: int) -> None:
    """Compare the scores of each form with those of the run, on random images.

    Raises:
        DataError: a form has other scores.
    """
    for n_images in (1, 5):  # programs must take any number
        image_BCHW = random_images(image_size, n_images)
        wanted_BC = run(image_BCHW).double()
        for form, predict in forms.items():
            difference = float((predict(image_BCHW).double() - wanted_BC).abs().max())
            if not difference <= _NEARLY * max(1.0, float(wanted_BC.abs().max())):  # or NaN
                raise DataError(
                    f"{form}: its scores differ from those of the run by {difference:.2g} on "
                    f"{n_images} random images, and nothing was exported; leave this form out, and "
                    "report the versions of torch and of the package"
                )


def check_images(
    run: Predict,
    forms: Mapping[str, Predict],
    record: ExportRecord,
    index: ShardIndex,
    *,
    on_batch: Callable[[int], None],
) -> list[Check]:
    """Classify the test images of the record's classes in ``index``, in every form.

    ``on_batch`` is called with the number of images of each batch.

    Raises:
        DataError: the index is not that of the run, or a form has another accuracy.
        StorageError: a shard cannot be read.
    """
    correct, different, n_images = Counter[str](), Counter[str](), 0
    for image_BCHW, label_B in _test_images(record, index):
        wanted_B = run(image_BCHW).argmax(dim=1)
        for form, predict in {"run": run, **forms}.items():
            predicted_B = wanted_B if form == "run" else predict(image_BCHW).argmax(dim=1)
            correct[form] += int((predicted_B == label_B).sum())
            different[form] += int((predicted_B != wanted_B).sum())
        n_images += len(label_B)
        on_batch(len(label_B))
    test = record.test
    if n_images != test.images:
        raise DataError(
            f"{storage.redact(index.url)}: has {n_images:,} {test.split} images of these classes, "
            f"and the run was tested on {test.images:,}; give the index of the run to --verify"
        )
    checks = [Check(form, correct[form], n_images, different[form]) for form in ("run", *forms)]
    for check in checks:
        if abs(check.correct - test.correct) > _FEW * n_images or check.different > _FEW * n_images:
            raise DataError(
                f"{check.form}: classifies {check.correct:,} of {n_images:,} images correctly, "
                f"{check.different:,} otherwise than the run, which had {test.correct:,} in its "
                "test; do not use this export"
            )
    return checks


def _test_images(record: ExportRecord, index: ShardIndex) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of ``image_BCHW`` and class numbers."""
    test, preprocessing = record.test, record.preprocessing
    transform = build_transform(TRANSFORMS[preprocessing.resize_mode], preprocessing.image_size)
    selection = index.select(
        test.split, _checked_labels(record, index), validation_fraction=test.validation_fraction
    )
    class_of_label = torch.full((len(index.class_names),), -1)
    class_of_label[test.labels] = torch.arange(len(test.labels))
    with closing(ShardSource(index, cache=SegmentCache.of(CacheConfig()))) as source:
        for batch in eval_stream(source, selection, transform, batch_size=_BATCH):
            assert batch.image_BCHW is not None, "images were asked for"
            yield batch.image_BCHW, class_of_label[batch.label_B]


def _checked_labels(record: ExportRecord, index: ShardIndex) -> Sequence[int]:
    """The labels of the classes, whose names in the index must be the same."""
    for name, label in zip(record.classes, record.test.labels, strict=True):
        known = label < len(index.class_names)
        if not known or name not in (index.class_names[label], index.class_folders[label]):
            found = index.class_names[label] if known else "no class"
            raise DataError(
                f"{storage.redact(index.url)}: has {found!r} as class {label}, and the run has "
                f"{name!r}; give the index of the run to --verify"
            )
    return record.test.labels
