"""Sixty nouns, each drawn by hand as a few parts on a square of 100 × 100, y downwards.

A part is ``kind tone numbers``, separated by ``;`` and painted in this order:

    box x0 y0 x1 y1 · disc x y rx ry · poly x y x y … · line width x y x y …
    ring width x y rx ry · arc width x y rx ry from to     (degrees, clockwise from the right)

Tones ``a b c`` are the noun's own three colours, ``d`` is dark and ``w`` is white.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Noun:
    """A thing to draw: its group, its natural colours and its parts."""

    group: str  # the kind of thing, e.g. animal
    colours: tuple[str, str, str]  # six hexadecimal digits each, for tones a, b and c
    parts: str


def _noun(group: str, colours: str, parts: str) -> Noun:
    first, second, third = colours.split()
    return Noun(group, (first, second, third), parts)


# fmt: off
NOUNS: dict[str, Noun] = {
    # animals
    "fish": _noun("animal", "f08a24 f6c445 d05a1a",
        "poly b 66 50 94 26 90 50 94 74; poly c 40 34 56 16 64 36; disc a 42 50 32 21; "
        "arc c 3 46 50 14 16 -70 70; disc w 24 45 5 5; disc d 23 45 2.5 2.5",
    ),
    "bird": _noun("animal", "3c7fc4 8fc1ea f2a33a",
        "poly a 62 56 96 40 92 62; disc a 50 56 26 19; disc a 28 36 14 13; "
        "poly c 16 34 2 40 17 42; poly b 42 50 72 48 60 70; disc d 25 33 2.5 2.5; "
        "line c 3 46 73 44 92 36 92; line c 3 56 73 58 92 50 92",
    ),
    "cat": _noun("animal", "8c8580 d9cfc5 e58a8a",
        "poly a 20 48 18 10 46 30; poly a 80 48 82 10 54 30; disc a 50 54 34 30; "
        "disc b 50 68 15 11; disc d 37 48 4 6; disc d 63 48 4 6; poly c 45 62 55 62 50 68; "
        "line d 2 30 66 6 62; line d 2 30 70 8 76; line d 2 70 66 94 62; line d 2 70 70 92 76",
    ),
    "rabbit": _noun("animal", "c9b29b eadbcb e7a3a8",
        "disc a 38 24 8 23; disc a 62 24 8 23; disc c 38 26 4 16; disc c 62 26 4 16; "
        "disc a 50 62 27 27; disc d 40 57 3.5 4.5; disc d 60 57 3.5 4.5; disc c 50 68 4 3; "
        "box w 46 74 54 84",
    ),
    "snail": _noun("animal", "b9743c e8c98f 7d4a24",
        "poly b 6 84 10 60 20 58 26 74 90 76 96 86; disc a 58 54 27 26; ring c 4 58 54 17 16; "
        "ring c 4 58 54 6 6; line b 3 12 62 6 42; line b 3 18 60 22 42; disc d 6 41 3 3; "
        "disc d 22 41 3 3",
    ),
    "butterfly": _noun("animal", "e8662e f7c548 7a3fa0",
        "disc a 27 33 22 20; disc a 73 33 22 20; disc c 31 69 17 17; disc c 69 69 17 17; "
        "disc b 26 33 10 9; disc b 74 33 10 9; disc b 31 69 7 7; disc b 69 69 7 7; "
        "disc d 50 52 5 31; line d 2 49 24 38 6; line d 2 51 24 62 6",
    ),
    "turtle": _noun("animal", "4f8f3f a9c46c 2f5f2d",
        "disc b 12 58 11 9; disc b 30 76 9 10; disc b 70 76 9 10; poly b 84 66 98 74 84 74; "
        "poly a 18 68 24 42 40 28 60 28 78 42 84 68; line c 3 40 30 36 67; "
        "line c 3 60 30 66 67; line c 3 24 50 78 50; disc d 8 55 2.5 2.5",
    ),
    "snake": _noun("animal", "5aa04a cfd65a c9302c",
        "line a 11 12 84 38 88 58 78 46 62 28 54 34 38 58 34 78 28; disc a 80 26 12 9; "
        "line b 3 20 85 40 87 54 78 44 63 30 54 36 40 56 35; disc d 82 23 2.5 2.5; "
        "line c 2 91 28 99 31",
    ),
    "duck": _noun("animal", "f3cf3c f9e48f ee7d22",
        "poly a 70 56 96 42 90 70; disc a 54 66 34 20; disc a 28 34 17 16; "
        "poly a 22 44 44 44 46 66 22 66; poly c 14 32 0 38 14 44; disc b 60 64 18 10; "
        "disc d 25 30 3 3",
    ),
    "crab": _noun("animal", "d8432b f08a64 a82c1c",
        "line a 5 26 62 8 74; line a 5 30 70 14 88; line a 5 74 62 92 74; line a 5 70 70 86 88; "
        "line a 6 28 52 14 34; line a 6 72 52 86 34; poly c 14 38 2 26 10 8 14 22 24 12 24 32; "
        "poly c 86 38 98 26 90 8 86 22 76 12 76 32; disc a 50 60 29 19; disc w 42 38 5 6; "
        "disc w 58 38 5 6; disc d 42 38 2.5 3; disc d 58 38 2.5 3",
    ),
    "penguin": _noun("animal", "2b3446 f3f1ea f09a2c",
        "disc c 40 92 11 5; disc c 60 92 11 5; disc a 50 58 26 34; poly a 28 42 12 72 28 66; "
        "poly a 72 42 88 72 72 66; disc a 50 24 18 17; disc w 50 62 17 26; disc w 43 24 5 6; "
        "disc w 57 24 5 6; disc d 43 25 2 2; disc d 57 25 2 2; poly c 45 30 55 30 50 38",
    ),
    # plants
    "tree": _noun("plant", "3f8f3a 7a4f2a 64b455",
        "poly b 43 94 45 56 55 56 57 94; disc a 32 46 21 19; disc a 68 46 21 19; "
        "disc a 50 28 24 21; disc c 44 30 9 8; disc c 64 48 8 7",
    ),
    "pine": _noun("plant", "2f6b4a 6b4426 47926a",
        "box b 44 80 56 96; poly a 12 82 50 46 88 82; poly a 19 60 50 27 81 60; "
        "poly c 27 38 50 5 73 38",
    ),
    "flower": _noun("plant", "d94a8c f6cf3f 4b9a44",
        "line c 5 50 50 51 95; disc c 64 76 13 6; disc a 50 16 11 13; disc a 69 29 13 11; "
        "disc a 63 52 12 12; disc a 37 52 12 12; disc a 31 29 13 11; disc b 50 35 11 11",
    ),
    "mushroom": _noun("plant", "cc2f2b f0e3cc f7f3ea",
        "poly b 40 50 38 90 62 90 60 50; poly a 8 54 14 30 32 14 50 10 68 14 86 30 92 54; "
        "disc w 32 34 7 7; disc w 56 24 6 6; disc w 70 42 7 6; disc w 48 46 5 4",
    ),
    "cactus": _noun("plant", "4e9a55 c4713b e26aa0",
        "poly b 28 72 72 72 65 96 35 96; line a 12 25 48 25 36; line a 10 44 56 25 54 25 34; "
        "line a 10 56 48 76 46 76 24; line a 18 50 70 50 20; disc c 50 12 7 6; disc c 76 18 5 5",
    ),
    "leaf": _noun("plant", "5aa83c 3a7a28 8fce5f",
        "poly a 14 86 12 52 26 26 52 12 88 10 88 44 76 68 50 84; line b 4 6 94 44 56 76 22; "
        "line b 2 34 66 34 40; line b 2 34 66 62 66; line b 2 54 46 54 24; line b 2 54 46 76 46",
    ),
    # food
    "apple": _noun("food", "cf2e2e 5a3a22 58a83e",
        "disc a 36 58 26 31; disc a 64 58 26 31; poly a 36 86 64 86 60 92 40 92; "
        "line b 4 50 36 54 14; poly c 54 22 70 6 88 12 74 26; disc w 28 48 5 9",
    ),
    "banana": _noun("food", "f2cf3a 6b5020 d9ac22",
        "poly a 82 8 92 12 90 44 74 72 46 88 14 86 8 78 34 72 58 54 74 30; "
        "line c 3 86 16 80 44 62 68 36 80; poly b 80 4 92 8 91 16 81 14; disc b 10 82 4 4",
    ),
    "cherry": _noun("food", "b8182e 4f8a35 e86070",
        "arc b 3 66 62 38 50 180 275; arc b 3 30 60 36 48 270 360; "
        "poly b 66 12 92 8 96 28 76 24; disc a 28 74 19 18; disc a 68 76 19 18; "
        "disc c 22 68 5 5; disc c 62 70 5 5",
    ),
    "carrot": _noun("food", "ee7a1f 4f9a3c c75c10",
        "poly b 42 34 24 8 36 12 44 28; poly b 46 34 46 2 56 2 54 34; "
        "poly b 56 34 66 10 78 10 60 30; poly a 32 34 68 34 62 62 50 98 38 62; "
        "line c 3 36 48 52 48; line c 3 48 64 60 64; line c 3 44 78 53 78",
    ),
    "cake": _noun("food", "f4d7b6 e06a9a 8a4f2c",
        "line w 4 50 18 50 36; disc c 50 12 4 7; box a 16 46 84 88; "
        "poly b 14 36 86 36 86 54 76 64 64 52 50 66 38 52 24 62 14 54; box c 16 72 84 78; "
        "disc w 50 91 46 5",
    ),
    "ice cream": _noun("food", "f0a8c4 d99a4e fbe9c6",
        "poly b 26 48 74 48 50 98; line c 2 38 50 60 76; line c 2 62 50 40 76; "
        "disc c 34 38 18 16; disc c 66 38 18 16; disc a 50 24 20 19; disc d 50 6 5 5",
    ),
    # vehicles
    "car": _noun("vehicle", "d23a34 a9d4ee 3a3a44",
        "poly a 22 52 34 28 68 28 82 52; poly b 31 50 38 34 50 34 50 50; "
        "poly b 54 50 54 34 65 34 74 50; poly a 4 74 6 54 20 50 86 50 96 58 96 74; "
        "disc c 26 76 12 12; disc c 74 76 12 12; disc w 26 76 5 5; disc w 74 76 5 5",
    ),
    "bus": _noun("vehicle", "f0b429 a9d4ee 3a3a44",
        "box a 6 20 94 78; box b 12 30 28 50; box b 33 30 49 50; box b 54 30 70 50; "
        "box b 75 30 90 68; box c 6 58 72 62; disc c 26 80 11 11; disc c 72 80 11 11; "
        "disc w 26 80 4 4; disc w 72 80 4 4",
    ),
    "boat": _noun("vehicle", "a5522d f2ede0 d64a3a",
        "line d 3 48 6 48 72; poly w 52 10 86 62 52 62; poly c 44 18 44 62 16 62; "
        "poly a 6 70 94 70 80 92 20 92; poly c 48 4 62 8 48 13",
    ),
    "airplane": _noun("vehicle", "cfd8e2 4a78b0 d24038",
        "poly b 44 40 58 40 40 4 28 4; poly b 44 60 58 60 40 96 28 96; "
        "poly c 78 44 94 24 98 26 92 50; poly c 80 54 92 74 97 72 92 50; "
        "poly a 4 50 16 42 88 44 96 50 88 56 16 58; disc d 15 50 4 4; disc b 62 50 3 3; "
        "disc b 72 50 3 3",
    ),
    "rocket": _noun("vehicle", "e6e6ea d23a3a f59a24",
        "poly c 40 80 50 99 60 80; poly b 36 54 18 84 36 78; poly b 64 54 82 84 64 78; "
        "poly a 50 2 64 22 67 50 63 82 37 82 33 50 36 22; poly b 50 2 62 20 38 20; "
        "ring b 4 50 40 9 9; disc d 50 40 6 6",
    ),
    "bicycle": _noun("vehicle", "2f3a48 d23a3a 8a5a34",
        "ring a 4 22 66 19 19; ring a 4 78 66 19 19; line b 4 22 66 40 36 68 36 50 66 22 66; "
        "line b 4 40 36 50 66; line b 4 78 66 66 24; line a 4 60 22 76 20; "
        "line c 6 33 30 47 30; disc a 50 66 5 5",
    ),
    "train": _noun("vehicle", "2e7a55 d23a3a 33363e",
        "box a 6 22 40 72; box w 12 30 32 48; box a 40 42 88 72; "
        "poly c 66 42 62 16 82 16 78 42; poly b 86 60 98 82 84 82; box b 4 66 88 74; "
        "disc c 20 82 12 12; disc c 50 84 9 9; disc c 74 84 9 9; box b 4 16 44 22",
    ),
    "balloon": _noun("vehicle", "d94545 f4cf4a 9a6a3a",
        "line c 2 30 60 42 82; line c 2 70 60 58 82; box c 40 80 60 97; "
        "poly a 50 4 76 12 86 36 72 60 58 72 42 72 28 60 14 36 24 12; disc b 50 38 13 34; "
        "line a 3 50 5 50 71",
    ),
    # buildings
    "house": _noun("building", "e8cfa0 b5482f 6b4428",
        "box c 66 14 78 40; box a 18 46 82 92; poly b 8 48 50 10 92 48; box c 42 62 58 92; "
        "box w 24 56 37 70; box w 64 56 77 70",
    ),
    "castle": _noun("building", "a8a5a0 7c4a34 c23a3a",
        "box a 22 50 78 92; "
        "poly a 8 92 8 32 13 32 13 38 18 38 18 32 23 32 23 38 28 38 28 32 33 32 33 92; "
        "poly a 67 92 67 32 72 32 72 38 77 38 77 32 82 32 82 38 87 38 87 32 92 32 92 92; "
        "disc b 50 72 10 10; box b 40 72 60 92; line d 2 20 32 20 8; poly c 20 8 36 13 20 19; "
        "box d 17 50 24 60; box d 76 50 83 60",
    ),
    "lighthouse": _noun("building", "f2efe8 d03a34 f6d34a",
        "poly a 34 92 40 34 60 34 66 92; poly b 38 50 39 38 61 38 62 50; "
        "poly b 36 74 37 62 63 62 64 74; box d 34 30 66 35; box c 40 16 60 30; "
        "poly b 37 17 50 4 63 17; poly c 66 20 98 10 98 32; poly d 10 96 26 88 74 88 90 96",
    ),
    "windmill": _noun("building", "c8a77a e9e4d8 7a3f2c",
        "poly a 32 96 40 42 60 42 68 96; poly c 37 44 50 28 63 44; box c 44 78 56 96; "
        "poly b 48 36 12 6 6 14 46 41; poly b 52 36 88 6 94 14 54 41; "
        "poly b 48 42 16 76 23 82 52 46; poly b 52 42 84 76 77 82 48 46; disc d 50 40 4 4",
    ),
    # tools
    "key": _noun("tool", "d3a83a 8a6a1e f0d274",
        "ring a 9 24 50 16 16; line a 9 40 50 94 50; box a 72 50 79 70; box a 85 50 93 74; "
        "disc c 42 50 4 7",
    ),
    "hammer": _noun("tool", "8a929c b0743a 5c646e",
        "line b 9 50 26 50 95; poly a 22 12 70 12 92 24 74 32 22 32; box c 14 8 26 36",
    ),
    "scissors": _noun("tool", "c9d0d6 d6403a 5c646e",
        "poly a 34 4 42 4 60 62 50 64; poly a 66 4 58 4 40 62 50 64; ring b 6 32 78 12 14; "
        "ring b 6 68 78 12 14; disc c 50 54 4 4",
    ),
    "ladder": _noun("tool", "b5803f d9ab6a 8a5a26",
        "line a 6 34 4 26 96; line a 6 66 4 74 96; line b 5 32 20 68 20; line b 5 31 36 69 36; "
        "line b 5 29 52 71 52; line b 5 28 68 72 68; line b 5 27 84 73 84",
    ),
    "pencil": _noun("tool", "f2c230 f2d8b0 e58a94",
        "poly a 24 62 70 10 88 26 42 78; poly c 70 10 76 3 94 18 88 26; "
        "poly b 24 62 42 78 10 94; poly d 15 82 21 88 10 94; line d 2 33 70 79 18",
    ),
    # things of the house
    "cup": _noun("furnishing", "4a8fc0 dbeaf4 7a4a2a",
        "ring a 6 76 54 14 16; poly a 16 30 74 30 68 86 22 86; disc b 45 30 29 8; "
        "disc c 45 31 23 5; arc w 3 36 14 6 8 60 300",
    ),
    "chair": _noun("furnishing", "a8642f d38f4f 7a4420",
        "line a 6 28 4 28 96; line a 6 66 56 66 96; line c 5 44 64 44 92; line c 5 82 62 82 92; "
        "poly b 24 54 62 54 88 64 42 64; box b 25 10 32 34; poly a 26 8 44 14 44 46 26 42",
    ),
    "lamp": _noun("furnishing", "f1c75a 6a5a8a f8e8a8",
        "line b 5 50 46 50 88; disc b 50 90 24 6; poly a 32 8 68 8 88 50 12 50; "
        "poly c 44 8 56 8 62 50 38 50; line d 2 72 50 72 66",
    ),
    "bottle": _noun("furnishing", "3f8a5c efe6cc a8622e",
        "box c 43 2 57 12; poly a 43 10 57 10 57 32 70 46 70 96 30 96 30 46 43 32; "
        "box b 30 56 70 80; line w 3 36 48 36 54",
    ),
    "clock": _noun("furnishing", "c04a3a f4efe2 3a3a44",
        "disc a 50 52 42 42; disc w 50 52 34 34; line c 4 50 52 50 28; line c 4 50 52 68 60; "
        "line d 3 50 19 50 25; line d 3 50 79 50 85; line d 3 17 52 23 52; "
        "line d 3 77 52 83 52; disc c 50 52 4 4",
    ),
    "umbrella": _noun("furnishing", "8a4fb0 e8b84a 5a3a28",
        "line c 4 50 12 50 82; arc c 4 42 82 8 10 0 180; "
        "poly a 4 52 10 32 28 16 50 10 72 16 90 32 96 52 81 46 65 52 50 46 35 52 19 46; "
        "poly b 35 52 42 24 50 10 58 24 65 52 50 46",
    ),
    "candle": _noun("furnishing", "f0e6d0 f59a24 9a6a3a",
        "poly b 50 4 60 22 50 34 40 22; disc w 50 24 4 6; line d 3 50 32 50 42; "
        "poly a 36 42 64 40 64 84 36 84; poly w 36 42 46 42 44 58 38 54; disc c 50 86 30 8; "
        "ring c 5 82 82 9 8",
    ),
    "bell": _noun("furnishing", "e3b23a a87a1e f6dc84",
        "ring b 5 50 12 7 7; disc d 50 86 9 8; "
        "poly a 50 16 68 26 74 54 88 80 12 80 26 54 32 26; line c 4 38 34 34 62; "
        "box b 10 76 90 83",
    ),
    # clothing
    "hat": _noun("clothing", "3a3f55 b8342e 6a7090",
        "disc a 50 78 46 11; poly a 24 76 28 18 72 18 76 76; disc c 50 18 22 6; "
        "poly b 24 76 25 60 75 60 76 76",
    ),
    "boot": _noun("clothing", "8a5a30 5c3a1e d9a860",
        "poly a 26 6 60 6 60 54 88 62 94 84 26 84; box b 22 84 95 93; box c 24 6 62 17; "
        "line d 2 50 30 62 34; line d 2 50 40 62 44",
    ),
    "shirt": _noun("clothing", "3f9ac0 d9eef6 f0c840",
        "poly a 34 10 66 10 98 34 86 54 74 46 74 94 26 94 26 46 14 54 2 34; disc b 50 11 13 9; "
        "box c 26 60 74 70",
    ),
    "crown": _noun("clothing", "eec23a c9302c 4a78c8",
        "poly a 8 28 30 52 50 14 70 52 92 28 86 84 14 84; disc b 8 24 6 6; disc b 50 11 6 6; "
        "disc b 92 24 6 6; box c 14 72 86 80",
    ),
    # the sky
    "star": _noun("nature", "f6cf3a f9e68f e8a820",
        "poly a 50 4 62 37 97 38 69 60 79 94 50 74 21 94 31 60 3 38 38 37; "
        "poly b 50 22 57 44 50 62 43 44",
    ),
    "moon": _noun("nature", "f0e3a0 d3c272 b8a65a",
        "poly a 62 4 36 10 16 32 14 58 26 82 50 96 76 92 90 80 66 78 48 64 40 44 46 20; "
        "disc b 28 48 5 6; disc b 38 74 6 5; disc c 32 30 4 4",
    ),
    "sun": _noun("nature", "f8b824 fbe07a ee8a1c",
        "line c 5 50 2 50 20; line c 5 50 80 50 98; line c 5 2 50 20 50; line c 5 80 50 98 50; "
        "line c 5 16 16 28 28; line c 5 84 16 72 28; line c 5 16 84 28 72; "
        "line c 5 84 84 72 72; disc a 50 50 25 25; disc b 46 46 12 12",
    ),
    "cloud": _noun("nature", "dfe8f2 b7c6d8 6fa8dc",
        "line c 3 32 76 26 92; line c 3 52 76 46 92; line c 3 72 76 66 92; disc a 28 56 21 16; "
        "disc a 72 56 22 17; disc a 50 40 24 21; box a 26 56 74 72; disc b 56 60 15 8",
    ),
    "snowflake": _noun("nature", "a8d4f0 e4f2fb 6fa8dc",
        "line a 5 50 4 50 96; line a 5 10 27 90 73; line a 5 10 73 90 27; "
        "line b 4 40 10 50 20 60 10; line b 4 40 90 50 80 60 90; line b 4 12 40 25 35 22 22; "
        "line b 4 88 60 75 65 78 78; line b 4 12 60 25 65 22 78; line b 4 88 40 75 35 78 22; "
        "disc c 50 50 7 7",
    ),
    # music and play
    "guitar": _noun("toy", "c8803a 6a3a1c f0d8a0",
        "line b 7 52 48 84 10; poly b 78 10 88 2 96 10 88 18; disc a 30 72 24 22; "
        "disc a 50 52 17 16; disc d 40 62 8 8; line c 4 22 74 32 84; line w 2 32 74 84 12",
    ),
    "drum": _noun("toy", "c8332b f3ead2 e8b83a",
        "line c 4 14 4 44 26; line c 4 86 4 56 26; poly a 14 34 86 34 84 82 16 82; "
        "disc a 50 82 34 9; disc b 50 34 36 11; line b 3 16 44 32 84 50 46 68 84 84 44",
    ),
    "kite": _noun("toy", "3fa0c8 f2c23a d8433a",
        "poly a 60 4 90 32 60 32; poly b 60 4 60 32 30 32; poly c 60 32 90 32 54 76; "
        "poly d 60 32 54 76 30 32; line d 2 54 76 42 84 30 80 16 94; poly c 38 78 46 90 34 90; "
        "poly b 22 78 30 92 16 88",
    ),
}
# fmt: on
