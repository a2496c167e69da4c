"""A real SLURM for the tests: a head and several nodes on separate networks.

munged, slurmctld and the slurmds run in the foreground on :class:`~tests.services.nodes.Nodes` and
end with them; all their files are in one folder. Memory and processors are not limited, because
that needs cgroups.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.services.nodes import PATH, Node, Nodes, wait_until

PROGRAMS = ("unshare", "nsenter", "mount", "ip", "munged", "slurmctld", "slurmd", "sbatch")

# cred_expire: a requeued job waits until its credential expires, by default after two minutes.
# ReturnToService: a killed node is used again as soon as its slurmd is back.
CONFIG = """\
ClusterName=tests
SlurmctldHost=head
SlurmUser=root
SlurmctldPort=6817
SlurmdPort=6818
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
GresTypes=gpu
ReturnToService=2
SlurmdTimeout=30
MessageTimeout=30
KillWait=20
MinJobAge=3600
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=sched_interval=2,batch_sched_delay=0,bf_interval=2
NodeName={nodes} CPUs=64 RealMemory=8000 Gres=gpu:8 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES PriorityTier=10 State=UP
PartitionName=low Nodes=ALL PriorityTier=1 State=UP
"""
ENDED = ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL", "OUT_OF_MEMORY")
GRES = "NodeName={nodes} Name=gpu File={folder}/gpu[0-7]\n"


class Slurm:
    """A cluster of the nodes ``n1`` … with all files in ``folder``; use as a context manager.

    The path of the folder must be short: a Unix socket is in it.
    """

    def __init__(self, folder: Path, n_nodes: int) -> None:
        self.folder = folder
        names = [f"n{number}" for number in range(1, n_nodes + 1)]
        self.nodes = Nodes(folder, ["head", *names])
        values = {"folder": folder, "nodes": f"n[1-{n_nodes}]"}
        (folder / "slurm.conf").write_text(CONFIG.format(**values))
        (folder / "gres.conf").write_text(GRES.format(**values))
        for number in range(8):  # a copy of /dev/null stands for a GPU
            os.mknod(folder / f"gpu{number}", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        for name in ("state", *(f"spool.{name}" for name in names)):
            (folder / name).mkdir()
        self._environment = {"PATH": PATH, "SLURM_CONF": str(folder / "slurm.conf")}

    def __enter__(self) -> Slurm:
        self.nodes.__enter__()
        try:
            self._start_munge()
            self._start(self.nodes["head"], "slurmctld", "-D")
            for node in self.compute:
                self._start(node, "slurmd", "-D", "-N", node.name)
            if not wait_until(self._all_idle, timeout_s=60):
                logs = [f"{log.name}: {log.read_text()[-1500:]}" for log in self._logs()]
                raise RuntimeError("\n".join(["the nodes of SLURM are not idle", *logs]))
        except BaseException:
            self.nodes.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.nodes.__exit__()

    @property
    def compute(self) -> list[Node]:
        """The nodes on which jobs run."""
        return [node for node in self.nodes if node.name != "head"]

    def run(
        self,
        *words: str,
        folder: Path | str = "/",
        environment: Mapping[str, str] | None = None,
        timeout_s: float = 60,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command of SLURM on the head; jobs get its ``environment``."""
        environment = self._environment | dict(environment or {})
        return self.nodes["head"].run(
            words, folder=folder, environment=environment, timeout_s=timeout_s
        )

    def do(self, *words: str) -> None:
        """Run a command of SLURM that must succeed."""
        done = self.run(*words)
        assert done.returncode == 0, done.stdout

    def submit(
        self, *words: str, folder: Path | str, environment: Mapping[str, str] | None = None
    ) -> str:
        """Submit a batch file with ``sbatch``; returns the id of the job."""
        done = self.run("sbatch", "--parsable", *words, folder=folder, environment=environment)
        assert done.returncode == 0, done.stdout
        return done.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """The fields of ``scontrol show job``: ``JobState``, ``Restarts``, ``ExitCode``, …"""
        text = self.run("scontrol", "show", "job", number).stdout
        return dict(re.findall(r"(\w+)=(\S*)", text))

    def minutes(self, number: str) -> int:
        """The full minutes since the last start of a job."""
        elapsed = re.match(r"(?:(\d+)-)?(\d+):(\d+)", self.job(number)["RunTime"])
        days, hours, minutes = (int(part or 0) for part in elapsed.groups())
        return (days * 24 + hours) * 60 + minutes

    def wait(self, number: str, *states: str, timeout_s: float) -> dict[str, str]:
        """The fields of the job as soon as it is in one of ``states``.

        Raises:
            TimeoutError: it was not in time; the message gives its fields.
        """
        if not wait_until(
            lambda: self.job(number).get("JobState") in states, timeout_s=timeout_s, every_s=0.2
        ):
            raise TimeoutError(f"job {number} is not {' or '.join(states)}: {self.job(number)}")
        return self.job(number)

    def cancel_all(self) -> None:
        """End every job and wait until the nodes are free again."""
        self.run("scancel", "--quiet", "--user=root")
        if not wait_until(self._all_idle, timeout_s=60, every_s=0.2):
            raise TimeoutError(self.run("squeue").stdout)

    def _start_munge(self) -> None:
        """Start one munged; all nodes reach it through the file system."""
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        places = {"key-file": "key", "socket": "sock", "pid-file": "pid", "seed-file": "seed"}
        options = [f"--{option}={self.folder}/munge.{end}" for option, end in places.items()]
        log = f"--log-file={self.folder}/munged-own.log"
        # --force: munged would refuse the owner and the permissions of the folder.
        self._start(self.nodes["head"], "munged", "--foreground", "--force", *options, log)
        if not wait_until((self.folder / "munge.sock").exists, timeout_s=60):
            text = (self.folder / "head.munged.log").read_text()
            raise RuntimeError(f"munged did not start: {text}")

    def _start(self, node: Node, name: str, *options: str) -> None:
        """Start a daemon by its full path, which it needs to start its children."""
        with open(self.folder / f"{node.name}.{name}.log", "a") as log:
            program = shutil.which(name, path=PATH)
            node.start([program, *options], environment=self._environment, stdout=log, stderr=log)

    def _all_idle(self) -> bool:
        states = self.run("sinfo", "-h", "-N", "-p", "main", "-o", "%T").stdout.split()
        return states == ["idle"] * len(self.compute)

    def _logs(self) -> list[Path]:
        return sorted(self.folder.glob("*.*.log"))
