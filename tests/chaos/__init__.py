"""Fault injection: a training run that is killed and restarted must give the same result."""
