"""How the threads of a computation wait for each other; read when torch is loaded.

Threads that have done their part of an operation wait for the others. By default GNU OpenMP lets
them spin for milliseconds: beside another job on the same cores a thread then spins for as long as
the job has the core of the last one. docs/SPEED.md has the measurements.
"""

from __future__ import annotations

from collections.abc import MutableMapping

_SPINS = "10000"  # about 20 microseconds: the wait for the next operation, when alone
_CHOICES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")  # of the user


def spin_briefly(environment: MutableMapping[str, str]) -> None:
    """Let waiting threads sleep soon; must come before the first import of torch.

    A choice of the user stays as it is.
    """
    if not any(name in environment for name in _CHOICES):
        environment["GOMP_SPINCOUNT"] = _SPINS
