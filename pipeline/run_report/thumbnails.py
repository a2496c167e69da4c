"""Small images of tested samples, read from the shards that the run names.

The files of a run are not trusted: an image is shown only if the index has the hash that the run
recorded, and if it lists a sample of that class, shard and key.
"""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

from pipeline import storage
from pipeline.config import DataConfig
from pipeline.data.decoding import decode_sample
from pipeline.data.index import Selection, ShardIndex
from pipeline.data.opening import open_index
from pipeline.data.reader import ShardReader
from pipeline.errors import DataError, PipelineError
from pipeline.output.predictions import Prediction
from pipeline.output.protocol import setting_of
from pipeline.output.results import CONFIG_NAME, RunManifest, RunResults
from pipeline.settings_file import parse_section
from pipeline.yaml_text import parse_yaml

SIDE = 96  # pixels of the longer side
MAX_BYTES = 1_000_000  # of all images of a page
_QUALITY = 80


class Thumbnails:
    """The images of predictions; ``problem`` is a sentence if one cannot be shown, else empty.

    After the first problem no further image is read, so that a storage that fails costs its
    patience only once.
    """

    def __init__(self, output: str, results: RunResults) -> None:
        self.problem = ""
        self._results = results
        self._left = MAX_BYTES
        self._of_class: dict[int, tuple[Selection, tuple[str, ...]]] = {}
        try:
            self._index = _open_index(output, results.manifest)
            if results.evaluation.split == "validation":
                self._index = self._index.with_closed("test")
            self._reader = ShardReader(self._index)
        except (PipelineError, OSError, ValueError) as error:
            self.problem = f"The images cannot be shown: {error}."

    def source(self, prediction: Prediction) -> str:
        """The image as a ``data:`` URI; empty after a problem, or if no room is left."""
        if self.problem or self._left <= 0:
            return ""
        try:
            source = _as_source(self._image(prediction))
        except (PipelineError, OSError, ValueError) as error:
            self.problem = f"Not all images can be shown: {error}."
            return ""
        self._left -= len(source)
        return source if self._left >= 0 else ""

    def _image(self, prediction: Prediction) -> Image.Image:
        label = self._results.manifest.class_order[prediction.label]
        selection, keys = self._samples(label)
        shards = selection.index.segments.shard_G[selection.place_S]
        for place, key in enumerate(keys):
            name = self._index.shards[shards[place]].name
            if (key, name) == (prediction.key, prediction.shard):
                samples = selection.take(np.array([place]))
                [record] = self._reader.read(samples)
                return decode_sample(record, key=key, label=self._reader.stored_label(samples, 0))
        raise DataError("predictions.jsonl names a sample that the index does not list")

    def _samples(self, label: int) -> tuple[Selection, tuple[str, ...]]:
        """The tested samples of a class, with their keys."""
        if label not in self._of_class:
            fraction = setting_of(self._results.manifest.config, "data.validation_fraction")
            selection = self._index.select(
                self._results.evaluation.split, [label], validation_fraction=float(fraction)
            )
            self._of_class[label] = selection, selection.keys
        return self._of_class[label]


def _open_index(output: str, manifest: RunManifest) -> ShardIndex:
    """The index of the run, if its content is still that which the run has learned."""
    given = _index_in(output) or setting_of(manifest.config, "data.index")
    if not given:
        raise DataError("results.json names no index")
    place = f"{storage.redact(output)}: data"
    given = parse_section(DataConfig, {"index": given}, place=place).index
    known_classes = setting_of(manifest.config, "tasks.known_classes")
    index = open_index(given, known_classes=known_classes)
    if index.sha256 != manifest.index_sha256:
        raise DataError("the index was changed since the run")
    return index


def _index_in(output: str) -> Any:
    """``data.index`` of ``config.yaml``, which names folders from any working folder; or None."""
    url = storage.join(output, CONFIG_NAME)
    if not storage.exists(url):
        return None
    tree = parse_yaml(storage.read_text(url), place=storage.redact(url))
    data = tree.get("data") if isinstance(tree, dict) else None
    return data.get("index") if isinstance(data, dict) else None


def _as_source(image: Image.Image) -> str:
    """A ``data:`` URI of the image, whose longer side has at most ``SIDE`` pixels."""
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    image.save(data, "JPEG", quality=_QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"
