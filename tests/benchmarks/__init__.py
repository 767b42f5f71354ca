"""Slower checks, run by ``make bench``, whose tables are kept in ``docs/benchmarks.md``."""
