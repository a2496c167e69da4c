"""Made-up runs of any size, whose results, predictions and metrics agree with each other."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.index import read_index
from pipeline.output.metrics import summarise
from pipeline.output.predictions import NAME as PREDICTIONS
from pipeline.output.predictions import Prediction, format_predictions
from pipeline.output.results import RunResults
from tests.tiny import build_config

SHARD = "test-000000.tar"


def predict(
    tasks: Sequence[Sequence[str]], samples: Sequence[tuple[str, str, int]], seed: int
) -> list[Prediction]:
    """A prediction for each (key, shard, class number): right for about half of them."""
    draw = random.Random(seed)
    task_of = [task for task, names in enumerate(tasks) for _ in names]
    predictions = []
    for key, shard, label in samples:
        others = [draw.randrange(len(task_of)) for _ in range(6)]
        near = min(len(task_of) - 1, label + 1)
        ranked = dict.fromkeys([draw.choice([label, label, near, others[0]]), *others[1:]])
        shares = sorted((round(draw.random() / 2, 6) for _ in ranked), reverse=True)
        top = tuple(zip(ranked, [round(0.5 + shares[0], 6), *shares[1:]], strict=True))[:5]
        predictions.append(Prediction(key, shard, task_of[label], label, top))
    return sorted(predictions, key=lambda each: each.task)


def build_results(
    tasks: Sequence[Sequence[str]], predictions: Sequence[Prediction], **changes: Any
) -> RunResults:
    """The results whose last test has given ``predictions``; earlier tests were a bit better."""
    n_tasks, n_classes = len(tasks), sum(map(len, tasks))
    right, images = [0] * n_classes, [0] * n_classes
    for each in predictions:
        right[each.label] += each.top[0][0] == each.label
        images[each.label] += 1
    ends = [sum(map(len, tasks[: t + 1])) for t in range(n_tasks)]
    parts = [range(end - len(names), end) for end, names in zip(ends, tasks, strict=True)]
    stages = []  # of each: the right predictions of each class
    for t in range(n_tasks):
        gains = n_tasks - 1 - t
        stages.append([min(images[c], right[c] + gains) for c in range(ends[t])])
    correct = [
        [sum(row[c] for c in parts[k]) for k in range(t + 1)] for t, row in enumerate(stages)
    ]
    counts = [[sum(images[c] for c in parts[k]) for k in range(t + 1)] for t in range(n_tasks)]
    config = build_config("local-dir:clip", "shards").model_dump(mode="json")
    return RunResults.model_validate(
        {
            "schema": 2, "status": "finished", "method": "tppt_vt", "tasks": tasks,
            "accuracy_matrix": [
                [a / b for a, b in zip(correct[t], counts[t], strict=True)]
                + [None] * (n_tasks - t - 1)
                for t in range(n_tasks)
            ],
            "counts": {"correct": correct, "images": counts},
            **summarise(correct, counts),
            "class_accuracies": [
                [round(a / b, 4) if b else None for a, b in zip(row, images, strict=False)]
                for row in stages
            ],
            "class_images": images,
            "diagnostics": [
                {
                    "task": t, "anchor_cosine": 0.2 + t / 99, "modality_gap": 0.5,
                    "feature_drift": 0.1 if t else None, "train_seconds": 3.5, "test_seconds": 1.25,
                    "frozen_anchor_cosine": 0.7 - t / 999, "cosine_to_frozen": 0.9 - t / 999,
                }
                for t in range(n_tasks)
            ],
            "anchor_cosines": {
                "before": [0] * 34 + [2, 6, 2, 0, 0, 0], "now": [0] * 20 + [3, 7, *[0] * 18],
                "closest": [{"classes": [0, n_classes - 1], "before": 0.75, "now": 0.125}],
            },
            "trainable_parameters": [37248] * n_tasks,
            "images_per_second": 812.5,
            "manifest": {
                "config": config, "config_sha256": "c0", "class_order": list(range(n_classes)),
                "index_sha256": "1d", "backbone_sha256": "bb", "identity": {}, "world_size": 1,
                "packages": {"torch": "2.0"},
            },
            **changes,
        }
    )  # fmt: skip


def write_run(
    output: Path, results: RunResults, predictions: Sequence[Prediction], *, n_steps: int = 20
) -> str:
    """Write the files of a run that a report reads; returns its output."""
    output.mkdir(parents=True)
    results.write(str(output))
    (output / PREDICTIONS).write_bytes(format_predictions(predictions))
    lines = []
    for task in range(len(results.tasks)):
        for step in range(0, 10 * n_steps, 10):
            lines.append(
                {
                    "kind": "step", "task": task, "epoch": 0, "step": step,
                    "loss": 2 - step / 999, "learning_rate": 1e-3, "images_per_second": 800.0,
                    "data_wait": 0.125, "terms": {"one": 1.5, "two": 0.5 - step / 999},
                }
            )  # fmt: skip
        lines.append({"kind": "stage", "task": task, "micro": 0.5, "accuracy": []})
    (output / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return str(output)


def large_run(n_tasks: int, n_classes: int, n_images: int) -> tuple[RunResults, list[Prediction]]:
    """A run over so many tasks, classes of a task and images of a class, without an index."""
    tasks = [[f"class {t}-{c} of many" for c in range(n_classes)] for t in range(n_tasks)]
    samples = [
        (f"{label:05d}-{n:05d}", SHARD, label)
        for label in range(n_tasks * n_classes)
        for n in range(n_images)
    ]
    predictions = predict(tasks, samples, seed=1)
    return build_results(tasks, predictions), predictions


def run_on_shards(
    shards: str, names: Sequence[str] | None = None, *, learned: int = 3, **changes: Any
) -> tuple[RunResults, list[Prediction]]:
    """A run over the tiny shards in tasks of 3, 3 and 1 classes, called ``names``.

    ``learned`` tasks have been learned and tested.
    """
    index = read_index(shards)
    order = [4, 0, 6, 2, 5, 1, 3]
    shown = names or index.class_names
    named = [shown[label] for label in order]
    tasks = [named[:3], named[3:6], named[6:]]
    samples = []
    for number, label in enumerate(order[: sum(map(len, tasks[:learned]))]):
        selection = index.select("test", [label])
        found = selection.take(np.arange(len(selection)))
        for key, shard in zip(found.keys, found.shard_S, strict=True):
            samples.append((key, index.shards[shard].name, number))
    predictions = predict(tasks[:learned], samples, seed=2)
    content = build_results(tasks[:learned], predictions).content()
    content["manifest"] |= {
        "config": build_config("local-dir:clip", shards).model_dump(mode="json"),
        "class_order": order,
        "index_sha256": index.sha256,
    }
    content["status"] = "finished" if learned == 3 else "running"
    content["tasks"] = tasks
    for row in content["accuracy_matrix"]:
        row += [None] * (3 - learned)
    return RunResults.model_validate({**content, **changes}), predictions
