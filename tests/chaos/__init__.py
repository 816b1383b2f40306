"""Chaos on the real thing: faults by a seeded schedule, and an audit of what came of it."""
