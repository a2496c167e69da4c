"""The chaos command refuses impossible options, and finds no difference in real runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.data.prepare.copying import copy_data_set
from tests.chaos.__main__ import main
from tests.chaos.faults import STORAGE
from tests.services.object_store import Bucket


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (["--fault", STORAGE], "needs data or output at s3://"),
        (["--ranks", "3"], "global_batch"),
        (["optim.epoch=1"], "did you mean 'epochs'?"),
        (["data.index=nowhere"], "nowhere"),
    ],
)
def test_impossible_command_is_refused_with_one_error(
    tiny_run_config, tmp_path, capsys, arguments, complaint
):
    output = tmp_path / "chaos"
    assert main(["--config", str(tiny_run_config), "--output", str(output), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("error: ") == 1 and complaint in error
    assert not output.exists()


def test_output_of_earlier_rounds_is_not_overwritten(tiny_run_config, tmp_path, capsys):
    (tmp_path / "chaos.json").write_text("{}")
    assert main(["--config", str(tiny_run_config), "--output", str(tmp_path)]) == 2
    assert "is not empty; choose another, or remove it" in capsys.readouterr().err


def run_chaos(config: Path, output: str, report: Callable[[], str], *arguments: str) -> dict:
    """The content of ``chaos.json`` after rounds that all gave the undisturbed result."""
    status = main(["--config", str(config), "--output", output, *arguments])
    content = json.loads(report())
    assert status == 0, json.dumps(content["rounds"], indent=1)
    sums = content["total"]
    assert not sums["differences"] and not sums["hangs"] and not sums["orphans"]
    return content


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_runs_end_as_the_undisturbed_run(tiny_run_config, tmp_path):
    """must hold if rank 0 dies while it writes a snapshot, and if the launcher dies"""
    output = tmp_path / "chaos"
    kinds = ("during a snapshot", "SIGKILL launcher")
    content = run_chaos(
        tiny_run_config,
        str(output),
        (output / "chaos.json").read_text,
        *(word for kind in kinds for word in ("--fault", kind)),
        *("--rounds", "1", "--seed", "45", "snapshot.every_steps=1"),  # both in one round
    )
    assert content["kinds"]["during a snapshot"]["on_time"] == 1
    assert content["kinds"]["SIGKILL launcher"]["faults"] == 1
    assert content["total"]["restarts"] == 2


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_run_outlasts_an_outage_of_its_storage(
    tiny_run_config, tiny_shards: str, bucket: Bucket, tmp_path
):
    """must continue by itself if the object store of data and output refuses for some seconds"""
    index = copy_data_set(tiny_shards, f"{bucket.url}/shards").url
    output = f"{bucket.url}/chaos"
    content = run_chaos(
        tiny_run_config,
        output,
        lambda: storage.read_text(f"{output}/chaos.json"),
        *("--fault", STORAGE, "--rounds", "1", "--seed", "32", f"data.index={index}"),  # for 3 s
    )
    assert content["kinds"][STORAGE]["faults"] == 1
    assert content["total"]["restarts"] == 0
