"""``export.json``: the content of an export, as a validated value.

An export is a folder or URL with these files:

``export.json``                    this record; written last, so a torn export has none
``classifier.safetensors``         the learned tensors of prompts and linear heads
``anchors.safetensors``            one text embedding per class, if the classifier has them
``class_embeddings.safetensors``   the same for open_clip's own classification, if that is all
``load.py``                        a loader that needs torch and open_clip alone
``README.md``                      the model card
``classifier.onnx``, ``classifier.pt2``   the classifier as one program, on request
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline import storage
from pipeline.classifiers.vectors import Vector
from pipeline.errors import DataError
from pipeline.model.prompt_groups import Place
from pipeline.text import first_problem

RECORD_NAME = "export.json"
TENSORS_NAME = "classifier.safetensors"
ANCHORS_NAME = "anchors.safetensors"
EMBEDDINGS_NAME = "class_embeddings.safetensors"
ONNX_NAME = "classifier.onnx"
TORCH_NAME = "classifier.pt2"
CARD_NAME = "README.md"
LOADER_NAME = "load.py"
FILE_NAMES = (
    RECORD_NAME,
    TENSORS_NAME,
    ANCHORS_NAME,
    EMBEDDINGS_NAME,
    ONNX_NAME,
    TORCH_NAME,
    CARD_NAME,
    LOADER_NAME,
)
TRANSFORMS = {"shortest": "clip", "squash": "squash"}  # ``data.eval_transform`` by resize_mode
Part = Literal["prompts", "heads"]
_MOST_CLASSES = 1_000_000


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class BackboneRecord(_Record):
    """The frozen CLIP."""

    arch: str  # as ``model.arch`` of a configuration
    weights: str | None
    sha256: str  # of all tensors, see ``load.py``
    precision: Literal["auto", "fp32", "bf16"]  # of the towers; auto: bf16 on a GPU


class PreprocessingRecord(_Record):
    """From an RGB image to normalised pixels: arguments of ``open_clip.image_transform``."""

    image_size: int = Field(gt=0, le=1 << 13)
    resize_mode: Literal["shortest", "squash"]
    interpolation: Literal["bicubic"] = "bicubic"
    mean: list[float]  # of pixels in [0, 1], by channel
    std: list[float]


class PromptRecord(_Record):
    """A group of prompts without tensors, see :class:`pipeline.model.prompt_groups.PromptGroup`."""

    first_block: int = Field(ge=0)
    place: Place
    choice: Literal["weighted", "nearest"]  # 'all' is the nearest of one component
    n_nearest: int = Field(1, gt=0)


class HeadRecord(_Record):
    """A linear head without its tensors, see :class:`pipeline.classifiers.heads.LinearHead`."""

    vectors: list[list[Vector]] = Field(min_length=1)
    scale: float
    coefficient: float


class TestRecord(_Record):
    """The test of the run at this stage: micro accuracy over all classes seen."""

    split: Literal["test", "validation"]
    validation_fraction: float
    correct: int = Field(ge=0)
    images: int = Field(gt=0)
    labels: list[int]  # of each class in the index

    @property
    def accuracy(self) -> float:
        """A fraction."""
        return self.correct / self.images


class ExportRecord(_Record):
    """The content of ``export.json``; ``classes`` are in the order of the scores."""

    format: Literal["tppt-export"] = "tppt-export"
    version: Literal[1] = 1
    name: str
    method: str
    classifier: str
    stage: int = Field(gt=0)  # tasks learned
    classes: list[str] = Field(min_length=1, max_length=_MOST_CLASSES)
    task_of_class: list[int]  # counted from 1
    preprocessing: PreprocessingRecord
    preprocessing_steps: list[str]  # the same in plain words
    backbone: BackboneRecord
    prompts: list[PromptRecord]
    heads: list[HeadRecord]  # none: the program in ``classifier.pt2`` is all
    probability_scale: float = Field(1.0, gt=0)  # probabilities are the softmax of it times scores
    test: TestRecord
    run: dict[str, str | int | None]  # origin: seed, hashes of the configuration and of the data
    packages: dict[str, str]
    files: dict[str, str]  # SHA-256 by name, of the files that a person does not edit

    @model_validator(mode="after")
    def _check_sizes(self) -> ExportRecord:
        """Refuse lists of different lengths, and tasks that are not in order."""
        if not len(self.classes) == len(self.task_of_class) == len(self.test.labels):
            raise ValueError("classes, task_of_class and test.labels have different lengths")
        tasks = self.task_of_class
        if tasks != sorted(tasks) or tasks[0] < 1 or tasks[-1] > self.stage:
            raise ValueError("task_of_class does not ascend from 1 to stage")
        if not len(self.preprocessing.mean) == len(self.preprocessing.std) == 3:
            raise ValueError("preprocessing.mean and std are not three numbers")
        return self


def tensor_name(part: Part, number: int, name: str) -> str:
    """The name of a tensor in ``classifier.safetensors``, such as ``heads.0.weight``.

    Of prompts: ``components`` D×M×L×V, ``keys`` M×V, ``attention`` M×V. Of heads: ``weight`` C×F or
    C×M, ``bias`` C, ``projection`` F×M.
    """
    return f"{part}.{number}.{name}"


def is_export(source: str) -> bool:
    """Whether the folder or URL ``source`` holds a complete export."""
    return storage.exists(storage.join(source, RECORD_NAME))


def read_record(source: str) -> ExportRecord:
    """The record of the export at ``source``.

    Raises:
        DataError: ``export.json`` is not that of an export of this version.
        StorageError: it cannot be read.
    """
    url = storage.join(source, RECORD_NAME)
    try:
        return ExportRecord.model_validate_json(storage.read_text(url))
    except ValidationError as error:
        raise DataError(
            f"{storage.redact(url)}: is not the record of an export of version 1 "
            f"({first_problem(error)}); export the run again"
        ) from None
