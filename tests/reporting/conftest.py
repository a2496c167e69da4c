"""A browser for all tests of pages."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import skip_or_fail
from tests.services.browser import Browser, why_unavailable


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    skip_or_fail(why_unavailable())
    with Browser() as opened:
        yield opened
