"""Benchmarks whose figures are in docs/RESULTS.md; run by hand, not by the tests."""
