"""An export against the hashes in its ``export.json``."""

from __future__ import annotations

from pipeline import storage
from pipeline.inference.export_record import RECORD_NAME, read_record
from pipeline.inspection.findings import Findings, Part, Progress, check_file


def inspect_export(folder: str, *, progress: Progress) -> Findings:
    """The files of the export in ``folder``; each is read completely.

    Raises:
        DataError: ``export.json`` is damaged.
        StorageError: a file cannot be read.
    """
    record = read_record(folder)
    parts = [check_file(folder, RECORD_NAME)]
    for done, (name, sha256) in enumerate(record.files.items(), start=1):
        is_inside = "/" not in name and "\\" not in name and name not in ("", ".", "..")
        outside = Part(name, sha256=sha256, fault="is not the name of a file in the export")
        parts.append(check_file(folder, name, sha256) if is_inside else outside)
        progress(done, len(record.files))
    facts = {
        "name": record.name,
        "method": record.method,
        "classifier": record.classifier,
        "stage": record.stage,
        "classes": len(record.classes),
        "class_names": record.classes,
        "arch": record.backbone.arch,
        "weights": record.backbone.weights,
        "backbone_sha256": record.backbone.sha256,
        "image_size": record.preprocessing.image_size,
        "resize_mode": record.preprocessing.resize_mode,
        "evaluated_split": record.test.split,
        "last_accuracy": record.test.accuracy,
        "tested_images": record.test.images,
        "packages": record.packages,
    }
    stage = f"{len(record.classes):,} classes of {record.stage} tasks"
    return Findings("export", storage.redact(folder), stage, True, facts, parts)
