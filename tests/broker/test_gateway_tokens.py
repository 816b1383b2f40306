"""Access tokens over HTTP: an issuer that comes late, changes its keys, and goes away."""

import time
from typing import Any

from durabill.producers.gateway.auth.config import AccessConfig
from durabill.producers.gateway.server import GatewayConfig
from tests.broker.access_kit import NOTHING_HERE
from tests.broker.gateway_kit import call, gateway
from tests.unit.issuer_kit import RULES, Issuer
from tests.unit.test_issuer import Site
from tests.waiting import wait_until

PATH = "/v1/orders/a%0Ab"  # no order's number: who is let in is told so


def config(jwks_url: str, **options: Any) -> GatewayConfig:
    access = AccessConfig(
        "jwt", issuer=RULES.issuer, audience=RULES.audience, jwks_url=f"{jwks_url}/jwks.json"
    )
    return GatewayConfig({"bootstrap.servers": NOTHING_HERE}, access=access, **options)


def shows(issuer: Issuer, **claims: Any) -> dict[str, str]:
    now_s = int(time.time())
    token = issuer.token(exp=now_s + 600, iat=now_s, **claims)
    return {"authorization": f"Bearer {token}"}


def test_tokens_over_http_while_the_issuer_changes() -> None:
    first, second = Issuer(kid="k1"), Issuer(kid="k2", algorithm="RS256")
    site = Site()
    site.status, site.body = 503, b""
    ticks = [10**12]

    def later() -> int:  # each look at the clock is a while after the one before
        ticks[0] += 10**9
        return ticks[0]

    with site.served() as issuer_url, gateway(config(issuer_url, monotonic=later)) as url:

        def asks(issuer: Issuer, **claims: Any) -> tuple[int, str, str | None]:
            status, answer, headers = call(url, "GET", PATH, None, shows(issuer, **claims))
            return status, answer["reason"], headers["www-authenticate"]

        assert asks(first)[:2] == (503, "ISSUER_UNREACHABLE")
        site.status, site.body = 200, first.key_set()
        wait_until(lambda: asks(first)[0] == 422, "the issuer is there")
        assert asks(first, scope="report")[:2] == (403, "INSUFFICIENT_SCOPE")
        assert asks(first, aud="other")[2] == 'Bearer error="invalid_token"'
        assert asks(second)[:2] == (401, "UNAUTHORIZED")
        site.body = second.key_set()
        wait_until(lambda: asks(second)[0] == 422, "the new key is known")
        assert asks(first)[:2] == (401, "UNAUTHORIZED")  # the old one is gone
        site.status = 500
        assert asks(second, jti="2")[0] == 422  # and the issuer too: its keys go on
        status, answer, _ = call(url, "GET", PATH, None, {"authorization": "Bearer dbk_0"})
        assert (status, answer["reason"]) == (401, "UNAUTHORIZED")
