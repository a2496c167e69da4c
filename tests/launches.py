"""One tiny run that is started in many ways; all of them must learn the same."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import dump_config
from pipeline.events import VARIABLE, read_events
from tests.chaos.comparison import RunContent, read_run
from tests.probes import Held
from tests.services.nodes import PATH, Node, Nodes, wait_until
from tests.tiny import build_config
from tests.variants import VARIANTS

ROOT = Path(__file__).parents[1]
PROGRAMS = Path(sys.executable).parent
TRAIN = str(ROOT / "pipeline" / "train.py")
RANK = r"^\S*python\S* .*(train\.py|pipeline\.train) .*--config"  # the command line of a rank
HELD = f"{Held.__module__}:{Held.__name__}"
PORT = "29501"  # nodes do not share ports
SECONDS = 240  # no start of two ranks took longer on two busy cores


def environment() -> dict[str, str]:
    """The environment of every process of a run; more threads would round sums in another order."""
    return {
        "PATH": f"{PROGRAMS}:{PATH}",
        "HOME": os.environ.get("HOME", "/"),
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
    }


@dataclass(frozen=True)
class TinyRun:
    """A configuration and the folder of its run."""

    folder: Path
    config: Path

    @property
    def output(self) -> Path:
        """The output of the run."""
        return self.folder / "run"

    @property
    def arguments(self) -> list[str]:
        """The arguments of the command with any launcher."""
        return ["--config", str(self.config), f"output={self.output}"]

    @property
    def hold(self) -> Path:
        """The file that holds the run, see :class:`tests.probes.Held`."""
        return self.folder / "hold"

    def hold_at(self, task: int, steps: int) -> None:
        """Let each start wait after so many of its steps in a task, until it must stop."""
        self.hold.write_text(f"{task} {steps}")

    def start(self, node: Node, *words: str) -> Started:
        """Start a command on a node, in this folder."""
        log = self.folder / f"{node.name}-{len(list(self.folder.glob('*.log')))}.log"
        with open(log, "x") as file:
            process = node.start(
                words,
                folder=self.folder,
                environment=environment()
                | {VARIABLE: str(event_file(log)), Held.HOLD: str(self.hold)},
                stdout=file,
                stderr=file,
            )
        return Started(process, log)

    def start_on_each(self, nodes: Nodes, *overrides: str) -> list[Started]:
        """Start ``deepspeed`` on each node with one rank there; rank 0 is on the first node."""
        hostfile = self.folder / "hostfile"
        hostfile.write_text("".join(f"{node.name} slots=1\n" for node in nodes))
        place = ("--hostfile", str(hostfile), "--master_addr", "n1", "--master_port", PORT)
        return [
            self.start(
                node, "deepspeed", "--no_ssh", "--node_rank", str(rank), *place,
                TRAIN, *self.arguments, *overrides,
            )
            for rank, node in enumerate(nodes)
        ]  # fmt: skip


@dataclass(frozen=True)
class Started:
    """A started command, its log and its events."""

    process: subprocess.Popen[bytes]
    log: Path

    def status(self, *, timeout_s: float = SECONDS) -> int:
        """Wait for the end of the command; returns its exit status."""
        return self.process.wait(timeout_s)

    def assert_succeeds(self) -> None:
        """must end with status 0"""
        assert self.status() == 0, self.log.read_text()[-4000:]

    def wait_for_task(self, task: int) -> None:
        """Return as soon as rank 0 has done a step of ``task``, from 0, or of a later one."""

        def is_there() -> bool:
            return any(step["task"] >= task for step in self._events("step"))

        wait_until(
            lambda: is_there() or self.process.poll() is not None, timeout_s=SECONDS, every_s=0.01
        )
        assert is_there(), self.log.read_text()[-4000:]

    def has_resumed(self) -> bool:
        """Whether rank 0 continued from a snapshot."""
        return bool(self._events("resumed"))

    def _events(self, name: str) -> list[dict[str, Any]]:
        events, _ = read_events(event_file(self.log))
        return [event for event in events if event["event"] == name]


def event_file(log: Path) -> Path:
    """The file for the events of a command with this log."""
    return log.with_suffix(".events.jsonl")


@pytest.fixture(scope="session")
def tiny_run_config(tiny_arch: str, tiny_shards: str, tmp_path_factory) -> Path:
    """A run of three tasks with every kind of learned tensor, for two ranks."""
    options = VARIANTS["anchors kept as learned"].options["tppt_vt"]
    config = build_config(
        tiny_arch,
        tiny_shards,
        method={"name": HELD, "options": {HELD: options}},
        engine={"timeout_s": 60},
    )
    file = tmp_path_factory.mktemp("config") / "tiny.yaml"
    file.write_text(dump_config(config))
    return file


@pytest.fixture
def tiny_run(tiny_run_config: Path, tmp_path: Path) -> TinyRun:
    """That run with an output for one test."""
    return TinyRun(tmp_path, tiny_run_config)


@pytest.fixture(scope="session")
def undisturbed(nodes: Nodes, tiny_run_config: Path, tmp_path_factory) -> RunContent:
    """The results of two ranks on one node under the plainest launcher."""
    run = TinyRun(tmp_path_factory.mktemp("undisturbed"), tiny_run_config)
    launcher = ("deepspeed", "--num_accelerators", "2", TRAIN)
    run.start(nodes["n1"], *launcher, *run.arguments).assert_succeeds()
    return read_run(run.output)
