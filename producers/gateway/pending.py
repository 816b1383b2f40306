"""One order's upload on its way through POST /v1/segments: admitted, encoded, stored, judged.

A segment's verdict is said once, by the first that finds something wrong with it. What has no
verdict in the end is stored, and counts.
"""

from collections.abc import Sequence
from typing import cast

from durabill.producers.gateway.api import (
    DETAIL_CHARS_MAX,
    Bounds,
    SegmentRequest,
    TimeRules,
    number_shown,
    segment_of,
)
from durabill.producers.gateway.caller import Caller
from durabill.producers.gateway.delivery import Delivery
from durabill.producers.gateway.encode_pass import Encoded, Wanted
from durabill.producers.gateway.leases import Lease, LeaseBook, bounds_for, rules_under
from durabill.producers.gateway.problems import ApiError
from durabill.producers.gateway.rows import Row
from durabill.producers.gateway.upload_shapes import (
    AskedUpload,
    BadRow,
    SegmentVerdict,
    UploadAnswer,
)
from durabill.schemas import BadRecord, SegmentEvent, check_order_number
from durabill.schemas.limits import FUTURE_TOLERANCE_MS, LONG_MAX
from durabill.schemas.records import comes_later
from durabill.schemas.text import plain
from durabill.schemas.upload_receipt import ReceiptUpload, digest_of, ranges_of

_NO_BYTES = Encoded([], b"", [], 0, 0, False, True)
_NO_ROWS: Sequence[Row] = ()


class PendingUpload:
    """What is known so far of an upload. `rows` are the segments without a verdict."""

    __slots__ = (
        "_asked",
        "_at",
        "_bounds",
        "_lease",
        "_rules",
        "_verdicts",
        "delivery",
        "encoded",
        "key",
        "number",
        "rows",
    )

    def __init__(self, asked: AskedUpload, rules: TimeRules, bounds: Bounds) -> None:
        """Begin with `rules`, and the bounds of times without a lease, which follow from them."""
        self._asked = asked
        self._rules = rules
        self._bounds = bounds
        self._lease: Lease | None = None
        self._at: Sequence[int] = range(len(asked.rows))  # the index of each of the rows
        self._verdicts: list[SegmentVerdict] = []
        self.number = asked.number
        self.key = b""
        self.rows = cast(Sequence[Row], asked.rows)  # until `sift` has looked, as they were sent
        self.encoded = _NO_BYTES
        self.delivery: Delivery | None = None

    def admit(self, leases: LeaseBook, caller: Caller, now_ms: int) -> None:
        """Check the order's number and its lease; where they aren't right, nothing is taken."""
        try:
            check_order_number(self.number)
            lease = leases.check(self._asked.lease, self.number, caller, now_ms)
        except BadRecord as bad:
            self._refuse_all(bad.reason, bad.detail, is_final=True)
        except ApiError as error:
            # A lease can be renewed. Somebody else's may be the client's own again tomorrow: its
            # key was given to another name, by a slip of the operator.
            self._refuse_all(error.reason, error.detail, is_final=False)
        else:
            self.key = self.number.encode()
            if lease is not None:
                self._lease = lease
                self._bounds = bounds_for(lease, self._rules)

    @property
    def is_leased(self) -> bool:
        """Tell whether a lease says that the order was opened."""
        return self._lease is not None

    def sift(self) -> None:
        """Give their verdict to rows that the compiled pass can't read; make whole floats ints."""
        rows, at = [], []
        for index, row in zip(self._at, self.rows, strict=True):
            if isinstance(row, BadRow):
                self._say(index, row.business_data_number, "BAD_SHAPE", row.detail)
                continue
            if not all(type(each) is int and -LONG_MAX <= each <= LONG_MAX for each in row[:3]):
                found = self._checked(index, row)
                if found is None:
                    continue
                row = (found.business_data_number, found.start_ms, found.end_ms, row[3])
            rows.append(row)
            at.append(index)
        self.rows, self._at = rows, at

    def wanted(self) -> Wanted:
        """Return what the compiled pass has to know."""
        return Wanted(self.key, self.rows, *self._bounds)

    def take(self, encoded: Encoded) -> None:
        """Take what the pass has found; the good rows are to be delivered."""
        if encoded.wrong:
            wrong = set(encoded.wrong)
            for at in encoded.wrong:
                found = self._checked(self._at[at], self.rows[at])
                assert found is None, f"the compiled pass refuses {self.rows[at]}, the rules don't"
            good = [at for at in range(len(self.rows)) if at not in wrong]
            self.rows, self._at = [self.rows[at] for at in good], [self._at[at] for at in good]
        self.encoded = encoded
        if encoded.values:
            wants_each = not self._is_certain(encoded)
            self.delivery = Delivery(self.key, encoded.values, wants_each=wants_each)

    def note_not_stored(self, detail: str) -> None:
        """Note that Kafka has not acknowledged it."""
        for index, row in zip(self._at, self.rows, strict=True):
            self._say(index, row[0], "KAFKA_UNAVAILABLE", detail, is_final=False)

    def judge(self) -> None:
        """Give their verdict to segments that are stored, and don't count by their arrival."""
        delivery, encoded = self.delivery, self.encoded
        assert delivery is not None
        assert delivery.first is not None
        assert delivery.last is not None
        first_ms, last_ms = delivery.first.append_ms, delivery.last.append_ms
        if first_ms is None or last_ms is None:
            return
        window_ms = self._rules.correction_window_ms
        if encoded.greatest_end_ms - min(first_ms, last_ms) <= FUTURE_TOLERANCE_MS and (
            window_ms is None or max(first_ms, last_ms) - encoded.least_end_ms <= window_ms
        ):
            return
        rules = rules_under(self._lease, self._rules)
        count = len(self.rows)
        if delivery.each is None:  # some clock has jumped just now: what isn't certain comes again
            arrivals: Sequence[Sequence[int | None]] = [(first_ms, last_ms)] * count
        else:
            arrivals = [(each.append_ms,) for each in delivery.each]
        for index, row, times_ms in zip(self._at, self.rows, arrivals, strict=True):
            segment = SegmentEvent(self.number, *row)
            judged = [rules.judge(segment, at_ms) for at_ms in times_ms]
            refused = next((each for each in judged if not each.counts), None)
            if refused is not None:
                reason, detail = refused.reason or "", refused.detail or ""
                may_count = any(each.counts for each in judged) or comes_later(reason, *row[1:3])
                self._say(index, row[0], reason, detail, is_final=not may_count, is_stored=True)

    def answer(self) -> UploadAnswer:
        """Return what became of it."""
        answer = UploadAnswer(self.number, len(self._asked.rows), 0)
        if self._lease is not None:
            answer.accept_until_ms = self._lease.accept_until_ms
        if self._verdicts:
            answer.errors = sorted(self._verdicts, key=lambda each: each.index)
        delivery = self.delivery
        if delivery is not None and delivery.first is not None and delivery.last is not None:
            answer.stored = len(delivery.values)
            answer.partition = delivery.last.partition
            answer.first_offset = delivery.first.offset
            answer.last_offset = delivery.last.offset
            answer.append_ms = delivery.last.append_ms
        return answer

    def receipt(self) -> ReceiptUpload | None:
        """Return what a receipt says of it, None where nothing is stored."""
        delivery = self.delivery
        if delivery is None or delivery.first is None or delivery.last is None:
            return None
        rows = self.rows
        if self.encoded.is_consecutive:
            numbers: tuple[tuple[int, int], ...] = ((rows[0][0], rows[-1][0]),)
        else:
            numbers = ranges_of([row[0] for row in rows])
        return ReceiptUpload(
            self.number,
            delivery.last.partition,
            (delivery.first.offset, delivery.last.offset),
            numbers,
            digest_of(self.encoded.body),
            len(rows),
        )

    def _is_certain(self, encoded: Encoded) -> bool:
        """Tell whether all will count by their arrival, whenever that is within the margins."""
        rules = self._rules
        earliest_ms = rules.now_ms - rules.late_margin_ms
        latest_ms = rules.now_ms + rules.early_margin_ms
        window_ms = rules.correction_window_ms
        return encoded.greatest_end_ms - earliest_ms <= FUTURE_TOLERANCE_MS and (
            window_ms is None or latest_ms - encoded.least_end_ms <= window_ms
        )

    def _checked(self, index: int, row: Sequence[float]) -> SegmentEvent | None:
        """Return a row's segment by the rules of `schemas`, None after giving it its verdict."""
        number, start_ms, end_ms, is_end = row
        rules = rules_under(self._lease, self._rules)
        asked = SegmentRequest(number, start_ms, end_ms, bool(is_end))
        try:
            segment = segment_of(self.number, index, asked)
            rules.check(segment)
        except (BadRecord, ApiError) as bad:
            is_early = start_ms < rules.opened_ms
            is_final = is_early or not comes_later(bad.reason, start_ms, end_ms)
            self._say(index, number_shown(number), bad.reason, bad.detail, is_final=is_final)
            return None
        return segment

    def _refuse_all(self, reason: str, detail: str, *, is_final: bool) -> None:
        for index, row in zip(self._at, self._asked.rows, strict=True):
            number = row.business_data_number if isinstance(row, BadRow) else number_shown(row[0])
            self._say(index, number, reason, detail, is_final=is_final)
        self.rows, self._at = _NO_ROWS, ()

    def _say(
        self,
        index: int,
        number: int,
        reason: str,
        detail: str,
        *,
        is_final: bool = True,
        is_stored: bool = False,
    ) -> None:
        detail = plain(detail)[:DETAIL_CHARS_MAX]
        self._verdicts.append(SegmentVerdict(index, number, reason, detail, is_final, is_stored))
