"""The demo: the whole engine with a fleet, and a report of what came out."""
