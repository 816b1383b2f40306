"""Measurements: `python -m tests.bench`, or `make bench`. What is measured stands in `__main__`."""
