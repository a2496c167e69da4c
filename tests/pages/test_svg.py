"""The marks of charts: text stays text, a drawing has a name, templates insert it as it is."""

from __future__ import annotations

from xml.etree import ElementTree

from pipeline.pages import svg
from pipeline.pages.svg import Drawing, Frame

ODD = "<script>alert(1)</script> & \"quotes\" 'more' </svg> ünï"


def parse(drawing: Drawing) -> ElementTree.Element:
    """The drawing as a reader of XML sees it."""
    return ElementTree.fromstring(drawing.__html__())


def test_text_is_text_in_every_place():
    shown = svg.text((1, 2), ODD, ODD, ODD + ODD)
    found = parse(Drawing((10, 20), ODD, ODD, shown, kind=ODD))
    assert [each.tag for each in found.iter()] == ["svg", "desc", "text", "title"]
    [description, text] = found
    assert (found.get("aria-label"), description.text, text.text) == (ODD, ODD, ODD)
    assert (found.get("class"), text.get("class"), text[0].text) == (ODD, ODD, ODD + ODD)


def test_tooltip_is_only_there_for_a_shortened_text():
    assert len(svg.text((0, 0), "weight", "name", "weight")) == 0
    assert svg.text((0, 0), "…ght", "name", "weight")[0].text == "weight"


def test_frame_turns_positions_into_pixels_from_the_upper_left_corner():
    frame = Frame(left=10, right=110, top=20, bottom=70)
    assert [(frame.x(at), frame.y(at)) for at in (0, 0.5, 1)] == [(10, 70), (60, 45), (110, 20)]


def test_path_moves_to_the_start_of_each_line():
    path = svg.path([[(1, 2), (3.5, 4)], [(5, 6)]], "line")
    assert path.get("d") == "M1 2 L3.5 4 M5 6"


def test_grid_has_a_rule_and_a_label_for_each_tick():
    marks = svg.grid(Frame(40, 100, 0, 50), [(0.0, "0"), (1.0, "7")])
    assert [mark.tag for mark in marks] == ["line", "text", "line", "text"]
    assert [(m.get("x1"), m.get("x2"), m.get("y1"), m.get("y2")) for m in marks[::2]] == [
        ("40", "100", "50", "50"),
        ("40", "100", "0", "0"),
    ]


def test_shortened_label_keeps_its_end():
    room = 9 * svg.TICK_CHARACTER
    assert svg.shorten("momentum", room) == "momentum"
    assert svg.shorten("optim.learning_rate", room) == "…ing_rate"
    assert svg.shorten("optim.learning_rate", 0) == "…ate"
