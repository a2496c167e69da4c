"""Continual learning on CLIP by incremental prompt tuning."""
