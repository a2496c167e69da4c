"""What Ray must find in the environment before it is imported: it looks only then."""

from __future__ import annotations

import secrets

_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is told to anyone
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # the command has its own
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a failed trial reports no metric
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


def ray_environment(address: str | None) -> dict[str, str]:
    """The variables for a cluster at ``address``, or for one of this command's own.

    Whoever reaches the ports of an own one and knows its token can run code, so nobody is told it;
    that of another cluster is given by whoever started that.
    """
    if address is not None:
        return dict(_SETTINGS)
    return _SETTINGS | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
