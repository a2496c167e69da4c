"""Imports without garbage collection."""

from __future__ import annotations

import gc

import pytest

from pipeline.imports import without_collection


@pytest.mark.parametrize("enabled", [True, False])
def test_collection_is_off_within_the_block_and_as_before_after_it(enabled):
    if not enabled:
        gc.disable()
    try:
        with pytest.raises(ImportError), without_collection():
            assert not gc.isenabled()
            raise ImportError
        assert gc.isenabled() == enabled
    finally:
        gc.enable()


def test_objects_of_the_block_are_not_searched_again():
    with without_collection():
        cycle: list[object] = []
        cycle.append(cycle)
    assert not any(each is cycle for each in gc.get_objects())
