"""Environment variables for Ray, which reads them only when it is imported."""

from __future__ import annotations

import secrets

_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # no report to the makers of Ray
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # the command has one already
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a failed trial reports no metric
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


def ray_environment(address: str | None) -> dict[str, str]:
    """The variables for the cluster at ``address``, or for one that this command starts.

    A process that reaches the ports of the started cluster can run code on it if it knows its
    token; the token is therefore random and secret. The token of an existing cluster comes from
    the user's environment.
    """
    if address is not None:
        return dict(_SETTINGS)
    return _SETTINGS | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
