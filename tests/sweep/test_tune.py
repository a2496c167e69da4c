"""The command on a real Ray: every trial is a real DeepSpeed launch of the tiny run.

Two trials run at a time, on one core each. A disturbed sweep must end like an undisturbed one.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from pipeline import storage
from pipeline.config import dump_config, load_config
from pipeline.output.results import finished_results
from pipeline.sweep.trial_table import TrialRecord, read_records
from tests.probes import Held
from tests.processes import command, left_after, marked
from tests.services.nodes import wait_until
from tests.services.object_store import Bucket, free_ports
from tests.tiny import build_config
from tests.variants import VARIANTS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

ROOT = Path(__file__).parents[2]
MARK = "MARK_OF_THIS_SWEEP"
SECONDS = 580  # the machine may be busy
RANK = "train.py --local_rank"  # in the command line of a rank
ACTOR = "ray::ResourceTrainable"  # the name of the process that runs a trial
METRIC = "average_incremental_accuracy"
BREAKS = 1e30  # a learning rate that no run survives


@dataclass
class Sweep:
    """A sweep file and its output; every process of its command carries a mark."""

    file: Path
    output: str
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def hold(self) -> Path:
        """While this file exists, trials wait in their second task until they are stopped."""
        return self.file.with_name("hold")

    def start(self, *words: str, environment: Mapping[str, str] = {}) -> subprocess.Popen[str]:
        """Start the command; ``environment`` adds to that of this process."""
        on_cpu = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", MARK: self.mark}
        environment = {Held.HOLD: str(self.hold), **environment}
        return subprocess.Popen(
            [sys.executable, "-m", "pipeline.tune", "--config", str(self.file)]
            + [f"output={self.output}", *words],
            cwd=ROOT,
            env={**os.environ, **environment, **on_cpu},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, *words: str) -> tuple[str, str]:
        """Run the command to its end; returns its stdout and stderr."""
        return self.wait_for_end(self.start(*words))

    def wait_for_end(self, process: subprocess.Popen[str]) -> tuple[str, str]:
        """must succeed and leave nothing; returns stdout and stderr of the command"""
        try:
            output = process.communicate(timeout=SECONDS)
        finally:
            process.kill()
        assert process.returncode == 0, output
        self.assert_nothing_left()
        return output

    def assert_nothing_left(self) -> None:
        """must hold for processes of Ray, launchers and ranks"""
        assert left_after(MARK, self.mark, seconds=180) == []

    def processes(self, words: str) -> list[psutil.Process]:
        """The living processes of the command with ``words`` in their command line."""
        return [process for process in marked(MARK, self.mark) if words in command(process)]

    def reports(self, number: int) -> int:
        """The number of tasks that a trial has reported."""
        record = self.records().get(number)
        return len(record.reports) if record else 0

    def records(self) -> dict[int, TrialRecord]:
        """The trial table."""
        return {record.number: record for record in read_records(self.output)}

    def science(self) -> dict[int, dict[str, Any]]:
        """The trial table without values that depend on the clock."""
        timed = {"device_hours", "started", "ended"}
        return {
            number: record.model_dump(exclude=timed | {"reports"})
            | {"reports": [each.model_dump(exclude={"seconds"}) for each in record.reports]}
            for number, record in self.records().items()
        }


def wait_for(process: subprocess.Popen[str], condition: Callable[[], object]) -> None:
    """Return as soon as ``condition()`` holds, while the command runs."""
    came = wait_until(
        lambda: process.poll() is not None or condition(), timeout_s=SECONDS, every_s=0.1
    )
    assert came and process.poll() is None, process.communicate(timeout=60)


def kill_all(sweep: Sweep, words: str) -> None:
    """Kill these processes of the sweep, and return once they and their ranks have ended."""
    victims, ranks = sweep.processes(words), sweep.processes(RANK)
    assert victims
    for process in victims:
        process.kill()
    wait_until(lambda: not {*victims, *ranks} & {*sweep.processes("")}, timeout_s=60)


@pytest.fixture(scope="module")
def run_file(tiny_arch, tiny_shards, tmp_path_factory) -> Path:
    """Two tasks, the second of which can be held, with a snapshot every few steps."""
    name, label = f"{Held.__module__}:{Held.__name__}", "anchors kept as learned"
    options = VARIANTS[label].options["tppt_vt"]
    config = build_config(
        tiny_arch,
        tiny_shards,
        method={"name": name, "options": {name: options}},
        optim={"epochs": 10},
        engine={"timeout_s": 60},
        snapshot={"every_steps": 5},
    )
    file = tmp_path_factory.mktemp("run") / "tiny.yaml"
    file.write_text(dump_config(config))
    return file


@pytest.fixture(scope="module")
def write_sweep(run_file, tmp_path_factory) -> Callable[..., Path]:
    """Writes a sweep file; ``settings`` replace those of a plain one."""

    def write(**settings: Any) -> Path:
        tree = {
            "run": str(run_file),
            "space": {"optim.learning_rate": {"log_uniform": [1e-4, 1e31]}},
            "first": [{"optim.learning_rate": 1e-2}, {"optim.learning_rate": BREAKS}],
            "trials": 3,
            "sampler": {"name": "random", "seed": 5},
            "scheduler": {"name": "none"},
            "k": 2,
            "validation_fraction": 0.34,
            "max_concurrent": 2,
        }
        file = tmp_path_factory.mktemp("sweep") / "sweep.yaml"
        file.write_text(yaml.safe_dump(tree | settings))
        return file

    return write


@pytest.fixture(scope="module")
def undisturbed(write_sweep, tmp_path_factory) -> Sweep:
    """An undisturbed sweep of three trials; the second cannot work."""
    sweep = Sweep(write_sweep(), str(tmp_path_factory.mktemp("undisturbed") / "sweep"))
    sweep.finish()
    return sweep


def test_a_trial_that_cannot_work_is_one_failed_row(undisturbed):
    records = undisturbed.records()
    assert [records[number].status for number in range(3)].count("failed") >= 1
    assert records[0].status == "finished" and len(records[0].reports) == 2
    assert records[1].status == "failed"
    assert records[1].reason.startswith("task 1, step "), records[1].reason
    rows = (Path(undisturbed.output) / "trials.csv").read_text().splitlines()
    assert len(rows) == 4 and records[1].reason.split(";")[0] in "".join(rows)


def test_the_best_settings_are_a_run_that_states_their_origin(undisturbed):
    best = load_config(Path(undisturbed.output) / "best.yaml")
    assert best.evaluation.split == "test" and best.evaluation.exclude_tasks == 2
    assert best.data.validation_fraction == 0 and best.tasks.limit is None
    assert best.tuning.trials == 3 and best.tuning.protocol == "first_k_tasks"
    assert best.tuning.device_hours > 0
    winner = max(
        (r for r in undisturbed.records().values() if r.status == "finished"),
        key=lambda record: record.value(METRIC),
    )
    assert best.optim.learning_rate == winner.parameters["optim.learning_rate"]


def test_a_trial_is_an_ordinary_run_on_held_out_training_images(undisturbed):
    folder = Path(undisturbed.output) / "trials" / "000"
    results = finished_results(str(folder / "run-0"))
    evaluation = results.manifest.config["evaluation"]
    assert evaluation["split"] == "validation"
    assert "task 2 learned" in (folder / "run-0.log").read_text()
    assert (Path(undisturbed.output) / "sweep.html").exists()


def test_a_finished_sweep_does_nothing_again(undisturbed):
    before = undisturbed.science()
    output, _ = undisturbed.finish("--resume")
    assert "is the best of 3 with" in output
    assert undisturbed.science() == before


def test_a_sweep_whose_processes_are_killed_ends_like_an_undisturbed_one(
    undisturbed, write_sweep, tmp_path
):
    """must hold for ranks, trial processes of Ray, the command, and a second start beside it"""
    sweep = Sweep(write_sweep(), str(tmp_path / "sweep"))

    sweep.hold.touch()
    process = sweep.start()
    wait_for(process, lambda: sweep.reports(0) >= 1)
    process.send_signal(signal.SIGTERM)
    _, output = process.communicate(timeout=SECONDS)
    assert process.returncode == 75, output
    assert "error: stopped by SIGTERM" in output
    sweep.assert_nothing_left()
    assert sweep.records()[0].status == "running"
    log = Path(sweep.output) / "trials" / "000" / "run-0.log"
    assert "stopped by SIGTERM" in log.read_text()

    process = sweep.start("--resume")
    wait_for(process, lambda: sweep.processes(RANK))
    kill_all(sweep, RANK)
    wait_for(process, lambda: sweep.processes(RANK))  # the same trial, launched again
    kill_all(sweep, ACTOR)
    wait_for(process, lambda: sweep.processes(RANK))  # by another process of Ray
    process.kill()
    process.communicate(timeout=60)
    sweep.assert_nothing_left()

    ended = {n: r for n, r in sweep.records().items() if r.status != "running"}
    earlier = sweep.start("--resume")
    wait_for(earlier, lambda: sweep.processes(RANK))
    later = sweep.start("--resume", environment={Held.HOLD: ""})
    sweep.wait_for_end(later)
    _, output = earlier.communicate(timeout=60)
    assert earlier.returncode == 2 and "another start of the command has taken over" in output
    assert sweep.science() == undisturbed.science()
    assert all(sweep.records()[number] == record for number, record in ended.items())
    # The log of a launch whose trial was killed stays on its node, unless another launch follows.
    left = Path(tempfile.gettempdir(), f"tppt-launching-{os.getuid()}").glob("*/config.yaml")
    logs = [log, *(f.with_name("node-0.log") for f in left if sweep.output in f.read_text())]
    assert any("continuing at task" in each.read_text() for each in logs)


def test_a_weak_trial_is_stopped_early_and_results_go_to_object_storage(
    write_sweep, bucket: Bucket
):
    file = write_sweep(
        first=[{"optim.learning_rate": 1e-2}, {"optim.learning_rate": 1e3}],
        space={"optim.learning_rate": {"log_uniform": [1e-4, 1e4]}},
        trials=2,
        scheduler={"name": "asha", "grace_tasks": 1},
        max_concurrent=1,
    )
    sweep = Sweep(file, f"{bucket.url}/sweep")
    process = sweep.start()
    wait_for(process, lambda: 0 in sweep.records() and sweep.records()[0].status == "finished")
    sweep.hold.touch()  # the other one starts now: it must be stopped before its end
    sweep.wait_for_end(process)
    good, weak = sweep.records()[0], sweep.records()[1]
    assert good.status == "finished" and weak.status == "stopped", (good, weak)
    assert weak.reason == f"not among the best 1/2 after {weak.tasks_done} tasks"
    assert weak.tasks_done < 2
    names = {url.rsplit("/sweep/")[-1] for url in storage.list_files(sweep.output)}
    wanted = {"sweep.json", "trials.csv", "best.yaml", "sweep.html"}
    wanted |= {"trials/001/trial.json", "trials/001/run-0.log", "trials/000/run-0/results.json"}
    assert wanted <= names


@dataclass(frozen=True)
class RayCluster:
    """A Ray cluster that is older than any sweep: a head and one more node, with a core each."""

    environment: dict[str, str]  # for its users and for trials
    hold: Path  # see Sweep.hold
    nodes: list[subprocess.Popen[bytes]]

    @property
    def address(self) -> str:
        """The address of the head."""
        return self.environment["RAY_ADDRESS"]

    def on_node(self, number: int) -> list[psutil.Process]:
        """Every process of a node, trials included."""
        raylet = psutil.Process(self.nodes[number].pid)
        return [raylet, *raylet.children(recursive=True)]


@pytest.fixture(scope="module")
def ray_nodes(tmp_path_factory) -> Iterator[RayCluster]:
    """Two nodes; the last test may kill the second."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # short, for its sockets
    port = str(free_ports(1)[0])
    environment = os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": uuid.uuid4().hex * 2,
        "RAY_ADDRESS": f"127.0.0.1:{port}",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        MARK: uuid.uuid4().hex,
        Held.HOLD: str(folder / "hold"),
    }
    start = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--num-cpus=1"]
    start += ["--disable-usage-stats", "--object-store-memory=80000000"]
    # Several nodes on one host: every port must be a free one.
    start += ["--min-worker-port=0", "--max-worker-port=0"]
    start += ["--dashboard-agent-listen-port=0", "--dashboard-agent-grpc-port=0"]
    head = ["--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={folder}"]
    nodes = []
    try:
        for n, words in enumerate((head, [f"--address=127.0.0.1:{port}"])):
            log = tmp_path_factory.mktemp("ray") / f"{n}.log"
            with open(log, "w") as file:
                nodes.append(
                    subprocess.Popen(
                        # Different addresses: the command uses the node with its own.
                        [*start, f"--node-ip-address=127.0.0.{n + 1}", *words],
                        env=environment,
                        stdout=file,
                        stderr=file,
                    )
                )
            wait_until(
                lambda log=log, node=nodes[-1]: (
                    "Ray runtime started" in log.read_text() or node.poll() is not None
                ),
                timeout_s=SECONDS,
            )
            assert nodes[-1].poll() is None, log.read_text()
        yield RayCluster(environment, folder / "hold", nodes)
    finally:
        for node in reversed(nodes):
            node.terminate()
        for node in nodes:
            node.wait(60)
        left_after(MARK, environment[MARK], seconds=30)
        for process in marked(MARK, environment[MARK]):
            process.kill()
        shutil.rmtree(folder, ignore_errors=True)


def test_a_trial_on_two_nodes_is_the_run_of_two_ranks(ray_nodes, write_sweep, tmp_path):
    """must start a rank on each node of an existing cluster, and leave the cluster running"""
    file = write_sweep(first=[{"optim.learning_rate": 1e-2}], trials=1, resources={"nodes": 2})
    sweep = Sweep(file, str(tmp_path / "sweep"), ray_nodes.environment[MARK])
    process = sweep.start(f"address={ray_nodes.address}", environment=ray_nodes.environment)
    output = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, output
    assert left_after(MARK, sweep.mark, seconds=0), "the command must not end the cluster"
    assert not sweep.processes(RANK)
    results = finished_results(str(tmp_path / "sweep/trials/000/run-0"))
    assert results.manifest.world_size == 2
    assert (tmp_path / "sweep/trials/000/run-0.node-1.log").exists()


def test_trials_of_a_lost_node_resume_elsewhere(ray_nodes, undisturbed, write_sweep, tmp_path):
    """must give the same results, although nothing on that node could stop in order"""
    file = write_sweep(first=[{"optim.learning_rate": 1e-2}] * 2, trials=2)  # one on each node
    sweep = Sweep(file, str(tmp_path / "sweep"), ray_nodes.environment[MARK])

    def half_way() -> list[Path]:
        """The outputs of runs on the second node that have a snapshot after some steps."""
        words = (r.cmdline() for r in ray_nodes.on_node(1) if RANK in command(r))
        configs = (load_config(each[each.index("--config") + 1]) for each in words)
        outputs = (Path(config.output) for config in configs)
        return [o for o in outputs if list(o.glob("snapshots/*-step-*[1-9]*/state.json"))]

    ray_nodes.hold.touch()
    process = sweep.start(f"address={ray_nodes.address}", environment=ray_nodes.environment)
    wait_for(process, half_way)
    lost = half_way()
    for victim in ray_nodes.on_node(1):
        victim.kill()
    ray_nodes.hold.unlink()
    output = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, output
    wanted = undisturbed.science()[0]
    for number, found in sweep.science().items():
        assert found == wanted | {"number": number}
    assert lost and "continuing at task" in lost[0].with_suffix(".log").read_text()
