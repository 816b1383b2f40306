"""Which trouble comes when: shuffled by the dice, so the same for the same seed. Pure.

Between two troubles comes an upload that goes well, but is taken in small parts only. So a client
makes progress, and still has something to send until all trouble has come.
"""

from collections.abc import Collection
from random import Random

START_FAULTS = {
    "start_lost": "made, but the connection is cut before the answer",
    "start_busy": "503 with Retry-After in seconds",
    "start_login": "200 with a login page",
    "start_proxy": "422 with a proxy's JSON",
}
"""What may become of the start of an order."""

RENEWAL_FAULTS = {
    "renewal_busy": "503 with Retry-After in seconds",
    "renewal_login": "200 with a login page",
}
"""What may become of the renewal of a lease."""

DOWN_REQUESTS = 4

UPLOAD_FAULTS = {
    "busy": "503 with Retry-After in seconds; nothing is stored",
    "busy_date": "503 with Retry-After as a date; nothing is stored",
    "limited": "429 with Retry-After and RateLimit; nothing is stored",
    "lost": "stored, but the connection is cut before the answer",
    "cut": "the connection is cut; nothing is stored",
    "down": f"the connection is cut, {DOWN_REQUESTS} times in a row; nothing is stored",
    "truncated": "stored, but the answer breaks off in its middle",
    "slow": "stored, and answered after a second",
    "unauthorized": "401, and from then on only the next token will do",
    "too_large": "413 with a proxy's page, until half as much comes",
    "login": "200 with a login page; nothing is stored",
    "strange": "200 with JSON of somebody else; nothing is stored",
    "mixed": "200 in the contract's form, but about another order; nothing is stored",
    "short": "200 in the contract's form, but about fewer segments; nothing is stored",
    "as_text": "200 in the contract's form, but as plain text; nothing is stored",
    "nulls": "200 with null in place of each verdict; nothing is stored",
    "proxy_json": "422 with a proxy's JSON; nothing is stored",
    "proxy_page": "502 with a proxy's page and an odd Retry-After; nothing is stored",
    "firewall": "403 with a firewall's page; nothing is stored",
    "failed": "500 of the gateway's own; nothing is stored",
    "redirect": "307 to another path of this server; nothing is stored",
    "redirect_get": "303, which makes a GET of what follows it; nothing is stored",
    "refused": "the first segment is refused for good",
    "lease_over": "a lease is no longer valid: it has to be renewed",
    "step": "the server's clock steps by an hour, and gets another clock id",
}
"""What may become of an upload."""

_NEED_SEVERAL = ("too_large", "short", "mixed")
"""Shows more where several segments come; one who only ever sends one gets it at last."""
_FIRST = "step"
"""Comes while clients still measure: what they make of it shows in the segments after it."""
_NEEDS_FRESH = "refused"


class Script:
    """What is still to come, of `faults`."""

    def __init__(self, dice: Random, faults: Collection[str]) -> None:
        self._starts = [each for each in START_FAULTS if each in faults]
        self._renewals = [each for each in RENEWAL_FAULTS if each in faults]
        uploads = [each for each in UPLOAD_FAULTS if each in faults]
        for each in (self._starts, self._renewals, uploads):
            dice.shuffle(each)
        uploads.sort(key=lambda each: each != _FIRST)
        self._uploads = [
            each
            for fault in uploads
            for each in [fault] * (DOWN_REQUESTS if fault == "down" else 1)
        ]
        self._is_quiet = True  # the next upload goes well
        self._segments_max = 0

    @property
    def is_over(self) -> bool:
        """Whether no more trouble comes to uploads."""
        return not self._uploads

    def for_start(self) -> str:
        """Return what becomes of the start of an order, "" for nothing."""
        return self._starts.pop(0) if self._starts else ""

    def for_renewal(self) -> str:
        """Return what becomes of the renewal of a lease, "" for nothing."""
        return self._renewals.pop(0) if self._renewals else ""

    def for_upload(self, segments: int, *, is_fresh: bool) -> str:
        """Return what becomes of an upload of so many segments, "" for nothing.

        `is_fresh`: some of them aren't stored yet.
        """
        self._segments_max = max(self._segments_max, segments)
        if self._is_quiet or not segments:
            self._is_quiet = False
            return ""
        is_enough = segments > 1 or self._has_only_singles()
        fitting = [
            each
            for each in self._uploads
            if (is_enough or each not in _NEED_SEVERAL) and (is_fresh or each != _NEEDS_FRESH)
        ]
        if not fitting:
            return ""
        self._uploads.remove(fitting[0])
        self._is_quiet = fitting[0] != "down" or "down" not in self._uploads
        return fitting[0]

    def _has_only_singles(self) -> bool:
        """Tell whether nothing is left but what needs several, of one who never sent several."""
        return self._segments_max == 1 and not set(self._uploads) - set(_NEED_SEVERAL)
