"""The train command: exit status, one-line errors and plan; it writes files only if it trains."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.config import dump_config, load_config
from pipeline.distributed.preemption import STOP_SIGNALS
from pipeline.output.results import read_results
from pipeline.train import main
from pipeline.training.checked_run import with_all_options
from tests.services.object_store import free_ports
from tests.tiny import build_config

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def signals_as_before() -> Iterator[None]:
    """Restores the signals: the command configures its process, here the test process."""
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def file(tmp_path: Path, tiny_arch: str, tiny_shards: str) -> Path:
    """A valid configuration; its run writes into the folder of the file."""
    config = build_config(tiny_arch, tiny_shards, output=str(tmp_path / "run"))
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    return path


def assert_refused(capsys: pytest.CaptureFixture[str], status: int, words: str, file: Path) -> None:
    """must end with status 2, print one line with ``words`` to stderr, and write nothing"""
    out, err = capsys.readouterr()
    assert status == 2 and out == ""
    assert err.startswith("error: ") and err.count("\n") == 1 and words in err, err
    assert [entry.name for entry in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "optim.learnng_rate=1",
            "optim.learnng_rate is not a known key; did you mean 'learning_ra",
        ),
        ("optim.epochs=many", "optim.epochs: input should be a valid integer"),
        ("epochs", "override 'epochs': write key=value, for instance seed=2"),
        ("method.name=tppt", "method.name: 'tppt' is not a method; did you mean 'tppt_v"),
        ("method.options.tppt_v.promts=1", "method.options.tppt_v: promts is not a known key"),
        (
            "data.index=nowhere/shards",
            "data.index: cannot read nowhere/shards/index.json: the",
        ),
        ("tasks.classes_per_task=9", "tasks: the first task needs 9 classes and data.index has 7"),
        ("tasks.class_order=[0, 1]", "class_order: the list must contain each label 0..6 once"),
        ("model={arch: ViT-L-14, weights: openai}", "wrong activation for the weights 'openai'"),
        ("model={arch: ViT-L-14, weights: nowhere.pt}", "'nowhere.pt' is neither a file nor a pre"),
        ("model={arch: ViT-L-15, weights: openai}", "open_clip has no model 'ViT-L-15'; did you"),
        ("model.arch=local-dir:nowhere", "there is no folder nowhere; give one in open_clip's lay"),
    ],
)
@pytest.mark.parametrize("mode", [[], ["--dry-run"]], ids=["run", "dry run"])
def test_invalid_setting_is_refused_in_one_line(capsys, file, override, words, mode):
    assert_refused(capsys, main(["--config", str(file), override, *mode]), words, file)


def test_unreadable_file_is_refused_in_one_line(capsys, file):
    nowhere = str(file.parent / "nowhere.yaml")
    assert_refused(capsys, main(["--config", nowhere]), "no such configuration file", file)
    file.write_text("data: [")
    assert_refused(capsys, main(["--config", str(file)]), "not valid YAML", file)
    file.write_text("seed: 1")
    assert_refused(capsys, main(["--config", str(file)]), "data is missing; it must be given", file)


def test_batch_that_ranks_cannot_share_is_refused_before_they_connect(capsys, file, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    words = "data.global_batch: 4 images cannot be shared equally by 3 ranks"
    assert_refused(capsys, main(["--config", str(file)]), words, file)


def test_only_the_first_rank_prints_the_error(capsys, file, monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)  # a run of this process sets it
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert main(["--config", str(file)]) == 2
    assert capsys.readouterr() == ("", "")


def test_environment_of_half_a_launcher_is_refused(capsys, file, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    words = "set only one of RANK and WORLD_SIZE"
    assert_refused(capsys, main(["--config", str(file)]), words, file)


def test_damaged_weights_are_refused_in_one_line(capsys, file, tiny_arch, tmp_path):
    """must hold for an error that appears only while the weights are loaded"""
    source, broken = Path(tiny_arch.removeprefix("local-dir:")), tmp_path / "clips" / "broken"
    broken.mkdir(parents=True)
    (broken / "open_clip_config.json").write_bytes((source / "open_clip_config.json").read_bytes())
    (broken / "open_clip_model.safetensors").write_bytes(b"not weights")
    assert main(["--config", str(file), f"model.arch=local-dir:{broken}"]) == 2
    out, err = capsys.readouterr()
    assert "is neither a safetensors file nor one of PyTorch" in err and "Traceback" not in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("override", ["seed=5", "method.options.tppt_v.anchor_residuals=true"])
def test_printed_configuration_reads_back_unchanged(capsys, file, override):
    assert main(["--config", str(file), "--print-config", override, "name=again"]) == 0
    printed = capsys.readouterr().out
    again = file.with_name("again.yaml")
    again.write_text(printed)
    assert load_config(again) == with_all_options(load_config(file, [override, "name=again"]))
    assert not (file.parent / "run").exists()


def test_dry_run_prints_the_plan_and_writes_nothing(capsys, file):
    assert main(["--config", str(file), "--dry-run", "method.name=finetune"]) == 0
    out, err = capsys.readouterr()
    rows = [line.split() for line in out.splitlines()]
    # task, classes, train images, test images, steps; 18, 18 and 8 images in batches of 4, twice
    assert [row[:5] for row in rows if row and row[0].isdigit()] == [
        ["1", "3", "18", "8", "10"], ["2", "3", "18", "10", "10"], ["3", "1", "8", "5", "4"],
    ]  # fmt: skip
    for words in ("finetune on", "1,130,211 parameters", "24 in all", "to fetch", "GB per rank"):
        assert words in out, out
    assert "error" not in err
    assert [entry.name for entry in file.parent.iterdir()] == [file.name]


def test_dry_run_counts_the_trainable_parameters_of_the_run(capsys, file):
    assert main(["--config", str(file), "--dry-run", "method.name=tppt_vt"]) == 0
    planned = [
        int(line.split()[5].replace(",", ""))
        for line in capsys.readouterr().out.splitlines()
        if line.strip()[:1].isdigit()
    ]
    assert main(["--config", str(file), "method.name=tppt_vt", "optim.epochs=1"]) == 0
    assert read_results(str(file.parent / "run")).content()["trainable_parameters"] == planned


def test_help_shows_an_example(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert "deepspeed --num_accelerators 2 pipeline/train.py --config configs/demo.yaml" in out
    assert "--dry-run" in out and "--print-config" in out and "key=value" in out


@pytest.mark.parametrize("arguments", [[], ["--config"], ["--config", "x", "--unknown"]])
def test_wrong_arguments_exit_with_two(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert re.fullmatch(r"error: .*; see `.* --help`\n", capsys.readouterr().err)


def test_finished_run_is_unchanged_and_another_run_is_refused(capsys, file):
    command = ["--config", str(file)]
    assert main(command) == 0
    before = {f: f.stat().st_mtime_ns for f in (file.parent / "run").rglob("*")}
    capsys.readouterr()

    assert main([*command, "data.workers=1", "log_every=7"]) == 0  # the same identity
    assert capsys.readouterr().out == f"{file.parent}/run is finished already: nothing to do\n"

    assert main([*command, "seed=2"]) == 2
    out, err = capsys.readouterr()
    assert (
        "holds another run: it was started with seed=1 instead of 2; choose another output=" in err
    )
    assert out == "" and err.count("\n") == 1
    assert {f: f.stat().st_mtime_ns for f in (file.parent / "run").rglob("*")} == before


def test_output_with_a_foreign_results_file_is_refused(capsys, file):
    (file.parent / "run").mkdir()
    (file.parent / "run" / "results.json").write_text("{}")
    assert main(["--config", str(file)]) == 2
    found = capsys.readouterr().err
    assert "does not hold results of schema 2 (" in found and "choose another output=" in found


def as_user(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command as a user does in a folder outside the repository."""
    environment = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "PYTHONPATH")}
    environment |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=250
    )


def test_script_runs_from_any_folder_and_returns_its_status(file):
    command = [sys.executable, str(ROOT / "pipeline/train.py"), "--config", "config.yaml"]
    process = as_user([*command, "seed=x"], file.parent)
    assert process.returncode == 2
    assert process.stderr.startswith("error: override 'seed=x': seed: ")
    assert process.stderr.count("\n") == 1 and process.stdout == ""


def test_launcher_returns_the_status_and_one_rank_prints_the_error(file):
    launcher = str(Path(sys.executable).with_name("deepspeed"))
    port = ["--master_port", str(free_ports(1)[0])]
    command = [launcher, "--num_accelerators", "2", *port, str(ROOT / "pipeline/train.py")]
    process = as_user([*command, "--config", "config.yaml", "data.global_batch=5"], file.parent)
    assert process.returncode == 2
    errors = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
    assert errors == [
        "error: data.global_batch: 5 images cannot be shared equally by 2 ranks; use a multiple of "
        "2 or another number of ranks"
    ]
    assert not (file.parent / "run").exists()


@pytest.mark.parametrize(
    ("rank", "local_rank", "override", "words"),
    [
        ("0", "0", "data.index=nowhere", "error: data.index: cannot read nowhere/index.json"),
        ("2", "0", "data.index=nowhere", "error: rank 2 on .*: data.index: cannot read nowhere/i"),
        ("2", "0", "seed=x", "error: rank 2 on .*: .*seed"),
        ("3", "1", "data.index=nowhere", None),  # the first rank of its node says it
        ("99", "1", "seed=1", "error: rank 99 on .*: .*RANK is 99 and WORLD_SIZE is 4"),
    ],
)
def test_each_node_reports_its_own_files(
    file, capsys, monkeypatch, rank, local_rank, override, words
):
    """must not be silent where rank 0 has no error, nor repeat that of a node on each rank"""
    for name, value in {"RANK": rank, "LOCAL_RANK": local_rank, "WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    assert main(["--config", str(file), override]) == 2
    err = capsys.readouterr().err
    assert re.match(words, err) and err.count("\n") == 1 if words else not err
