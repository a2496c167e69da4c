"""Everything that may go wrong for a reason a person can act on.

PipelineError              one sentence: place, what was found, what was wanted, what to do
├── ConfigError            a configuration, an option or a launch that cannot work
├── DataError              an index, a shard or a sample that is not what it claims to be
├── StorageError           a URL that cannot be read or written
├── WeightsError           a backbone that is missing or of the wrong kind
├── DivergenceError        a loss that is no longer a number
├── LostRankError          a rank that died, hangs or cannot be reached
├── TakenOverError         an output that a later start of the command writes to
├── SweepFailedError       a sweep without one finished trial
└── Preempted              no fault: a signal asked the run to stop, and it can go on later

A command turns a ``PipelineError`` into one line on stderr and its exit status; anything else is a
fault of this code and keeps its traceback.
"""


class PipelineError(Exception):
    """A failure that the user can understand and mend."""

    exit_status = 2


class ConfigError(PipelineError):
    """A configuration, an option or a launch that cannot work."""


class DataError(PipelineError):
    """An index, a shard or a sample that is not what it claims to be."""


class StorageError(PipelineError):
    """A URL that cannot be read or written."""


class WeightsError(PipelineError):
    """A backbone that is missing or of the wrong kind."""


class DivergenceError(PipelineError):
    """A loss that is no longer a number."""


class LostRankError(PipelineError):
    """A rank that died, hangs or cannot be reached; the same command goes on from a snapshot."""

    exit_status = 1


class TakenOverError(PipelineError):
    """An output that a later start of the command writes to."""


class SweepFailedError(PipelineError):
    """A sweep without one finished trial."""

    exit_status = 1


class Preempted(PipelineError):
    """A signal asked the run to stop; the same command goes on from a snapshot."""

    exit_status = 75  # EX_TEMPFAIL of sysexits.h: try again later
