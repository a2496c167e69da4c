"""The whole path on one machine without a GPU: draw, shard, train three methods, compare.

``python -m pipeline.demo`` draws a small data set whose renditions the tiny CLIP beside this file
never saw, prepares shards of it, and learns it as a sequence of tasks on two ranks with each of
``zeroshot``, ``finetune`` and ``tppt_vt``. Nothing here is special: these are the commands that
any data set takes. What is finished already is not done again.
"""

from __future__ import annotations

import argparse
import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import torch
from rich.console import Console

from pipeline import storage
from pipeline.compare import comparison
from pipeline.data.prepare.sharding import Recipe, write_shards
from pipeline.demo.drawing import write_images
from pipeline.errors import PipelineError

METHODS = ("zeroshot", "finetune", "tppt_vt")
_ROOT = Path(__file__).resolve().parents[2]
_RANKS = 2


def main() -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.demo",
        description=__doc__,
        epilog="Example: python -m pipeline.demo --folder /tmp/demo",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--folder", default="runs/demo", help="where everything goes")
    folder = Path(parser.parse_args().folder).resolve()
    os.chdir(_ROOT)
    try:
        _prepare(folder)
        for method in METHODS:
            status = _train(method, folder)
            if status:
                return status
        Console().print(comparison([str(folder / method) for method in METHODS]))
    except PipelineError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


def _prepare(folder: Path) -> None:
    """Draw the pictures and make shards of them, once."""
    shards = folder / "shards"
    if storage.exists(str(shards / "index.json")):
        return
    _say(f"drawing pictures into {folder / 'pictures'}")
    write_images(folder / "pictures")
    write_shards(str(folder / "pictures"), str(shards), Recipe())


def _train(method: str, folder: Path) -> int:
    """Launch one training run on two ranks; returns its exit status."""
    ranks = min(_RANKS, torch.cuda.device_count()) or _RANKS
    command = [
        str(Path(sys.executable).with_name("deepspeed")),
        *("--num_accelerators", str(ranks), "--master_port", str(_free_port()), "--quiet"),
        *("pipeline/train.py", "--config", "configs/demo.yaml"),
        f"data.index={folder / 'shards'}",
        f"method.name={method}",
        f"output={folder / method}",
    ]
    _say(shlex.join(["deepspeed", *command[1:]]))
    environment = os.environ | ({} if torch.cuda.is_available() else {"DS_ACCELERATOR": "cpu"})
    return subprocess.run(command, env=environment, check=False).returncode


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _say(text: str) -> None:
    sys.stderr.write(f"\n$ {text}\n")


if __name__ == "__main__":
    sys.exit(main())
