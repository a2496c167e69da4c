"""Runs a function on several gloo ranks of this machine."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from typing import Any

import pytest
import torch
import torch.distributed as dist

from pipeline.distributed.world import process_group, read_world

# Imported once, by the server from which every rank is forked, so that ranks start fast. An engine
# of DeepSpeed imports the last two.
_PRELOADED = ["deepspeed", "tests.interruptions", "tests.variants", "pipeline.training.run"]
_PRELOADED += ["deepspeed.module_inject.auto_ep_layer", "deepspeed.ops.op_builder.all_ops"]


def run_ranks(
    function: Callable[..., Any],
    world_size: int,
    *arguments: Any,
    timeout_s: float = 120.0,
    collective_s: float | None = 60.0,
) -> list[Any]:
    """The results of ``function(world, *arguments)`` on ``world_size`` ranks, in rank order.

    ``function`` must be defined at the top of a module; arguments and results are pickled. A
    collective may take ``collective_s`` seconds; with None the function forms the group itself.

    Raises:
        RuntimeError: ranks failed, with their tracebacks, or did not answer within ``timeout_s``.
    """
    context = _context()
    # The store is in this process and chooses a free port itself: no rank can find it in use.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    pipes = [context.Pipe(duplex=False) for _ in range(world_size)]
    task = (function, arguments, dict(os.environ))
    ranks = [
        context.Process(
            target=_be_rank,
            args=(rank, world_size, store.port, collective_s, pipes[rank][1], *task),
        )
        for rank in range(world_size)
    ]
    try:
        for rank in ranks:
            rank.start()
        for _, sender in pipes:
            sender.close()
        return _collect([receiver for receiver, _ in pipes], timeout_s)
    finally:
        for rank in ranks:
            rank.join(timeout=5)
            rank.kill()


def _context() -> multiprocessing.context.ForkServerContext:
    """Processes forked from a server that has imported the modules of a rank, without a GPU."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DS_ACCELERATOR", "cpu")
        patch.setenv("OMP_NUM_THREADS", "1")
        forkserver.ensure_running()
    return context


def _collect(receivers: list[Connection], timeout_s: float) -> list[Any]:
    deadline = time.monotonic() + timeout_s
    answers: dict[int, tuple[Any, str | None]] = {}
    while len(answers) < len(receivers):
        waiting = [r for number, r in enumerate(receivers) if number not in answers]
        ready = wait(waiting, timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            break
        for receiver in ready:
            answers[receivers.index(receiver)] = _receive(receiver)
        if any(failure for _, failure in answers.values()):
            deadline = min(deadline, time.monotonic() + 5)  # for the errors of the other ranks
    failures = [
        f"rank {number}: {answers[number][1] if number in answers else 'no answer in time'}"
        for number in range(len(receivers))
        if number not in answers or answers[number][1]
    ]
    if failures:
        raise RuntimeError("\n".join(failures))
    return [answers[number][0] for number in range(len(receivers))]


def _receive(receiver: Connection) -> tuple[Any, str | None]:
    try:
        return pickle.loads(receiver.recv_bytes())
    except EOFError:
        return None, "ended without an answer"


def _be_rank(
    rank: int,
    world_size: int,
    port: int,
    collective_s: float | None,
    sender: Connection,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    environment: dict[str, str],
) -> None:
    os.environ.clear()  # the server has the environment of the first test that used ranks
    os.environ.update(environment)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        TORCHELASTIC_USE_AGENT_STORE="True",
        TORCHELASTIC_RESTART_COUNT="0",
        OMP_NUM_THREADS="1",
        DS_ACCELERATOR="cpu",
        CUDA_VISIBLE_DEVICES="",
    )
    torch.set_num_threads(1)
    world = read_world(os.environ)
    try:
        with process_group(world, timeout_s=collective_s) if collective_s else nullcontext():
            answer = (function(world, *arguments), None)
    except BaseException:
        answer = (None, traceback.format_exc())
    sender.send_bytes(pickle.dumps(answer))
