"""One export: the forms of a run are made, compared with the run, and written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from pipeline.data.index import ShardIndex
from pipeline.errors import ConfigError
from pipeline.exporting.card import model_card, read_seeds
from pipeline.exporting.check import Check, check_images, check_scores
from pipeline.exporting.files import write_files
from pipeline.exporting.form import (
    Form,
    anchor_file,
    class_metadata,
    embedding_file,
    form_of,
    record_of,
    tensor_file,
)
from pipeline.exporting.program import (
    Predict,
    onnx_file,
    required,
    run_onnx,
    run_torch,
    torch_file,
    trace,
)
from pipeline.inference import Classifier
from pipeline.inference.export_record import (
    ANCHORS_NAME,
    EMBEDDINGS_NAME,
    ONNX_NAME,
    TENSORS_NAME,
    TORCH_NAME,
    ExportRecord,
)
from pipeline.output.learned import load_run
from pipeline.output.results import read_results


class Export:
    """The forms of a run after ``stage`` tasks, by the names of their files.

    ``seeds`` are outputs of further runs, for the model card. A run without a form of tensors is
    exported as a program alone, if ``may_be_program``.

    Raises:
        ConfigError: the run has no form of tensors, or has not learned so many tasks.
        DataError: there is no run, its files were changed, or ``seeds`` has other experiments.
        WeightsError: the backbone cannot be loaded.
        StorageError: a file cannot be read.
    """

    def __init__(
        self,
        output: str,
        stage: int | None,
        *,
        weights: str | None = None,
        seeds: Sequence[str] = (),
        may_be_program: bool = False,
    ) -> None:
        run = load_run(output, stage, weights=weights)
        results = read_results(output)
        assert results is not None, "load_run has read them"
        self.config = run.config
        self.why_program_alone: str | None = None
        self._results = results
        self._seeds = read_seeds(results, seeds)
        self._run = Classifier.of(run)
        try:
            self._form = form_of(run)
        except ConfigError as error:
            if not may_be_program:
                raise
            self.why_program_alone = str(error)
            self._form = Form([], [])
        self._record = record_of(run, self._run, results, self._form)
        self._forms: dict[str, Predict] = {}
        self._files: dict[str, bytes] = {}
        self._traced = self._run
        if self._form.heads:
            method = self._form.method_like(run.method).eval()
            name, transform = self._run.name, self._run.transform
            self._traced = Classifier(method, run.tasks, name=name, transform=transform)
            self._add_tensors(run.method.classifier.anchor_CE)

    def _add_tensors(self, anchor_CE: Tensor | None) -> None:
        form, about = self._form, class_metadata(self._record)
        self._files[TENSORS_NAME] = tensor_file(form)
        self._forms[TENSORS_NAME] = self._traced
        if anchor_CE is not None:
            self._files[ANCHORS_NAME] = anchor_file(anchor_CE, about)
        if form.is_open_clip:
            self._files[EMBEDDINGS_NAME] = embedding_file(form.heads[0], about)

    @cached_property
    def _program(self) -> torch.export.ExportedProgram:
        return trace(self._traced)

    def add_torch(self) -> None:
        """Add ``classifier.pt2``.

        Raises:
            ConfigError: torch.export cannot follow the method.
        """
        data = torch_file(self._program)
        self._files[TORCH_NAME], self._forms[TORCH_NAME] = data, run_torch(data)

    def add_onnx(self) -> None:
        """Add ``classifier.onnx``.

        Raises:
            ConfigError: as :meth:`add_torch`, or a package is missing.
        """
        for name in ("onnx", "onnxruntime", "onnxscript"):
            required(name)
        data = onnx_file(self._program, self._record)
        self._files[ONNX_NAME], self._forms[ONNX_NAME] = data, run_onnx(data)

    def check_scores(self) -> None:
        """Compare the scores of every form with those of the run, on random images.

        Raises:
            DataError: a form has other scores.
        """
        check_scores(self._run, self._forms, self._run.image_size)

    def check_images(
        self, index: ShardIndex, on_batch: Callable[[int], None] = lambda images: None
    ) -> list[Check]:
        """Compare the accuracy of every form with that of the run in its test.

        Raises:
            DataError: the index is not that of the run, or a form has another accuracy.
            StorageError: a shard cannot be read.
        """
        return check_images(self._run, self._forms, self._record, index, on_batch=on_batch)

    @property
    def n_test_images(self) -> int:
        """The images of :meth:`check_images`."""
        return self._record.test.images

    @property
    def accuracy(self) -> float:
        """The accuracy of the run in its test, a fraction."""
        return self._record.test.accuracy

    def write(self, out: str) -> ExportRecord:
        """Write the files to the folder or URL ``out``.

        Raises:
            StorageError: a file cannot be written.
        """
        loader = Path(__file__).with_name("load.py").read_bytes() if self._form.heads else None
        record = self._record.model_copy(update={"files": dict.fromkeys(self._files, "")})
        card = model_card(record, self._results, self._seeds)
        return write_files(out, self._record, self._files, card=card, loader=loader)
