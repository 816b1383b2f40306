"""API keys and a gateway that asks for them."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from durabill.producers.gateway.auth.access import AccessLimits
from durabill.producers.gateway.auth.api_keys import ApiKeyFile, ScopeName, encode_file, new_key
from durabill.producers.gateway.auth.config import AccessConfig
from durabill.producers.gateway.server import GatewayConfig

NOTHING_HERE = "127.0.0.1:1"  # a port that nobody listens on


class Keys:
    """A file of API keys, and their secrets."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = ApiKeyFile(1, ())

    def add(self, tenant: str, *scopes: ScopeName, client: str = "meters") -> dict[str, str]:
        """The headers of a new key."""
        shown, kept = new_key(
            tenant,
            client,
            scopes,
            now_ms=0,
            expires_ms=None,
            entropy=os.urandom,
        )
        self._file = ApiKeyFile(1, (*self._file.keys, kept))
        self.write(self._file)
        return {"authorization": f"Bearer {shown}"}

    def write(self, file: ApiKeyFile) -> None:
        """Replace the file."""
        draft = self.path.with_name("draft")
        draft.write_bytes(encode_file(file))
        draft.chmod(0o600)
        os.replace(draft, self.path)

    def config(self, workers: Sequence[str] = (), **options: Any) -> GatewayConfig:
        """A gateway that takes these keys; without a Kafka, unless one is given."""
        limits = options.pop("access_limits", AccessLimits())
        kafka = options.pop("kafka", {"bootstrap.servers": NOTHING_HERE})
        options.setdefault("delivery_timeout_ms", 500)
        access = AccessConfig("keys", self.path, limits=limits)
        return GatewayConfig(kafka, worker_urls=tuple(workers), access=access, **options)
