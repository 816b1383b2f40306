"""Which totals an audit is asked about. Pure."""

from dataclasses import dataclass

from durabill.schemas import BadTotal, total_record


@dataclass(frozen=True, slots=True)
class TotalsScope:
    """One order's totals, or those settled in [from_ms, to_ms); nothing given: all of them."""

    order: str = ""
    from_ms: int | None = None
    to_ms: int | None = None

    def has_record(self, key: bytes | None) -> bool:
        """Tell whether a record with this key concerns the order."""
        return not self.order or key == self.order.encode()

    def has(self, key: bytes | None, value: bytes | None) -> bool:
        """Tell whether a total is asked about; one that can't be read always is."""
        if self.order and key != self.order.encode():
            return False
        if self.from_ms is None and self.to_ms is None:
            return True
        try:
            settled_at_ms = int(total_record(value)["settled_at_ms"])
        except BadTotal:
            return True
        is_late_enough = self.from_ms is None or settled_at_ms >= self.from_ms
        return is_late_enough and (self.to_ms is None or settled_at_ms < self.to_ms)


EVERYTHING = TotalsScope()
