"""Figures for the README; run by hand, not by the tests."""
