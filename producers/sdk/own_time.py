"""A time that the caller gave an order, in place of the server's."""

from math import ceil

from durabill.producers.sdk.reading import Reading


class OwnTime:
    """It was `given_ms` at `reading`, and goes on as the client's time does, but for its steps.

    What is learned later is about the time before as well, and sets right what was known badly at
    `reading`. That would move the time that was given: so the local clock counts from there on,
    where it errs by less.
    """

    def __init__(self, given_ms: int, reading: Reading) -> None:
        self._given_ms, self._first = given_ms, reading
        self._unsure_ms = reading.bound_ms
        self._ahead_ms = given_ms - reading.now_ms + reading.jumped_ms

    def at_ms(self, reading: Reading) -> int:
        """Return this time at a reading."""
        return reading.now_ms + self._ahead_ms - reading.jumped_ms

    def look(self, reading: Reading) -> None:
        """Go by the local clock up to `reading` where that is better."""
        first, rate = self._first, reading.drift_ppm / (1_000_000 - reading.drift_ppm)
        passed_ms = reading.local_ms - first.local_ms
        unsure_ms = reading.bound_ms + ceil(passed_ms * rate) + reading.doubt_since(first)
        if unsure_ms < self._unsure_ms:
            self._unsure_ms = unsure_ms
            self._ahead_ms += self._given_ms + passed_ms - self.at_ms(reading)
