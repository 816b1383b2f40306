"""The ledger: every total into PostgreSQL, once, and what is asked of it."""
