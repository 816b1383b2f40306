"""Every answer from 400 on: a problem of RFC 9457, application/problem+json.

`reason` is for programs, and a part of the contract; `detail` is for people.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated

from msgspec import Meta, Struct

from durabill.schemas import BadRecord
from durabill.schemas.text import plain
from durabill.schemas.web import NO_TYPE, title_of

RETRY_AFTER_S = 2


class ItemError(Struct, omit_defaults=True):
    """What is wrong with one segment of the request; `index` counts from 0."""

    index: int
    business_data_number: int
    reason: str
    detail: str
    service_order_number: str | None = None


class Problem(Struct):
    """Every answer from 400 on, as of RFC 9457: `reason` is for programs, `detail` for people."""

    title: Annotated[str, Meta(description="what the status means")]
    status: int
    detail: str
    reason: Annotated[str, Meta(description="what is wrong, in one word for programs")]
    type: Annotated[str, Meta(description="always about:blank: `reason` tells more")] = NO_TYPE


class SegmentsProblem(Problem):
    """A problem with single segments: `errors` has the first of them, `error_count` is of all."""

    errors: Sequence[ItemError] = ()
    error_count: int = 0


class ApiError(Exception):
    """An answer from 400 on; `retry_after_s` where a later try may succeed."""

    def __init__(
        self,
        status: int,
        reason: str,
        detail: str,
        *,
        errors: Sequence[ItemError] = (),
        error_count: int = 0,
        retry_after_s: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(f"{status} {reason}: {detail}")
        # It may repeat what was sent, and people read it: nothing in it may hide, or turn the line.
        self.status, self.reason, self.detail = status, reason, plain(detail)
        self.errors, self.error_count = tuple(errors), error_count
        self.headers = dict(headers or {})
        if retry_after_s is not None:
            self.headers["retry-after"] = str(retry_after_s)

    @property
    def problem(self) -> Problem:
        """Return its body."""
        head = (title_of(self.status), self.status, self.detail, self.reason)
        if not self.errors:
            return Problem(*head)
        return SegmentsProblem(*head, errors=self.errors, error_count=self.error_count)


def try_later(reason: str, detail: str) -> ApiError:
    """Return the answer for what is away or too busy at the moment."""
    return ApiError(503, reason, detail, retry_after_s=RETRY_AFTER_S)


def refusal(error: BadRecord) -> ApiError:
    """Return the answer for what breaks the contract."""
    return ApiError(error.http_status, error.reason, error.detail)
