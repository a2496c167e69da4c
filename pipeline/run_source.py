"""The folder or URL that a command takes as RUN, looked at before torch is imported.

That import takes seconds, and a wrong path should be refused at once.
"""

from __future__ import annotations

from pipeline import storage
from pipeline.errors import DataError

RUN = ("results.json",)
RUN_OR_EXPORT = ("results.json", "export.json")


def check_source(source: str, files: tuple[str, ...]) -> None:
    """Refuse a ``source`` that has none of ``files``.

    Raises:
        DataError: it has none of them.
        StorageError: it cannot be read.
    """
    if not any(storage.exists(storage.join(source, name)) for name in files):
        place = storage.redact(source) or "''"
        raise DataError(
            f"{place}: holds no {' and no '.join(files)}; give the output of a run that has "
            "learned at least one task"
        )
