"""The model card of an export: ``README.md`` as the Hugging Face Hub shows it."""

from __future__ import annotations

import html
from collections.abc import Sequence

from pipeline import storage
from pipeline.config import Config
from pipeline.errors import DataError
from pipeline.inference.export_record import EMBEDDINGS_NAME, ExportRecord
from pipeline.output.protocol import compared_settings
from pipeline.output.results import RunResults, finished_results
from pipeline.text import first_few, format_percent

_FRONT = """\
---
# Fill in the licences: of this model (it follows those of the CLIP and of the images), e.g. mit.
# license: unknown
library_name: open_clip
pipeline_tag: image-classification
tags:
- clip
- continual-learning
- class-incremental-learning
---
"""
_USE = """\
## Use

```python
from PIL import Image
from load import load  # load.py of this repository; needs torch and open_clip

model, preprocess, classes = load()
scores = model(preprocess(Image.open("image.jpg"))[None])
print(classes[scores.argmax()])
```

`export.json` describes the preprocessing, the prompts and the heads. Probabilities are the softmax
of {scale:g} times the scores.{extra}
"""
_INTENDED = """\
## Intended use

Research on continual learning, and classification of images that resemble the training images into
exactly the classes below. The classifier always names one of its classes, also for an image of
something else.

## Must not be used for

- decisions about persons, their identity, or attributes such as health, origin or belief;
- surveillance, or any use where an error endangers somebody;
- images of another kind than the test images, without a test of one's own: the accuracy below holds
  for those alone, and earlier tasks are recognised worse than later ones;
- a purpose that the licence of the CLIP, of its training data or of the images excludes.

## Licences

- this model: *fill in*
- the CLIP ({arch}): *fill in*
- the images: *fill in*
"""


def model_card(record: ExportRecord, results: RunResults, seeds: Sequence[RunResults]) -> str:
    """The card of an export; ``seeds`` are all runs of the protocol, this one among them."""
    arch = record.backbone.arch
    if arch.startswith("local-dir:"):
        arch = f"local-dir:{arch.rstrip('/').rsplit('/', 1)[-1]}"
    weights = record.backbone.weights
    clip = _text(arch if weights is None else f"{arch}, {weights.rsplit('/', 1)[-1]}")
    has_plain = EMBEDDINGS_NAME in record.files
    extra = ""
    if has_plain:
        extra = (
            "\n\nThe CLIP is unchanged, so that open_clip classifies alike: "
            "`(logit_scale * image_features @ class_embeddings.T)` with normalised image features "
            "and the tensors of `class_embeddings.safetensors`."
        )
    parts = [
        _FRONT,
        f"# {_text(record.name)}: {_text(record.method)} on {clip}\n",
        f"An image classifier of {len(record.classes)} classes that were learned in "
        f"{record.stage} tasks, one after another, on a frozen CLIP "
        f"(method `{_text(record.method)}`, classifier `{_text(record.classifier)}`).\n",
        _accuracies(record, results, seeds),
        _USE.format(scale=record.probability_scale, extra=extra)
        if record.heads
        else "## Use\n\n`torch.export.load('classifier.pt2')` gives the program. Loading it can "
        "run code: load only files of people whom you trust.\n",
        _INTENDED.format(arch=clip),
        _classes(record),
        _origin(record, results),
    ]
    return "\n".join(parts)


def read_seeds(results: RunResults, outputs: Sequence[str]) -> list[RunResults]:
    """This run and the finished runs in ``outputs``, which differ in seed and class order alone.

    Raises:
        DataError: an output holds no finished run, or a run of another protocol.
    """
    runs = {_key(results): results}
    for output in outputs:
        other = finished_results(output)
        if _protocol(other) != _protocol(results):
            raise DataError(
                f"{storage.redact(output)}: follows another protocol, or has other settings than "
                "the seed and the class order; give runs of the same experiment to --seeds"
            )
        runs.setdefault(_key(other), other)
    return list(runs.values())


def _key(results: RunResults) -> tuple[object, ...]:
    manifest = results.manifest
    return manifest.config.get("seed"), tuple(manifest.class_order)


def _protocol(results: RunResults) -> tuple[object, ...]:
    manifest = results.manifest
    settings = dict(results.protocol.settings)
    names = sorted(name for task in settings.pop("tasks") for name in task)
    settings.pop("data")
    compared = compared_settings(manifest.config, manifest.identity, with_defaults=False)
    sizes = list(map(len, results.tasks))
    return manifest.index_sha256, names, sizes, settings, compared


def _accuracies(record: ExportRecord, results: RunResults, seeds: Sequence[RunResults]) -> str:
    test, stage = record.test, record.stage - 1
    columns = [[results], list(seeds)] if len(seeds) > 1 else [[results]]
    title = f"mean ± sd over {len(seeds)} runs"
    lines = ["## Accuracy", "", "In % of all test images of the classes seen so far.", ""]
    lines += [
        _row("figure", "this run", *[title][: len(columns) - 1]),
        _row(*"-" * (len(columns) + 1)),
    ]
    lines.append(
        _row(
            "after the exported task",
            *(
                format_percent([run.stage_accuracy.micro[stage] for run in runs], digits=2)
                for runs in columns
            ),
        )
    )
    if results.is_finished:
        for title, name in (
            ("average over all tasks", "average_incremental_accuracy"),
            ("after the last task", "last_accuracy"),
            ("forgetting", "forgetting"),
        ):
            values = ([getattr(run, name) for run in runs] for runs in columns)
            lines.append(_row(title, *(format_percent(each, digits=2) for each in values)))
    counted = f"{test.correct:,} of {test.images:,} {test.split} images are classified correctly."
    return "\n".join([*lines, "", counted, ""])


def _row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _classes(record: ExportRecord) -> str:
    lines = ["## Classes", "", "| task | classes |", "|---|---|"]
    for task in range(1, record.stage + 1):
        pairs = zip(record.classes, record.task_of_class, strict=True)
        own = [_text(name) for name, number in pairs if number == task]
        lines.append(_row(task, first_few(own, 20)))
    return "\n".join([*lines, ""])


def _origin(record: ExportRecord, results: RunResults) -> str:
    config = Config.model_validate(results.manifest.config)
    test, run = record.test, record.run
    rows = {
        "data (SHA-256 of the index)": run["index_sha256"],
        "protocol (SHA-256)": run["protocol_sha256"],
        "configuration (SHA-256)": run["config_sha256"],
        "seed": run["seed"],
        **_templates(config.text.template_lists),
        "test images": f"{test.images:,} of the split {test.split}",
        "CLIP (SHA-256)": record.backbone.sha256,
        "packages": ", ".join(f"{name} {number}" for name, number in record.packages.items()),
    }
    lines = ["## Data and protocol", "", "| | |", "|---|---|"]
    lines += [_row(*row) for row in rows.items()]
    return "\n".join([*lines, ""])


def _templates(lists: Sequence[Sequence[str]]) -> dict[str, str]:
    """A row of the templates, or one for each index of the data."""
    rows = ["; ".join(f"`{_text(each)}`" for each in templates) for templates in lists]
    if len(rows) == 1:
        return {"templates": rows[0]}
    return {f"templates of index {number}": row for number, row in enumerate(rows, start=1)}


def _text(value: str) -> str:
    """A text of the run as it can stand in a table of Markdown, without markup of its own."""
    return html.escape(" ".join(value.split())).replace("|", "&#124;").replace("`", "&#96;")
