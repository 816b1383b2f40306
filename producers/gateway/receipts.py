"""Receipts: the gateway's signed word that Kafka has acknowledged an upload, for third parties.

A compact JWS with alg Ed25519 (RFC 9864), made once a request. What it says, and how anybody checks
it, stands in `schemas.upload_receipt`.
"""

from collections.abc import Callable, Sequence

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from durabill.producers.gateway.caller import Caller
from durabill.producers.gateway.key_files import WatchedKeys
from durabill.producers.gateway.key_sets import Jwk, ReceiptKeys, decode64, encode64, public_keys_of
from durabill.schemas.upload_receipt import (
    ReceiptUpload,
    UploadReceipt,
    receipt_head,
)


class ReceiptSigner:
    """Signs receipts of uploads to one topic. Belongs to one event loop.

    `now_ms` is the server's time.
    """

    def __init__(self, keys: WatchedKeys, topic: str, now_ms: Callable[[], int]) -> None:
        self._watched = keys
        self._topic = topic
        self._now_ms = now_ms
        self._signer: tuple[Jwk, str, Ed25519PrivateKey] | None = None

    def sign(self, caller: Caller, uploads: Sequence[ReceiptUpload]) -> str:
        """Return the receipt of what one request has stored, order by order."""
        now_ms = self._now_ms()
        self._watched.look()
        keys = self._watched.keys
        key = keys.keys[0] if len(keys.keys) == 1 else keys.signer(now_ms)
        if self._signer is None or self._signer[0] is not key:
            private = Ed25519PrivateKey.from_private_bytes(decode64(key.d))
            self._signer = key, receipt_head(key.kid), private
        _, head, private = self._signer
        receipt = UploadReceipt(now_ms, caller.tenant, caller.client, self._topic, tuple(uploads))
        signed = f"{head}.{encode64(msgspec.json.encode(receipt))}"
        return f"{signed}.{encode64(private.sign(signed.encode()))}"

    def public_keys(self) -> ReceiptKeys:
        """Return the public keys of all that has been signed, and will be, the newest first."""
        self._watched.look()
        return public_keys_of(self._watched.keys)
