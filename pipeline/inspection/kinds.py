"""Which kind of thing a folder or URL holds, recognised by its files; nothing is executed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pipeline import storage
from pipeline.errors import DataError
from pipeline.inspection.findings import Findings, Progress
from pipeline.text import first_few

Kind = Literal["data set", "run", "snapshot", "snapshot folder", "sweep", "export"]

_SNAPSHOTS = "snapshots"  # the usual name of the folder of a run's snapshots
# The first of these files that a folder has decides.
_KIND_OF_FILE: dict[str, Kind] = {
    "index.json": "data set",
    "unfinished.json": "data set",  # of `prepare shard`
    "export.json": "export",
    "sweep.json": "sweep",
    "results.json": "run",
    "owner.json": "run",
    "state.json": "snapshot",
    "tensors.safetensors": "snapshot",
}


def recognise(url: str) -> tuple[Kind, str]:
    """The kind of ``url``, and its folder: ``url`` may also be one of the files in it.

    Raises:
        DataError: it is of no known kind.
        StorageError: it cannot be read.
    """
    folder, _, name = url.rstrip("/").rpartition("/")
    folder = (folder or ".") if name in _KIND_OF_FILE or name.endswith(".tar") else url
    for file, kind in _KIND_OF_FILE.items():
        if storage.exists(storage.join(folder, file)):
            return kind, folder
    if name == _SNAPSHOTS and storage.list_files(folder):
        return "snapshot folder", folder
    place = storage.redact(url)
    if not storage.exists(folder):
        raise DataError(f"{place}: there is no such folder or file; correct the path")
    raise DataError(
        f"{place}: is no data set, run, snapshot, sweep or export: it has none of "
        f"{', '.join(_KIND_OF_FILE)}; {_hint(folder)}"
    )


def inspect_url(url: str, *, full: bool, progress: Progress) -> Findings:
    """What ``url`` holds. ``full`` also compares the content of shards and of runs of a sweep.

    Raises:
        DataError: it is of no known kind, or its main file is damaged.
        StorageError: a file cannot be read.
    """
    kind, folder = recognise(url)
    # Imported here because some of them need torch, which takes seconds.
    if kind == "data set":
        from pipeline.inspection.data_set import inspect_data_set

        return inspect_data_set(folder, full=full, progress=progress)
    if kind == "run":
        from pipeline.inspection.run import inspect_run

        return inspect_run(folder)
    if kind == "sweep":
        from pipeline.inspection.sweep import inspect_sweep

        return inspect_sweep(folder, full=full, progress=progress)
    if kind == "export":
        from pipeline.inspection.export import inspect_export

        return inspect_export(folder, progress=progress)
    from pipeline.inspection.snapshot import inspect_snapshot, inspect_snapshots

    return inspect_snapshot(folder) if kind == "snapshot" else inspect_snapshots(folder)


def _hint(folder: str) -> str:
    """The subfolders that can be inspected, where they are found without a long search."""
    if not storage.is_local(folder) or not os.path.isdir(storage.local_path(folder)):
        return "give the folder of one"
    below = Path(storage.local_path(folder))
    found = sorted({file.parent.name for name in _KIND_OF_FILE for file in below.glob(f"*/{name}")})
    return f"give one of its folders: {first_few(found, 5)}" if found else "give the folder of one"
