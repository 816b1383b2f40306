"""What both web servers, the gateway's and the worker's, have in common: names, errors, pages.

Which `Host` a server answers to: a web page of anybody can send requests to a server on the
reader's own machine, and can even read the answers if a name of its own is made to point there
(DNS rebinding). Such a request carries the page's name as its host, and the page's origin.
"""

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes, urlsplit

from durabill.schemas.errors import BadRecord, Reason
from durabill.schemas.records import check_order_number

SERVER_NAME = "durabill"
PAGE_DEFAULT = 1_000
PAGE_MAX = 10_000

_REASONS = {
    404: "NOT_FOUND",
    405: "METHOD_NOT_ALLOWED",
    413: "REQUEST_ENTITY_TOO_LARGE",
    417: "EXPECTATION_FAILED",
}
PROBLEM = "application/problem+json"
NO_TYPE = "about:blank"
"""A problem's `type` where its title is the status's own."""
_TITLES = {413: "Content Too Large", 422: "Unprocessable Content"}  # older Pythons' are older
_HOST = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[^\s:/?#@\[\]]+)(?::(\d{0,5}))?")
_CURSOR = re.compile(r"(-1|\d{1,19})\.(\d{1,19})")
_DEFAULT_PORTS = {"http": "80", "https": "443"}
_ANY = "*"


class Fault(NamedTuple):
    """What is wrong with a request, or with us."""

    status: int
    reason: str
    detail: str


BAD_HTTP = Fault(400, "BAD_HTTP", "this is no HTTP request")
CROSS_ORIGIN = Fault(403, "CROSS_ORIGIN", "web pages of others may not use this server")
UNEXPECTED = Fault(417, _REASONS[417], "only 100-continue can be expected")
OUR_FAULT = Fault(500, "INTERNAL", "this is our fault, the log knows more")


def reason_of(status: int) -> str:
    """Return the `reason` of an error that the HTTP library found.

    Ours to name: the library takes its words from Python, where they change (413 in 3.13).
    """
    return _REASONS.get(status, f"HTTP_{status}")


def title_of(status: int) -> str:
    """Return what an HTTP status means, in the words of RFC 9110."""
    try:
        return _TITLES.get(status) or HTTPStatus(status).phrase
    except ValueError:
        return f"Status {status}"


def problem(status: int, reason: str, detail: str) -> dict[str, Any]:
    """Return an error's body, a problem of RFC 9457; its content type is PROBLEM."""
    head = {"type": NO_TYPE, "title": title_of(status), "status": status}
    return {**head, "detail": detail, "reason": reason}


def number_in_path(raw_path: str, prefix: str) -> str:
    """Return the order number that follows `prefix` in a percent-encoded path, to the next slash.

    Raises BadRecord(BAD_ORDER_NUMBER) for bytes that are no UTF-8, and for an illegal number.
    """
    raw = raw_path.partition(prefix)[2].partition("/")[0]
    try:
        number = unquote_to_bytes(raw).decode()
    except UnicodeDecodeError as error:
        raise BadRecord(Reason.BAD_ORDER_NUMBER, "is no UTF-8") from error
    check_order_number(number)
    return number


def host_name(host: str) -> str | None:
    """Return the name or address in a `Host` header, in lower case; None if it is none."""
    found = _HOST.fullmatch(host)
    return None if found is None else found[1].strip("[]").removesuffix(".").lower()


def names_another(target: str, host: str) -> bool:
    """Tell whether a request's target as it was sent names another server than its `Host`.

    That of a proxy's request, http://name/path, does name one, and counts more (RFC 9112, 3.2.2).
    """
    scheme, is_absolute, rest = target.partition("://")
    if not is_absolute or "/" in scheme:
        return False
    return re.split("[/?#]", rest, maxsplit=1)[0].lower() != host.lower()


def is_loopback(host: str) -> bool:
    """Tell whether a server that listens on `host` can be reached from this machine alone."""
    address = _address(host)
    return host.lower() == "localhost" if address is None else address.is_loopback


class AllowedHosts:
    """The names that a server answers to.

    These are what it listens on, the address that a connection came in at, on the loopback
    also localhost and both loopback addresses, and the names of `others`; `*` there is any name.
    Ports don't matter.
    """

    def __init__(self, listens_on: str, others: Iterable[str] = ()) -> None:
        names = {listens_on, *others} - {""}
        self._names = {host_name(name) or name.lower() for name in names}
        self._is_any = _ANY in self._names

    def allows(self, host: str, local_address: str) -> bool:
        """Tell whether a request that names `host` and came in at `local_address` is for us."""
        name = host_name(host)
        if name is None:
            return False
        if self._is_any or name in self._names:
            return True
        local, address = _address(local_address), _address(name)
        if local is None:
            return False
        if local.is_loopback:
            return name == "localhost" or name in ("127.0.0.1", "::1") or local == address
        return local == address


def is_same_origin(origin: str, host: str) -> bool:
    """Tell whether a browser's `Origin` is the server that it names as the host."""
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    port = _DEFAULT_PORTS.get(parts.scheme)
    if port is None:
        return False
    left, right = _HOST.fullmatch(parts.netloc), _HOST.fullmatch(host)
    if left is None or right is None:
        return False
    same_name = host_name(parts.netloc) == host_name(host)
    return same_name and (left[2] or port) == (right[2] or port)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return address if mapped is None else mapped


@dataclass(frozen=True, slots=True)
class Page:
    """Which part of an order's intervals and missing numbers is asked for.

    At most `limit` of each: the intervals that start after `after_ms`, and the ranges of
    missing numbers that begin after `after_number`.
    """

    limit: int = PAGE_DEFAULT
    after_ms: int = -1
    after_number: int = 0

    @property
    def query(self) -> str:
        """Return it as the query of a URL."""
        return f"limit={self.limit}&after={self.after_ms}.{self.after_number}"


def read_page(query: Mapping[str, str]) -> Page:
    """Return the page that `?limit=` and `?after=` ask for; raise ValueError for others."""
    limit, after = query.get("limit", str(PAGE_DEFAULT)), query.get("after", "-1.0")
    # Not int() at once: it takes blanks, signs and digits of other scripts.
    if not re.fullmatch(r"[0-9]{1,6}", limit) or not 1 <= int(limit) <= PAGE_MAX:
        raise ValueError(f"limit is 1 to {PAGE_MAX}")
    cursor = _CURSOR.fullmatch(after) if after.isascii() else None
    if cursor is None:
        raise ValueError("after is what `next` of the page before says")
    return Page(int(limit), int(cursor[1]), int(cursor[2]))


def cut_page(order: Mapping[str, Any], page: Page) -> dict[str, Any]:
    """Return the order's view with one page of `intervals` and of `missing_numbers`.

    Adds `interval_count` and `missing_range_count`, which are of all, and `next`: what to give
    as `after` for the next page, None on the last.
    """
    intervals, missing = order["intervals"], order["missing_numbers"]
    after_ms, own, more = _cut(intervals, "start_ms", page.after_ms, page.limit)
    after_number, ranges, more_ranges = _cut(missing, "first", page.after_number, page.limit)
    return {
        **order,
        "intervals": own,
        "missing_numbers": ranges,
        "interval_count": len(intervals),
        "missing_range_count": len(missing),
        "next": f"{after_ms}.{after_number}" if more or more_ranges else None,
    }


def _cut(items: list[Any], name: str, after: int, limit: int) -> tuple[int, list[Any], bool]:
    """Return (where the page ends, the page, whether there is more) of sorted items."""

    def first(item: Any) -> int:
        bound: int = item[name] if isinstance(item, dict) else item[0]
        return bound

    low, high = 0, len(items)
    while low < high:
        middle = (low + high) // 2
        if first(items[middle]) > after:
            high = middle
        else:
            low = middle + 1
    own = items[low : low + limit]
    return (first(own[-1]) if own else after), own, low + limit < len(items)
