"""All failures that the user can correct.

PipelineError              one sentence: the place, the value found, the value wanted, the remedy
├── ConfigError            a setting, an option or a launch that cannot work
├── DataError              an index, a shard or a sample with wrong content
├── StorageError           a URL that cannot be read or written
├── WeightsError           a backbone that is missing or of the wrong type
├── ContractError          a method that breaks a law of the contract
├── DivergenceError        a loss that is not a finite number
├── LostRankError          a rank that died, hangs or cannot be reached
├── TakenOverError         an output to which a later start of the command writes
├── RefusedBySystemError   a file, process, port, terminal or memory that the system refuses
├── SweepFailedError       a sweep without a finished trial
└── Preempted              not a failure: the run was asked to stop and can continue later

A command shows a ``PipelineError`` as one line on stderr and ends with its exit status. Any other
exception is a fault of this program and keeps its traceback.
"""

from typing import Literal


class PipelineError(Exception):
    """A failure that the user can correct."""

    exit_status = 2
    # Which of several ranks print it: rank 0, the first rank of each node, or each that raises it.
    printed_by: Literal["main", "node", "rank"] = "main"


class ConfigError(PipelineError):
    """A setting, an option or a launch that cannot work."""


class DataError(PipelineError):
    """An index, a shard or a sample with wrong content."""


class StorageError(PipelineError):
    """A URL that cannot be read or written."""


class WeightsError(PipelineError):
    """A backbone that is missing or of the wrong type."""


class ContractError(PipelineError):
    """A method that breaks a law of the contract, see ``pipeline.methods.contract``."""


class DivergenceError(PipelineError):
    """A loss that is not a finite number."""


class LostRankError(PipelineError):
    """A rank that died, hangs or cannot be reached; the same command continues from a snapshot."""

    exit_status = 1
    printed_by = "rank"  # each knows another part, and rank 0 may be the lost one


class TakenOverError(PipelineError):
    """An output to which a later start of the command writes."""


class RefusedBySystemError(PipelineError):
    """A file, process, port, terminal or memory that the system refuses."""


class SweepFailedError(PipelineError):
    """A sweep without a finished trial."""

    exit_status = 1


class Preempted(PipelineError):
    """The run was asked to stop; the same command continues from a snapshot."""

    exit_status = 75  # EX_TEMPFAIL of sysexits.h: try again later
