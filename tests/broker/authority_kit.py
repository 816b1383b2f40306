"""What the tests of the session authority share: callers with API keys, orders, uploads."""

import os
from pathlib import Path
from typing import Any, NamedTuple

from durabill.producers.gateway.auth.api_keys import ApiKeyFile, ScopeName, encode_file
from durabill.producers.gateway.auth.config import AccessConfig
from durabill.producers.gateway.auth.key_changes import create
from durabill.producers.sdk.http_uplink import quote_order_number
from tests.broker.gateway_kit import call


class Keys(NamedTuple):
    """A file of API keys, and each as it is shown, by tenant/client."""

    path: Path
    shown: dict[str, str]

    @property
    def access(self) -> AccessConfig:
        """A gateway that asks for them."""
        return AccessConfig(mode="keys", keys_file=self.path)

    def of(self, who: str) -> dict[str, str]:
        """The headers of one of them."""
        return {"authorization": f"Bearer {self.shown[who]}"}


def make_api_keys(path: Path, *whose: str) -> Keys:
    """A file with a key for each tenant/client; of the client `admin` with all scopes."""
    file, shown = ApiKeyFile(1, ()), {}
    for who in whose:
        tenant, _, client = who.partition("/")
        scopes: list[ScopeName] = ["report", "read"]
        if client == "admin":
            scopes.append("admin")
        file, shown[who], _ = create(
            file, tenant, client, scopes, now_ms=0, expires_ms=None, entropy=os.urandom
        )
    path.write_bytes(encode_file(file))
    path.chmod(0o600)
    return Keys(path, shown)


STAMPS = {"received_ms", "sent_ms", "clock_id"}
"""What is of one answer alone, and not of the order."""


def start(url: str, headers: dict[str, str] | None = None, **body: object) -> dict[str, Any]:
    """An order that was opened, without the answer's stamps."""
    status, grant, _ = call(url, "POST", "/v1/orders", body or None, headers)
    assert status == 201, grant
    return {name: value for name, value in grant.items() if name not in STAMPS}


def segment(
    number: int, start_ms: int, length_ms: int = 10, *, ends: bool = False
) -> dict[str, Any]:
    """A segment as it is uploaded."""
    return {
        "business_data_number": number,
        "start_ms": start_ms,
        "end_ms": start_ms + length_ms,
        "end_identifier": ends,
    }


def path_of(number: str, what: str = "/segments") -> str:
    """The path of an order."""
    return f"/v1/orders/{quote_order_number(number)}{what}"


def upload(
    url: str,
    grant: dict[str, Any],
    *segments: dict[str, Any],
    headers: dict[str, str] | None = None,
) -> tuple[int, dict[str, Any]]:
    """Upload segments of an order under its lease; gives status and answer."""
    shown = {"lease": grant["lease"], **(headers or {})}
    path = path_of(grant["service_order_number"])
    status, answer, _ = call(url, "POST", path, list(segments), shown)
    return status, answer
