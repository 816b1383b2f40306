"""Proves totals by the log: replay, compare, report; the archive and the sealed log beside it."""
