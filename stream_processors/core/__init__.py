"""The rules of billing: intervals and the life of an order. Pure: no I/O, no clock, no dice."""
