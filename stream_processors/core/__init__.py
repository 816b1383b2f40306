"""The rules of billing. Pure: no I/O, no clock, no dice.

To be read in this sequence: `order` (the life of an order, the specification), `admission` (which
records an order takes in), `intervals` (the arithmetic), `explain` (what became of an order).
"""
