"""Machines for the tests: each has its own address, host name, processes and sshd.

A node is a set of Linux namespaces (network, processes, mounts, host name, IPC) of one shell, which
is process 1 in them. When the shell dies, as in a power failure, the kernel kills all processes of
the node. It also dies with this Python, which keeps its standard input open. A bridge in a separate
namespace connects the nodes. The network of the machine, its ``/etc`` and ``~/.ssh`` do not change:
a node mounts its own files over them. All nodes have the same file system.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

PROGRAMS = ("unshare", "nsenter", "mount", "ip", "sshd", "ssh-keygen", "ssh", "pdsh")
NAMESPACES = ("--net", "--uts", "--mount", "--ipc")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# Process 1 of a node. Not `ip netns exec`: it remounts /sys without the cgroup tree, which slurmd
# needs. `wait` also collects orphans, as an init must.
BOOT = """\
set -e
name=$1 folder=$2
hostname "$name"
mount --bind "$folder/hosts" /etc/hosts
mount -t tmpfs tmpfs /run
mkdir /run/sshd
mountpoint -q /sys/fs/cgroup || mount -t tmpfs tmpfs /sys/fs/cgroup
if [ -e "$folder/ssh_config" ]; then mount --bind "$folder/ssh_config" /etc/ssh/ssh_config; fi
ip link set lo up
echo up
exec 3<&0 </dev/null
cat <&3 >/dev/null & wait $!
"""

SSHD_CONFIG = """\
ListenAddress {address}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/key.pub
PidFile none
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
StrictModes no
MaxStartups 100
"""

SSH_CONFIG = """\
Host *
  IdentityFile {folder}/key
  IdentitiesOnly yes
  UserKnownHostsFile {folder}/known_hosts
  GlobalKnownHostsFile /dev/null
  StrictHostKeyChecking yes
"""


@functools.cache
def why_unavailable(programs: tuple[str, ...] = PROGRAMS) -> str | None:
    """The reason why this machine can have no nodes, or None if it can."""
    if sys.platform != "linux":
        return "nodes are made of Linux namespaces"
    if os.geteuid() != 0:
        return "only root can make network namespaces"
    if missing := [name for name in programs if shutil.which(name, path=PATH) is None]:
        return f"not installed: {', '.join(missing)}; run `bash cluster/setup.sh --tests`"
    script = "mount -t tmpfs tmpfs /run && ip link add br0 type bridge && ip link add type veth"
    command = ["unshare", *NAMESPACES, "--pid", "--fork", "--mount-proc", "sh", "-c", script]
    probe = subprocess.run(command, env={"PATH": PATH}, capture_output=True, text=True)
    return f"no namespaces here: {probe.stderr.strip()}" if probe.returncode else None


class Node:
    """One machine; call ``boot`` before use."""

    def __init__(self, name: str, address: str, folder: Path) -> None:
        self.name, self.address, self.folder = name, address, folder
        self._holder: subprocess.Popen[str] | None = None
        self._space = 0  # the number of its process namespace
        self._started: list[subprocess.Popen[Any]] = []

    def boot(self) -> None:
        """Start the node, without a network.

        Raises:
            RuntimeError: it did not start; the message gives its log.
        """
        unshare = ["unshare", *NAMESPACES, "--pid", "--fork", "--kill-child", "--mount-proc"]
        with open(self.folder / f"{self.name}.log", "a") as log:
            self._holder = subprocess.Popen(
                [*unshare, "sh", "-c", BOOT, "node", self.name, str(self.folder)],
                env={"PATH": PATH},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        if self._holder.stdout.readline() != "up\n":
            self.kill()
            log = (self.folder / f"{self.name}.log").read_text()
            raise RuntimeError(f"node {self.name} did not start: {log}")
        self._space = os.stat(f"/proc/{self.pid}/ns/pid_for_children").st_ino

    @property
    def pid(self) -> int:
        """The id of the process that has the namespaces of this node."""
        return self._holder.pid

    @property
    def is_up(self) -> bool:
        """Whether it was booted and has not been killed since."""
        return self._holder is not None

    def start(
        self,
        words: Sequence[str],
        *,
        folder: Path | str = "/",
        environment: Mapping[str, str] | None = None,
        **options: Any,
    ) -> subprocess.Popen[Any]:
        """Start a command here; signals to the returned process do not reach it."""
        # The process namespace is that of the children of the holder, not its own.
        inside = [*NAMESPACES, f"--pid=/proc/{self.pid}/ns/pid_for_children"]
        command = ["nsenter", f"--target={self.pid}", *inside, "env", f"--chdir={folder}", *words]
        environment = {"PATH": PATH} if environment is None else dict(environment)
        process = subprocess.Popen(
            command, env=environment, **{"stdin": subprocess.DEVNULL} | options
        )
        self._started.append(process)
        return process

    def run(
        self, words: Sequence[str], *, timeout_s: float = 60, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a command here to its end; its output is text."""
        process = self.start(
            words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
        )
        try:
            output, _ = process.communicate(timeout=timeout_s)
        finally:
            process.kill()
        return subprocess.CompletedProcess(list(words), process.returncode, output)

    def processes(self, pattern: str) -> list[int]:
        """Ids, as seen by this Python, of the processes here with a matching command line."""
        return [pid for pid, command in self._all_processes() if re.search(pattern, command)]

    def signal(self, number: signal.Signals, pattern: str) -> list[int]:
        """Send a signal to the processes that :meth:`processes` finds; returns their ids."""
        found = self.processes(pattern)
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        return found

    def kill(self) -> None:
        """Pull the plug: all processes of the node are killed at once."""
        if self._holder is None:
            return
        self.pull_plug()
        wait_until(lambda: not self._all_processes(), timeout_s=30)
        self._holder.communicate()
        self._holder = None
        for process in self._started:
            process.kill()
            process.communicate()
        self._started.clear()

    def pull_plug(self) -> None:
        """:meth:`kill` without waiting until the kernel has ended all processes."""
        if self._holder is not None:
            self._holder.kill()

    def _all_processes(self) -> list[tuple[int, str]]:
        """Id, as seen by this Python, and command line of every process here, except zombies."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has ended
                if os.stat(folder / "ns" / "pid").st_ino == self._space:
                    command = (folder / "cmdline").read_bytes().decode(errors="replace")
                    found.append((int(folder.name), command.replace("\0", " ")))
        return found


class Nodes:
    """Machines ``names`` on one network, each with an sshd if ``ssh``; use as a context manager.

    All their files are in ``folder``.
    """

    def __init__(self, folder: Path, names: Sequence[str], *, ssh: bool = False) -> None:
        self.folder = folder
        self._ssh = ssh
        self._switch = Node("switch", "", folder)
        self._nodes = {
            name: Node(name, f"10.77.0.{number}", folder)
            for number, name in enumerate(names, start=11)
        }

    def __enter__(self) -> Nodes:
        hosts = [f"{node.address} {name}\n" for name, node in self._nodes.items()]
        (self.folder / "hosts").write_text("127.0.0.1 localhost\n" + "".join(hosts))
        if self._ssh:
            self._configure_ssh()
        try:
            self._switch.boot()
            self._network("link add br0 type bridge")
            self._network("link set br0 up")
            for name in self._nodes:
                self.boot(name)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        everything = (*self._nodes.values(), self._switch)
        for node in everything:
            node.pull_plug()
        for node in everything:
            node.kill()

    def __getitem__(self, name: str) -> Node:
        return self._nodes[name]

    def __iter__(self) -> Iterator[Node]:
        return iter(self._nodes.values())

    def boot(self, name: str) -> None:
        """Start a node that is down and connect it."""
        node = self[name]
        node.boot()
        number = node.address.rpartition(".")[2]
        # The address of the card does not change: others would use the old one for a while.
        card = f"eth0 address 02:00:00:00:00:{number}"
        self._network(f"link del to-{name}", check=False)
        self._network(f"link add to-{name} type veth peer name {card} netns {node.pid}")
        self._network(f"addr add {node.address}/24 dev eth0", node)
        self._network("link set eth0 up", node)
        self._network(f"link set to-{name} master br0 up")
        if self._ssh:
            self._start_sshd(node)

    def cut(self, name: str) -> None:
        """Lose all packets to and from a node silently: both ends of its link stay up."""
        self._network(f"link set to-{name} nomaster")

    def heal(self, name: str) -> None:
        """Undo :meth:`cut`."""
        self._network(f"link set to-{name} master br0")

    def _network(self, words: str, node: Node | None = None, *, check: bool = True) -> None:
        """``ip`` in the network of a node, by default the switch; process ids as in this Python."""
        enter = ["nsenter", f"--net=/proc/{(node or self._switch).pid}/ns/net"]
        done = subprocess.run(
            [*enter, "ip", *words.split()], env={"PATH": PATH}, capture_output=True, text=True
        )
        if check and done.returncode:
            raise RuntimeError(f"ip {words}: {done.stderr}")

    def _configure_ssh(self) -> None:
        for name in ("key", "host_key"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.folder / name]
            subprocess.run(command, check=True)
        public = (self.folder / "host_key.pub").read_text()
        known = [f"{name},{node.address} {public}" for name, node in self._nodes.items()]
        (self.folder / "known_hosts").write_text("".join(known))
        (self.folder / "ssh_config").write_text(SSH_CONFIG.format(folder=self.folder))

    def _start_sshd(self, node: Node) -> None:
        config, log = self.folder / f"{node.name}.sshd", self.folder / f"{node.name}.sshd.log"
        config.write_text(SSHD_CONFIG.format(address=node.address, folder=self.folder))
        with open(log, "w") as file:
            sshd = shutil.which("sshd", path=PATH)  # it requires its full path
            node.start([sshd, "-D", "-e", "-f", str(config)], stderr=file)
        listening = wait_until(lambda: "listening" in log.read_text(), timeout_s=60)
        if not listening:
            raise RuntimeError(f"sshd of {node.name} does not listen: {log.read_text()}")


def wait_until(condition: Callable[[], object], *, timeout_s: float, every_s: float = 0.05) -> bool:
    """Whether ``condition()`` came true in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(every_s)
    return True
