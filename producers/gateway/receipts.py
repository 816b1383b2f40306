"""Receipts: the gateway's signed word that Kafka has acknowledged an upload, for third parties.

What a receipt says, and how anybody checks it, stands in `schemas.upload_receipt`. Kafka
acknowledges the records of many requests at once. Their receipts are signed together, in the next
turn of the event loop.
"""

import asyncio
import os
from collections.abc import Callable, Sequence

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from durabill.producers.gateway.caller import Caller
from durabill.producers.gateway.key_files import WatchedKeys
from durabill.producers.gateway.key_sets import Jwk, ReceiptKeys, public_keys_of
from durabill.schemas.base64url import decode64
from durabill.schemas.upload_receipt import ReceiptUpload, Statement, receipts_of

_SALT_BYTES = 16


class ReceiptSigner:
    """Signs receipts of uploads to one topic. Belongs to one event loop.

    `now_ms` is the server's time, `entropy` gives so many unguessable bytes.
    """

    def __init__(
        self,
        keys: WatchedKeys,
        topic: str,
        now_ms: Callable[[], int],
        entropy: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._watched = keys
        self._topic = topic
        self._now_ms = now_ms
        self._entropy = entropy
        self._signer: tuple[Jwk, Ed25519PrivateKey] | None = None
        self._waiting: list[tuple[Statement, asyncio.Future[str]]] = []

    async def sign(self, caller: Caller, uploads: Sequence[ReceiptUpload]) -> str:
        """Return the receipt of what one request has stored, order by order."""
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_soon(self._sign_waiting)
        signed: asyncio.Future[str] = loop.create_future()
        self._waiting.append((self.statement(caller, uploads), signed))
        return await signed

    def statement(self, caller: Caller, uploads: Sequence[ReceiptUpload]) -> Statement:
        """Return what the receipt of such a request says."""
        salt = self._entropy(_SALT_BYTES).hex()
        return Statement(caller.tenant, caller.client, self._topic, tuple(uploads), salt)

    def sign_together(self, statements: Sequence[Statement]) -> list[str]:
        """Return the receipts of some statements."""
        now_ms = self._now_ms()
        self._watched.look()
        keys = self._watched.keys
        key = keys.keys[0] if len(keys.keys) == 1 else keys.signer(now_ms)
        if self._signer is None or self._signer[0] is not key:
            self._signer = key, Ed25519PrivateKey.from_private_bytes(decode64(key.d))
        return receipts_of(statements, now_ms, key.kid, self._signer[1].sign)

    def public_keys(self) -> ReceiptKeys:
        """Return the public keys of all that has been signed, and will be, the newest first."""
        self._watched.look()
        return public_keys_of(self._watched.keys)

    def _sign_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        try:
            receipts = self.sign_together([statement for statement, _ in waiting])
        except Exception as error:  # a request's own fault then, as if it had signed by itself
            for _, signed in waiting:
                if not signed.done():
                    signed.set_exception(error)
            return
        for (_, signed), receipt in zip(waiting, receipts, strict=True):
            if not signed.done():  # else it was cancelled: nobody waits any more
                signed.set_result(receipt)
