"""The split of each image: named by the source, chosen by the user, or drawn by a hash.

A prepared data set has the splits ``train`` and ``test``. A source may call them otherwise, have
more of them, or have none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pipeline.errors import ConfigError, DataError
from pipeline.rng import derive_seed

SPLITS = ("train", "test")
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "val": "test",
    "valid": "test",
    "validation": "test",
}

NOT_CHOSEN = "its split is not named in --splits"


@dataclass(frozen=True)
class SplitChoice:
    """The options about splits.

    ``chosen`` maps a split of the source to ``train`` or ``test``; None takes the usual names.
    With ``test_fraction`` > 0, about that fraction of the training images becomes the test split.
    """

    chosen: Mapping[str, str] | None = None
    test_fraction: float = 0.0
    seed: int = 1

    @property
    def known(self) -> tuple[str, ...]:
        """The names of splits that are looked for, in lower case."""
        return tuple(dict.fromkeys((*SPLIT_NAMES, *(self.chosen or ()))))

    def assign(self, found: Iterable[str], place: str) -> dict[str, str]:
        """``train`` or ``test`` for each name in ``found``; a name that is not chosen is absent.

        Raises:
            DataError: several names would become one split, or a chosen name is not there.
        """
        names = sorted(set(found))
        if self.chosen is not None:
            absent = sorted(set(self.chosen) - {name.lower() for name in names})
            if absent:
                raise DataError(
                    f"{place}: has no split {absent[0]!r}, which --splits names; "
                    f"it has {', '.join(names) or 'no split'}"
                )
            return {n: self.chosen[n.lower()] for n in names if n.lower() in self.chosen}
        assigned = {n: SPLIT_NAMES[n.lower()] for n in names if n.lower() in SPLIT_NAMES}
        for split in SPLITS:
            same = [name for name in names if assigned.get(name) == split]
            if len(same) > 1:
                raise DataError(
                    f"{place}: has the splits {', '.join(names)}, and {' and '.join(same)} would "
                    f"both become {split}; choose with --splits, for example "
                    f"--splits {_example(names, same[0])} or --splits {_example(names, same[-1])}"
                )
        return assigned

    def check_fraction(self, assigned: Iterable[str], place: str) -> None:
        """Return if the test split may be drawn from the splits ``assigned``.

        Raises:
            DataError: there is a test split already.
        """
        if self.test_fraction and "test" in set(assigned):
            raise DataError(
                f"{place}: has a test split already; leave out --test-fraction, "
                "or choose the training split alone, for example with --splits train=train"
            )

    def drawn_split(self, folder: str, path: str) -> str:
        """The split of an image that the source does not divide, by a hash of its name."""
        limit = int(self.test_fraction * 2**63)
        return "test" if derive_seed("test split", self.seed, folder, path) < limit else "train"

    def split_of(self, assigned: str, folder: str, path: str) -> str:
        """The final split of an image whose source gives it the split ``assigned``."""
        return self.drawn_split(folder, path) if self.test_fraction else assigned


def parse_choice(
    splits: str | None, test_fraction: float | None, split_seed: int | None
) -> SplitChoice:
    """The options as the command line gives them; ``train,test`` or ``train=a,test=b+c``.

    Raises:
        ConfigError: an option has another form.
    """
    fraction = test_fraction or 0.0
    if test_fraction is not None and not 0 < fraction < 1:
        raise ConfigError(f"--test-fraction {test_fraction} is not between 0 and 1, such as 0.2")
    if split_seed is not None and test_fraction is None:
        raise ConfigError("--split-seed needs --test-fraction, whose split it draws; give both")
    seed = 1 if split_seed is None else split_seed
    if splits is None:
        return SplitChoice(None, fraction, seed)
    chosen: dict[str, str] = {}
    for part in splits.split(","):
        split, equals, names = part.partition("=")
        split = split.strip().lower()
        for name in (names if equals else split).lower().split("+"):
            name = name.strip()
            if split not in SPLITS or not name or name in chosen:
                raise ConfigError(
                    f"--splits {splits!r}: {part!r} is not train=NAMES or test=NAMES with splits "
                    "of the source that are named once; write for example train=train,test=val"
                )
            chosen[name] = split
    return SplitChoice(chosen, fraction, seed)


def split_in_name(name: str, known: Iterable[str]) -> str | None:
    """The split with which a file or folder name starts: ``train`` for ``train-00000-of-00002``."""
    for split in sorted(known, key=len, reverse=True):
        if re.match(re.escape(split) + r"(?![a-z])", name.lower()):
            return split
    return None


def _example(names: list[str], test: str) -> str:
    """A value of ``--splits`` with ``test`` in the place where several names were found."""
    role = SPLIT_NAMES[test.lower()]
    others = [n for n in names if SPLIT_NAMES.get(n.lower(), role) != role]
    other = f"{SPLITS[1 - SPLITS.index(role)]}={others[0]}" if others else ""
    pair = [f"{role}={test}", other] if role == "train" else [other, f"{role}={test}"]
    return ",".join(filter(None, pair))
