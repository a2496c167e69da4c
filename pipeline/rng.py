"""Independent random streams, each named by a path: no draw depends on another's history."""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def derive_seed(*path: int | str) -> int:
    """A 63-bit seed for the stream named by ``path``, the same in every process and for ever.

    Parts are told apart by type and position: ``("a", 1)``, ``("a", "1")`` and ``("a1",)`` differ.

    Raises:
        TypeError: a part is neither an ``int`` nor a ``str``; numpy's own numbers print differently
            from version to version.
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
    """Have what torch draws globally from here on, on every device, be the stream of ``path``.

    For what cannot be handed a generator, such as dropout: it is then the same however often a run
    was interrupted before.
    """
    torch.manual_seed(derive_seed(*path))
