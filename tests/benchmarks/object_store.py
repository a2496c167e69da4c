"""Runs a command beside a real S3 server on loopback, with the environment that finds it.

    python -m tests.benchmarks.object_store python -m pipeline.bench data bench.url=s3://bench/data

The server has one bucket, ``bench``, in a temporary folder.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.services.object_store import ObjectStore, why_unavailable

BUCKET = "bench"


def main() -> int:
    """Run the command in the arguments; its exit status."""
    with tempfile.TemporaryDirectory(prefix="store-") as name:
        reason = why_unavailable(Path(name))
        if reason:
            print(reason, file=sys.stderr)
            return 2
        with ObjectStore(Path(name)) as store:
            store.access.file_system().mkdir(BUCKET)
            environment = {**os.environ, **store.access.environment()}
            return subprocess.run(sys.argv[1:], env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
