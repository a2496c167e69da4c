"""Random streams named by a path; the draws of one never depend on those of another."""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def derive_seed(*path: int | str) -> int:
    """A seed in [0, 2⁶³) for the stream named by ``path``; it never changes between versions.

    The type and the position of a part matter: ``("a", 1)``, ``("a", "1")`` and ``("a1",)`` differ.

    Raises:
        TypeError: a part is neither an ``int`` nor a ``str``; numpy's numbers print differently
            in different versions of numpy.
    """
    if not all(type(part) in (int, str) for part in path):
        raise TypeError(f"a stream is named by int and str only, found {path!r}")
    digest = hashlib.blake2b(repr(path).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def numpy_stream(*path: int | str) -> np.random.Generator:
    """A counter-based numpy generator for the stream named by ``path``."""
    return np.random.Generator(np.random.Philox(derive_seed(*path)))


def torch_stream(*path: int | str) -> torch.Generator:
    """A CPU torch generator for the stream named by ``path``."""
    return torch.Generator().manual_seed(derive_seed(*path))


def seed_torch(*path: int | str) -> None:
    """Seed the global generators of torch, on every device, with the stream named by ``path``.

    For code that takes no generator, such as dropout; its draws then do not depend on earlier
    interruptions of the run.
    """
    torch.manual_seed(derive_seed(*path))
