"""Leases: the gateway's word that an order was opened, by whom, and when. Its bearer shows it.

Theory: a lease is a compact JWS with HS256, made by a gateway and read by gateways alone. So the
check takes exactly the header that we write ourselves, byte for byte, for a key that we know: what
a header could ask for else (no algorithm, another one, a key of the sender's own) is never looked
at. The signature is made and checked with the standard library's HMAC.

    header   {"alg":"HS256","kid":…,"typ":"lease+jwt"}
    payload  ord number · ten tenant · cli client · iat_ms issued · opn_ms opened (the server
             timestamp) · int_ms report interval · exp_ms no upload is taken under it from then on ·
             acc_ms until when the order's segments may be late · svc service, where it has one ·
             old_ms no segment that ended earlier is taken, where the order may have been forgotten

Whether a token is genuine is kept for a while, as long as the keys stay the same; whether it is
expired, and whose it is, is looked at each time, so a step of the clock needs no more care.
"""

import hmac
from dataclasses import replace
from typing import NamedTuple

import msgspec

from durabill.producers.gateway.api import Bounds, TimeRules
from durabill.producers.gateway.caller import Caller
from durabill.producers.gateway.key_files import WatchedKeys
from durabill.producers.gateway.key_sets import Jwk
from durabill.producers.gateway.problems import ApiError
from durabill.schemas.base64url import decode64, encode64

LEASE_CHARS_MAX = 1_280
"""Of a token. The longest that we make has fewer: all texts in it are bounded."""
_CACHED_MAX = 20_000
_LOGGED_MAX = 50_000
_DIGEST = "sha256"
_EXTENSIONS_MAX = 8
"""For how many records of the log the renewals of a lease's whole life may be, see `renewed`."""


class Lease(NamedTuple):
    """What a lease says. `opened_ms` is the order's server timestamp, and stays in a renewal.

    No segment that ended before `oldest_ms` is taken: it may be of a life that is forgotten.
    """

    number: str
    tenant: str
    client: str
    issued_ms: int
    opened_ms: int
    interval_ms: int
    expires_ms: int
    accept_until_ms: int
    service: str = ""
    oldest_ms: int = 0


class _Payload(msgspec.Struct, frozen=True, omit_defaults=True):
    ord: str
    ten: str
    cli: str
    iat_ms: int
    opn_ms: int
    int_ms: int
    exp_ms: int
    acc_ms: int
    svc: str = ""
    old_ms: int = 0


_PAYLOAD = msgspec.json.Decoder(_Payload)


def rules_under(lease: Lease | None, rules: TimeRules) -> TimeRules:
    """Return the rules about times for the segments of an upload that shows `lease`.

    While the order's lateness is by its lease, nothing is too late; from then on the correction
    window decides. Nothing begins before the order was opened.
    """
    if lease is None:
        return rules
    return replace(
        rules,
        opened_ms=lease.opened_ms,
        accept_until_ms=lease.accept_until_ms,
        oldest_ms=lease.oldest_ms,
    )


def bounds_for(lease: Lease | None, rules: TimeRules) -> Bounds:
    """Return what the times of such segments must be within, as of `rules`."""
    bounds = rules.bounds_ms()
    if lease is None:
        return bounds
    # As of the rules under the lease, without making them: an upload is quicker so.
    arrives_ms = rules.now_ms - rules.late_margin_ms
    is_late = arrives_ms > lease.accept_until_ms
    window_from_ms = bounds.earliest_end_ms if is_late else 0
    return bounds._replace(
        earliest_start_ms=lease.opened_ms,
        earliest_end_ms=max(window_from_ms, lease.oldest_ms),
    )


class LeaseBook:
    """Makes and checks leases. `is_required`: an upload without one is refused.

    `lease_ms` is how long a lease holds, from the order's opening or a renewal on. Belongs to one
    event loop.
    """

    def __init__(
        self,
        keys: WatchedKeys,
        *,
        lease_ms: int,
        is_required: bool,
        correction_window_ms: int | None = None,
    ) -> None:
        self._watched = keys
        self.lease_ms = lease_ms
        self._correction_window_ms = correction_window_ms
        self.is_required = is_required
        self._cache: dict[str, Lease] = {}
        self._logged_ms: dict[str, int] = {}
        """Until when orders are accepted, by their latest extensions that are in the log."""
        self._heads: dict[str, Jwk] = {}
        self._secrets: dict[str, bytes] = {}
        self._take_keys()

    def mint(
        self,
        number: str,
        tenant: str,
        client: str,
        service: str = "",
        *,
        now_ms: int,
        interval_ms: int,
    ) -> tuple[str, Lease]:
        """Return the lease of an order that is opened now, as a token and as what it says."""
        until_ms = now_ms + self.lease_ms
        times_ms = now_ms, now_ms, interval_ms, until_ms, until_ms
        lease = Lease(number, tenant, client, *times_ms, service)
        return self._sign(lease, now_ms), lease

    def renew(
        self, token: str | None, number: str, caller: Caller, now_ms: int
    ) -> tuple[str, Lease, bool]:
        """Return `renewed` of a lease that may have expired. Raises as `check`."""
        if not token:
            raise _refused("LEASE_MISSING", "the lease that is to be renewed has to be shown")
        return self.renewed(self._shown(token, number, caller), now_ms)

    def renewed(self, known: Lease, now_ms: int) -> tuple[str, Lease, bool]:
        """Return a lease that holds anew, and whether the order has to be opened again for it.

        Then its opening has to be in the log before the lease is given: segments are accepted for
        as long as the lease holds, `lease_ms` from now on. An order that is known still, as it is
        up to `accept_until_ms`, is extended by it. Later it may have been forgotten, and begins
        anew: then what may have been billed in the life before, all that ended before the
        correction window as of now, may not come again. The lease says so.

        A renewal that would move that instant by less than an eighth of a lease's life opens
        nothing, and holds until that instant: so who renews every second adds eight records in a
        lease's life. So does who shows his oldest lease each time: what this gateway has in the log
        of the order (`note_logged`) counts as much as what the lease says.
        """
        until_ms = now_ms + self.lease_ms
        accepted_ms = max(known.accept_until_ms, self._logged_ms.get(known.number, 0))
        lease, window_ms = known._replace(issued_ms=now_ms), self._correction_window_ms
        if now_ms > known.accept_until_ms and window_ms is not None:
            lease = lease._replace(oldest_ms=max(known.oldest_ms, now_ms - window_ms))
        if until_ms - accepted_ms < max(1, self.lease_ms // _EXTENSIONS_MAX):
            expires_ms = max(known.expires_ms, accepted_ms)
            lease = lease._replace(expires_ms=expires_ms, accept_until_ms=accepted_ms)
            return self._sign(lease, now_ms), lease, False
        lease = lease._replace(expires_ms=until_ms, accept_until_ms=until_ms)
        return self._sign(lease, now_ms), lease, True

    def note_logged(self, lease: Lease) -> None:
        """Note that Kafka has the opening that a lease was to be given for."""
        until_ms = max(lease.accept_until_ms, self._logged_ms.pop(lease.number, 0))
        if len(self._logged_ms) >= _LOGGED_MAX:
            del self._logged_ms[next(iter(self._logged_ms))]
        self._logged_ms[lease.number] = until_ms

    def check(self, token: str | None, number: str, caller: Caller, now_ms: int) -> Lease | None:
        """Return what the lease of an upload for order `number` says; None where none is needed.

        Raises ApiError: 401 LEASE_MISSING, LEASE_INVALID, LEASE_EXPIRED, 403 LEASE_OF_ANOTHER. A
        lease that is shown is checked also where none is needed. Whoever is known by name needs
        none for numbers of its own choice alone, which begin with its tenant.
        """
        if not token:
            is_own = not caller.key_id or number.startswith(f"{caller.tenant}:")
            if is_own and not self.is_required:
                return None
            raise _refused("LEASE_MISSING", "show the order's lease: POST /v1/orders gives one")
        lease = self._shown(token, number, caller)
        if now_ms >= lease.expires_ms:
            detail = f"it ended {now_ms - lease.expires_ms} ms ago; POST /v1/orders/NUMBER/lease"
            raise _refused("LEASE_EXPIRED", f"{detail} renews it")
        return lease

    def _shown(self, token: str, number: str, caller: Caller) -> Lease:
        """Return what a genuine token says, for its order and its holder."""
        if self._watched.look():
            self._take_keys()
        lease = self._cache.get(token) or self._read(token)
        if lease.number != number:
            raise _of_another("it is of another order")
        # Without authentication a client is known by its address alone, which may change.
        if caller.key_id and (lease.tenant != caller.tenant or lease.client != caller.client):
            raise _of_another("it was given to another client")
        return lease

    def _read(self, token: str) -> Lease:
        if len(token) > LEASE_CHARS_MAX or not token.isascii():
            raise _invalid()
        head, _, rest = token.partition(".")
        body, _, signature = rest.partition(".")
        if head not in self._heads and self._watched.look(meets_unknown=True):
            self._take_keys()
        key = self._heads.get(head)
        if key is None:
            raise _invalid()
        right = encode64(hmac.digest(self._secrets[key.kid], f"{head}.{body}".encode(), _DIGEST))
        if not hmac.compare_digest(signature, right):
            raise _invalid()
        try:
            found = _PAYLOAD.decode(decode64(body))
        except (ValueError, msgspec.DecodeError) as error:
            raise _invalid() from error
        lease = Lease(*msgspec.structs.astuple(found))
        if len(self._cache) >= _CACHED_MAX:
            del self._cache[next(iter(self._cache))]
        self._cache[token] = lease
        return lease

    def _sign(self, lease: Lease, now_ms: int) -> str:
        if self._watched.look():
            self._take_keys()
        key = self._watched.keys.signer(now_ms)
        body = f"{_head(key)}.{encode64(msgspec.json.encode(_Payload(*lease)))}"
        return f"{body}.{encode64(hmac.digest(self._secrets[key.kid], body.encode(), _DIGEST))}"

    def _take_keys(self) -> None:
        keys = self._watched.keys.keys
        self._heads = {_head(each): each for each in keys}
        self._secrets = {each.kid: decode64(each.k) for each in keys}
        self._cache.clear()  # a key may have gone, with all that it has signed


def _head(key: Jwk) -> str:
    return encode64(b'{"alg":"HS256","kid":"%b","typ":"lease+jwt"}' % key.kid.encode())


def _refused(reason: str, detail: str) -> ApiError:
    return ApiError(401, reason, detail, headers={"www-authenticate": "Lease"})


def _invalid() -> ApiError:
    # The same whatever is wrong: nothing is to be learned from it.
    return _refused("LEASE_INVALID", "it is no lease that this gateway gives, or its key has gone")


def _of_another(detail: str) -> ApiError:
    return ApiError(403, "LEASE_OF_ANOTHER", detail)
