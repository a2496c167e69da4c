"""A real S3-compatible server for the tests: OpenStack Swift with its s3api, on loopback.

Five processes with one replica and no special rights: three storage servers (account, container,
object), the proxy for S3, and memcached if it is installed. The data are in one folder and survive
a kill of every process. Swift is installed in a separate environment, ``.venv-s3``.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pwd
import random
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import s3fs

HOST = "127.0.0.1"
STORAGE_SERVERS = ("account", "container", "object")
PROGRAMS = Path(__file__).parents[2] / ".venv-s3" / "bin"

SERVER_CONFIG = """\
[DEFAULT]
bind_ip = {host}
bind_port = {port}
workers = 0
user = {user}
swift_dir = {folder}
devices = {folder}/devices
mount_check = false
fallocate_reserve = 0
log_level = WARNING

[pipeline:main]
pipeline = {pipeline}

[app:{name}-server]
use = egg:swift#{name}
disk_chunk_size = 1048576
network_chunk_size = 1048576
object_chunk_size = 1048576
client_chunk_size = 1048576
"""

# A storage server that failed once is tried again after a second; the default is a minute.
PROXY_CONFIG = """\
account_autocreate = true
error_suppression_interval = 1

[filter:catch_errors]
use = egg:swift#catch_errors

[filter:cache]
use = egg:swift#memcache
memcache_servers = {host}:{memcached_port}

[filter:s3api]
use = egg:swift#s3api
location = us-east-1

[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = {secret} .admin

[filter:copy]
use = egg:swift#copy

[filter:slo]
use = egg:swift#slo
"""

# One process for the three rings, in which the proxy finds the storage servers.
RING_PROGRAM = """\
import sys
from swift.common.ring import RingBuilder

folder, host, *servers = sys.argv[1:]
for name, port in (server.split("=") for server in servers):
    builder = RingBuilder(part_power=4, replicas=1, min_part_hours=0)
    address = {"ip": host, "port": int(port), "replication_ip": host, "replication_port": int(port)}
    builder.add_dev(
        {"id": 0, "region": 1, "zone": 1, "weight": 1, "device": "d1", "meta": "", **address}
    )
    builder.rebalance()
    builder.get_ring().save(f"{folder}/{name}.ring.gz")
"""

SWIFT_CONFIG = """\
[swift-hash]
swift_hash_path_suffix = tests

[storage-policy:0]
name = single
default = yes
"""


@dataclass(frozen=True)
class Access:
    """The endpoint of the store and the credentials of a client."""

    endpoint: str
    key: str
    secret: str
    region: str = "us-east-1"

    def environment(self) -> dict[str, str]:
        """Variables with which s3fs, botocore and any subprocess find this store, and no other.

        Buckets are addressed by path without an option, since the host is an IP number.
        """
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": self.region,
            # The profile of a developer and the role of a cloud machine must have no effect.
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def through(self, port: int) -> Access:
        """The same credentials at another port of this host, such as the port of a proxy."""
        return replace(self, endpoint=f"http://{HOST}:{port}")

    def file_system(self, *, attempts: int = 1, timeout_s: float = 5) -> s3fs.S3FileSystem:
        """A new client without a cache, which by default raises at the first fault."""
        client = {"endpoint_url": self.endpoint, "region_name": self.region}
        config = {
            "retries": {"total_max_attempts": 1},
            "connect_timeout": timeout_s,
            "read_timeout": timeout_s,
        }
        file_system = s3fs.S3FileSystem(
            key=self.key,
            secret=self.secret,
            client_kwargs=client,
            config_kwargs=config,
            use_listings_cache=False,
            skip_instance_cache=True,
        )
        file_system.retries = attempts
        return file_system


@dataclass(frozen=True)
class Bucket:
    """A bucket for one test alone."""

    name: str
    access: Access

    @property
    def url(self) -> str:
        """The URL of the bucket."""
        return f"s3://{self.name}"


def why_unavailable(folder: Path) -> str | None:
    """The reason why no store can run with its data in ``folder``, or None."""
    if not (PROGRAMS / "swift-proxy-server").exists():
        return "Swift is not installed in .venv-s3; run `bash cluster/setup.sh --tests`"
    probe = folder / "attribute-probe"
    probe.touch()
    try:
        os.setxattr(probe, "user.swift.probe", b"1")
    except OSError as error:
        return f"{folder} cannot hold the extended attributes that Swift needs ({error.strerror})"
    finally:
        probe.unlink()
    return None


class ObjectStore:
    """One S3 server with its data in ``folder``; use as a context manager.

    Ports and credentials stay the same after a restart.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        names = (*STORAGE_SERVERS, "proxy", "memcached")
        self.ports = dict(zip(names, free_ports(len(names)), strict=True))
        endpoint = f"http://{HOST}:{self.ports['proxy']}"
        self.access = Access(endpoint=endpoint, key="test:tester", secret=secrets.token_hex(16))
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._watchdog: subprocess.Popen[bytes] | None = None
        self._configure()

    def __enter__(self) -> ObjectStore:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()
        if self._watchdog is not None:
            self._watchdog.communicate()

    @functools.cached_property
    def client(self) -> s3fs.S3FileSystem:
        """A shared client for the preparations of tests; a new one takes half a second."""
        return self.access.file_system(timeout_s=30)

    def start(self, *, timeout_s: float = 60) -> None:
        """Start every process; returns when all of them listen.

        Raises:
            RuntimeError: a process ended or did not listen in time; the message has its log.
        """
        for name, command in self._commands().items():
            with open(self.folder / f"{name}.log", "ab") as log:
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
                )
            self._record(name, process)
        deadline = time.monotonic() + timeout_s
        for name, process in self.processes.items():
            while not is_listening(self.ports[name]):
                if process.poll() is not None or time.monotonic() > deadline:
                    self.stop()
                    log = (self.folder / f"{name}.log").read_text()[-2000:]
                    raise RuntimeError(f"the store's {name} server did not start: {log}")
                time.sleep(0.02)

    def stop(self) -> None:
        """End every process, by force after ten seconds; the data remain."""
        for process in self.processes.values():
            process.send_signal(signal.SIGCONT)
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._forget()

    def kill(self) -> None:
        """End every process as a power failure would."""
        for process in self.processes.values():
            process.kill()
            process.wait()
        self._forget()

    def restart(self, *, down_s: float = 0) -> None:
        """Stop, wait for ``down_s`` seconds, and start again with the same data."""
        self.stop()
        time.sleep(down_s)
        self.start()

    @contextlib.contextmanager
    def frozen(self, name: str) -> Iterator[None]:
        """Suspend the process ``name`` ("proxy", "object", …): it neither answers nor ends."""
        self.processes[name].send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.processes[name].send_signal(signal.SIGCONT)

    def _configure(self) -> None:
        """Write the configuration of every server, and the rings."""
        (self.folder / "devices" / "d1").mkdir(parents=True)
        (self.folder / "swift.conf").write_text(SWIFT_CONFIG)
        values = {"host": HOST, "folder": self.folder, "user": user_name()}
        for name in STORAGE_SERVERS:
            text = SERVER_CONFIG.format(
                name=name, port=self.ports[name], pipeline=f"{name}-server", **values
            )
            (self.folder / f"{name}.conf").write_text(text)
        server = SERVER_CONFIG.format(
            name="proxy",
            port=self.ports["proxy"],
            pipeline="catch_errors cache s3api tempauth copy slo proxy-server",
            **values,
        )
        proxy = PROXY_CONFIG.format(
            host=HOST, memcached_port=self.ports["memcached"], secret=self.access.secret
        )
        (self.folder / "proxy.conf").write_text(server + proxy)
        servers = [f"{name}={self.ports[name]}" for name in STORAGE_SERVERS]
        command = [PROGRAMS / "python", "-c", RING_PROGRAM, self.folder, HOST, *servers]
        subprocess.run(command, check=True)

    def _commands(self) -> dict[str, list[str]]:
        commands = {
            name: [str(PROGRAMS / f"swift-{name}-server"), f"{self.folder}/{name}.conf", "verbose"]
            for name in (*STORAGE_SERVERS, "proxy")
        }
        if memcached := shutil.which("memcached"):
            options = f"-u {user_name()} -l {HOST} -p {self.ports['memcached']} -m 32"
            commands["memcached"] = [memcached, *options.split()]
        return commands

    def _record(self, name: str, process: subprocess.Popen[bytes]) -> None:
        """Record a process that the watchdog kills when this Python, its input, ends."""
        self.processes[name] = process
        (self.folder / f"{name}.pid").write_text(f"{process.pid}\n")
        if self._watchdog is None:
            script = f"cat >/dev/null; kill -KILL $(cat {self.folder}/*.pid)"
            self._watchdog = subprocess.Popen(
                ["sh", "-c", script], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
            )

    def _forget(self) -> None:
        self.processes.clear()
        for file in self.folder.glob("*.pid"):
            file.unlink()


def user_name() -> str:
    """The user of this process, who also runs the servers."""
    return pwd.getpwuid(os.getuid()).pw_name


def free_ports(count: int) -> list[int]:
    """Ports of this host without a listener, outside the range of outgoing connections."""
    found: list[int] = []
    while len(found) < count:
        # Below 32768, where Linux starts to number outgoing connections: a server that is down for
        # a while must find its port free again.
        port = random.SystemRandom().randrange(15000, 32000)
        with socket.socket() as candidate:
            if port not in found and candidate.connect_ex((HOST, port)) != 0:
                found.append(port)
    return found


def is_listening(port: int) -> bool:
    """Whether something accepts connections on ``port`` of this host."""
    with socket.socket() as client:
        return client.connect_ex((HOST, port)) == 0
