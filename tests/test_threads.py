"""Waiting threads sleep soon, unless the user has chosen otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.threads import spin_briefly

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("chosen", [{"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "7"}])
def test_choice_of_the_user_stays(chosen: dict[str, str]):
    environment = dict(chosen)
    spin_briefly(environment)
    assert environment == chosen


def test_openmp_learns_it_before_it_is_loaded():
    """must reach the library itself, which reads its environment once"""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    shown = subprocess.run(
        [sys.executable, "-m", "pipeline.train", "--config", "configs/demo.yaml", "--print-config"],
        cwd=ROOT,
        env={**environment, "OMP_DISPLAY_ENV": "verbose"},
        capture_output=True,
        text=True,
        check=True,
    )
    if "GOMP_SPINCOUNT" not in shown.stderr:
        pytest.skip("this torch was built with another OpenMP than GNU's")
    assert "GOMP_SPINCOUNT = '10000'" in shown.stderr
