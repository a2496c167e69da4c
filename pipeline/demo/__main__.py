"""Run the complete pipeline on one machine without a GPU: draw, shard, train, compare.

The demo draws a small data set in renditions that its tiny CLIP has never seen, writes it as
shards, learns it as a sequence of tasks with the methods zeroshot, finetune and tppt_vt, on two
ranks each, and compares their results. The commands are those for any other data set. A finished
step is not repeated.

Example:
  python -m pipeline.demo --folder /tmp/demo

Exit status: 0 done, 2 an error that you can correct, 75 stopped by a signal (the same command
continues), 1 a lost rank or a fault of the program.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.cli import build_parser, run_command
from pipeline.launching.command import (
    launch_command,
    launch_environment,
    on_this_host,
    visible_devices,
)
from pipeline.launching.ports import reserved_port

METHODS = ("zeroshot", "finetune", "tppt_vt")
_ROOT = Path(__file__).resolve().parents[2]
_RANKS = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = build_parser("python -m pipeline.demo", __doc__ or "")
    parser.add_argument(
        "--folder", default="runs/demo", help="for images, shards and runs; default runs/demo"
    )
    folder = Path(parser.parse_args(arguments).folder).resolve()
    return run_command(lambda: _run(folder))


def _run(folder: Path) -> int:
    from rich.console import Console

    from pipeline.compare import comparison  # not above: these take seconds

    os.chdir(_ROOT)  # the paths in configs/demo.yaml start there
    _prepare(folder)
    for method in METHODS:
        status = _train(method, folder)
        if status:
            return status
    Console().print(comparison([str(folder / method) for method in METHODS]))
    return 0


def _prepare(folder: Path) -> None:
    """Draw the images and write them as shards, unless the shards are complete."""
    from pipeline import storage
    from pipeline.data.prepare.sharding import Recipe, write_shards
    from pipeline.demo.drawing import write_images

    images, shards = folder / "images", folder / "shards"
    if storage.exists(str(shards / "index.json")):
        return
    _show(f"drawing images into {images}")
    write_images(images)
    write_shards(str(images), str(shards), Recipe())


def _train(method: str, folder: Path) -> int:
    """Launch one training run on two ranks; returns its exit status."""
    import torch

    overrides = [
        f"data.index={folder / 'shards'}",
        f"method.name={method}",
        f"output={folder / method}",
    ]
    devices = visible_devices(min(_RANKS, torch.cuda.device_count()) or _RANKS)
    with reserved_port() as port:
        place = on_this_host(devices, port)
        command = launch_command("configs/demo.yaml", place, overrides=overrides, quiet=True)
        _show(shlex.join(["deepspeed", *command[1:]]))
        environment = launch_environment(os.environ, devices)
        return subprocess.run(command, env=environment, check=False).returncode


def _show(text: str) -> None:
    sys.stderr.write(f"\n$ {text}\n")


if __name__ == "__main__":
    sys.exit(main())
