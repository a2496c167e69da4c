"""The finished tiny run that the tests of the chaos tool compare."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from pipeline.config import load_config
from pipeline.distributed.world import World
from pipeline.training.checked_run import check_run
from pipeline.training.run import execute


@pytest.fixture(scope="session")
def finished(tiny_run_config: Path, tmp_path_factory) -> Path:
    """The output of the tiny run."""
    output = tmp_path_factory.mktemp("finished") / "run"
    config = load_config(tiny_run_config, [f"output={output}", "optim.epochs=1"])
    world = World(0, 1, 0, torch.device("cpu"))
    local_rank = os.environ.get("LOCAL_RANK")
    execute(check_run(config, 1), world)
    if local_rank is None:
        os.environ.pop("LOCAL_RANK", None)
    return output
