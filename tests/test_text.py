"""Figures, sizes and lists have one form everywhere."""

from __future__ import annotations

import io
from statistics import stdev

import pytest
from rich.console import Console

from pipeline.text import (
    NOT_KNOWN,
    did_you_mean,
    first_few,
    format_bytes,
    format_clock,
    format_percent,
    format_spread,
    shows_live_display,
)


@pytest.mark.parametrize(
    ("fractions", "text"),
    [
        ([0.3134], "31.3"),
        ([0.31, 0.33], "32.0 ± 1.4"),
        ([0.25, 0.25, 0.25], "25.0 ± 0.0"),
        ([1.0], "100.0"),
        ([-0.0002], "0.0"),
        ([-0.0004, 0.0002], "0.0 ± 0.0"),
        ([], NOT_KNOWN),
        ([None], NOT_KNOWN),
        ([0.31, None], NOT_KNOWN),
    ],
)
def test_fractions_are_per_cent_and_several_have_a_deviation(fractions, text):
    assert format_percent(fractions) == text


def test_known_mean_and_deviation_have_the_form_of_the_fractions():
    fractions = [0.31, 0.33, 0.36]
    mean, deviation = sum(fractions) / 3, stdev(fractions)
    assert format_spread(mean, deviation) == format_percent(fractions)
    assert format_spread(0.3134, None) == format_percent([0.3134])
    assert format_spread(None, None) == format_percent([])
    assert format_spread(0.31, 0.014, digits=2) == "31.00 ± 1.40"


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0.0 kB"),
        (1_500, "1.5 kB"),
        (999_900, "999.9 kB"),
        (1_000_000, "1.0 MB"),
        (122_900_000, "122.9 MB"),
        (5_000_000_000_000, "5,000.0 GB"),
    ],
)
def test_sizes_have_a_unit_and_one_digit(size, text):
    assert format_bytes(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00:00"), (59.9, "0:00:59"), (3_723, "1:02:03"), (360_000, "100:00:00"), (None, "unkn")],
)
def test_times_are_hours_minutes_and_seconds(seconds, text):
    assert format_clock(seconds).startswith(text)


def test_long_list_gives_its_first_items_and_their_number():
    assert first_few([]) == ""
    assert first_few(["a", "b"]) == "a, b"
    assert first_few(range(8)) == "0, 1, 2, 3, 4, 5, 6, 7"
    assert first_few(range(9)) == "0, 1, 2, 3, 4, 5, 6, 7, … (9 in all)"
    assert first_few(["a", "b"], most=1) == "a, … (2 in all)"


def test_remedy_for_an_unknown_name_is_a_similar_one_or_the_list():
    assert did_you_mean("finetun", ["zeroshot", "finetune"]) == "did you mean 'finetune'?"
    assert did_you_mean("x", ["zeroshot", "finetune"]) == "there are zeroshot, finetune"


@pytest.mark.parametrize(
    ("terminal", "kind", "is_live"),
    [(True, "xterm", True), (True, "dumb", False), (False, "xterm", False)],
)
def test_only_a_real_terminal_shows_a_live_display(terminal, kind, is_live):
    environment = {"TERM": kind}
    console = Console(file=io.StringIO(), force_terminal=terminal, _environ=environment)
    assert shows_live_display(console) is is_live
