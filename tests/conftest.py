"""Fixtures that several test modules share."""

from __future__ import annotations

import functools
import gc
import logging
import os

# One thread per process, of this process and of those that tests start: two pytest workers with two
# threads each would wait for each other, and bits depend on the number of threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import shutil
import signal
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3fs

from tests.services.browser import Browser
from tests.services.browser import why_unavailable as why_no_browser
from tests.services.fault_proxy import FaultProxy
from tests.services.nodes import Nodes
from tests.services.nodes import why_unavailable as why_no_nodes
from tests.services.object_store import Bucket, ObjectStore, why_unavailable
from tests.services.slurm import PROGRAMS as SLURM_PROGRAMS
from tests.services.slurm import Slurm

# Until all tests are collected: a million objects that stay would be searched again and again.
gc.disable()

pytest_plugins = ["tests.tiny", "tests.launches", "tests.interruptions", "tests.fake_gpu"]

# A shell starts background jobs with SIGINT ignored, and their children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def skip_or_fail(reason: str | None, *, at_import: bool = False) -> None:
    """Skip for a reason; fail instead where REQUIRE_SERVICES says that everything is installed.

    ``at_import``: skip a whole module, while it is imported.
    """
    if reason and "REQUIRE_SERVICES" in os.environ:
        pytest.fail(reason)
    if reason:
        pytest.skip(reason, allow_module_level=at_import)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Let workers start with the files of slow tests, so that they end at the same time."""
    if hasattr(config, "workerinput"):
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: item.path not in slow)


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    """Collect garbage from now on, of the tests only."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def one_tokenizer() -> Iterator[None]:
    """Reads the vocabulary of a model once: it takes as long as a step, and nothing changes it."""
    import open_clip  # after gc.disable()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(open_clip, "get_tokenizer", functools.cache(open_clip.get_tokenizer))
        yield


@pytest.fixture(autouse=True)
def log_as_before() -> Iterator[None]:
    """Reset the log around each test: a command that runs in this process sets it up."""
    _reset_log()  # also after the fixtures of a module or of all tests
    yield
    _reset_log()


def _reset_log() -> None:
    package = logging.getLogger("pipeline")
    package.handlers.clear()
    package.propagate = True
    package.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def object_store() -> Iterator[ObjectStore]:
    """The S3 server of this test run; a test that stops it must start it again."""
    folder = Path(tempfile.mkdtemp(prefix="object-store-"))
    try:
        skip_or_fail(why_unavailable(folder))
        with ObjectStore(folder) as store:
            yield store
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def bucket(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """An empty bucket; the environment gives this process and its children access to its store."""
    made = Bucket(name=f"test-{uuid.uuid4().hex[:12]}", access=object_store.access)
    object_store.client.mkdir(made.name)
    for name, value in made.access.environment().items():
        monkeypatch.setenv(name, value)
    # fsspec caches clients by their arguments and ignores a change of the environment.
    s3fs.S3FileSystem.clear_instance_cache()
    yield made
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A browser for all tests of pages."""
    skip_or_fail(why_no_browser())
    with Browser() as opened:
        yield opened


@pytest.fixture(scope="session")
def shared_fault_proxy(object_store: ObjectStore) -> Iterator[FaultProxy]:
    """The proxy in front of the store; one for all tests keeps its port and connections."""
    with FaultProxy(object_store.ports["proxy"]) as proxy:
        yield proxy


@pytest.fixture
def fault_proxy(shared_fault_proxy: FaultProxy) -> Iterator[FaultProxy]:
    """A proxy in front of the store, without faults until a test sets its ``schedule``.

    Use it by ``access.through(fault_proxy.port)``.
    """
    yield shared_fault_proxy
    shared_fault_proxy.forget()


@pytest.fixture(scope="session")
def nodes() -> Iterator[Nodes]:
    """Two machines ``n1`` and ``n2`` with ssh; a test that breaks one must repair it."""
    skip_or_fail(why_no_nodes())
    # Not the folder of pytest: the name of a Unix socket must not exceed 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="nodes-"))
    try:
        with Nodes(folder, ["n1", "n2"], ssh=True) as up:
            yield up
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    """A SLURM with two nodes; a test must leave no job."""
    skip_or_fail(why_no_nodes(SLURM_PROGRAMS))
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    try:
        with Slurm(folder, 2) as up:
            yield up
    finally:
        shutil.rmtree(folder)
