"""Exact, provable, cheap billing of services that are charged by time, on Kafka.

What a program that reports segments needs stands here; each name is imported when it is first
used. The rest of Durabill lies in the packages below: `schemas` (the contract), `producers`,
`stream_processors`, `deploy`.

    from durabill import Client, HttpUplink

    with Client(HttpUplink("http://127.0.0.1:8080"), "meter.spool") as client:
        with client.start() as service:
            print(service.service_order_number)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from durabill.producers.sdk.client import Client, ClientStopped
    from durabill.producers.sdk.service import EndReceipt, Service
    from durabill.producers.sdk.session import ProducerError
    from durabill.producers.sdk.spool import SpoolBroken, SpoolBusy, SpoolError, SpoolFull
    from durabill.producers.sdk.uplink import UplinkError, UplinkRefused, UplinkUnavailable
    from durabill.producers.sdk.uplinks import HttpUplink, KafkaUplink

__all__ = [
    "Client",
    "ClientStopped",
    "EndReceipt",
    "HttpUplink",
    "KafkaUplink",
    "ProducerError",
    "Service",
    "SpoolBroken",
    "SpoolBusy",
    "SpoolError",
    "SpoolFull",
    "UplinkError",
    "UplinkRefused",
    "UplinkUnavailable",
]

_MODULES = {
    "client": ("Client", "ClientStopped"),
    "service": ("EndReceipt", "Service"),
    "session": ("ProducerError",),
    "spool": ("SpoolBroken", "SpoolBusy", "SpoolError", "SpoolFull"),
    "uplink": ("UplinkError", "UplinkRefused", "UplinkUnavailable"),
    "uplinks": ("HttpUplink", "KafkaUplink"),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"durabill.producers.sdk.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names, also those that have not been imported yet."""
    return sorted({*globals(), *__all__})
