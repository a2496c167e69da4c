"""Equal names of a stream give equal draws everywhere; other names give independent draws."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from pipeline.rng import derive_seed, numpy_stream, seed_torch, torch_stream


def test_seeds_never_change():
    """must hold for all versions: a changed seed would silently change every result"""
    assert derive_seed("order", 1, 0, 3) == 6856564071331294978


def test_seed_is_the_same_in_another_process():
    program = "from pipeline.rng import derive_seed; print(derive_seed('a', 1))"
    environment = {"PYTHONHASHSEED": "7"}
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True
    )
    assert int(answer.stdout) == derive_seed("a", 1)


def test_type_and_position_of_a_part_matter():
    paths = [("a", 1), ("a", "1"), ("a1",), (1, "a"), ("a",), ("a", 1, 0), ("a", 10), ("a", -1)]
    assert len({derive_seed(*path) for path in paths}) == len(paths)


@pytest.mark.parametrize("part", [np.int64(1), 1.0, True, None])
def test_part_of_another_type_is_refused(part):
    """must hold because ``np.int64(1)`` prints differently in different versions of numpy"""
    with pytest.raises(TypeError, match="int and str only"):
        derive_seed("order", part)


def test_seeds_are_in_the_range_of_every_generator():
    seeds = [derive_seed("range", number) for number in range(500)]
    assert len(set(seeds)) == len(seeds)
    assert 0 <= min(seeds) and max(seeds) < 2**63
    assert max(seeds) > 2**62  # the upper half is used too


def test_streams_repeat_and_do_not_change_each_other():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    first = torch.rand(4, generator=torch_stream("x", 1))
    assert torch.equal(torch.rand(2), expected)  # the global stream has not changed
    assert torch.equal(torch.rand(4, generator=torch_stream("x", 1)), first)
    seed_torch("x", 1)  # for code that takes no generator
    assert torch.equal(torch.rand(4), first)
    assert not torch.equal(torch.rand(4, generator=torch_stream("x", 2)), first)
    draw = numpy_stream("x", 1).integers(0, 2**63, 4)
    assert np.array_equal(numpy_stream("x", 1).integers(0, 2**63, 4), draw)
