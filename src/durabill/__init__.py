"""Exact, provable, cheap billing of services that are charged by time, on Kafka.

What a program that reports segments needs stands here; each name is imported when it is first
used. The rest of Durabill lies in the packages below: `schemas` (the contract), `producers`,
`stream_processors`, `deploy`.

    from durabill import Client, HttpUplink

    with Client(HttpUplink("http://127.0.0.1:8080"), "meter.spool") as client:
        with client.start() as service:
            print(service.service_order_number)
"""

from typing import TYPE_CHECKING

from durabill.schemas.lazy import lazy_names

if TYPE_CHECKING:
    from durabill.producers.sdk.async_client import AsyncClient, AsyncService
    from durabill.producers.sdk.client import Client, ClientStopped
    from durabill.producers.sdk.http_uplink import HttpUplink
    from durabill.producers.sdk.kafka_uplink import KafkaUplink
    from durabill.producers.sdk.server_clock import ServerStamps
    from durabill.producers.sdk.service import EndReceipt, Service
    from durabill.producers.sdk.session import ClockWentBackwards, ProducerError, SessionState
    from durabill.producers.sdk.spool import (
        RejectedSegment,
        SpoolBroken,
        SpoolBusy,
        SpoolDamaged,
        SpoolError,
        SpoolFull,
        SpoolUnsynced,
    )
    from durabill.producers.sdk.spool_errors import ReceiptsDropped
    from durabill.producers.sdk.standing import ClientStats
    from durabill.producers.sdk.suspends import Clocks, SuspendPolicy
    from durabill.producers.sdk.timekeeper import (
        ClockNotice,
        ClockSetBack,
        ClockStepped,
        MachineSlept,
    )
    from durabill.producers.sdk.uplink import (
        AtRisk,
        Backoff,
        Grant,
        OrderFailed,
        UplinkError,
        UplinkRefused,
        UplinkUnavailable,
        WillNotCount,
    )
    from durabill.schemas.errors import BadRecord, DurabillError
    from durabill.schemas.extras import ExtraMissing

__version__ = "0.1.0"
"""The one place where the version stands; a build reads it here."""

__all__ = [
    "AsyncClient",
    "AsyncService",
    "AtRisk",
    "Backoff",
    "BadRecord",
    "Client",
    "ClientStats",
    "ClientStopped",
    "ClockNotice",
    "ClockSetBack",
    "ClockStepped",
    "ClockWentBackwards",
    "Clocks",
    "DurabillError",
    "EndReceipt",
    "ExtraMissing",
    "Grant",
    "HttpUplink",
    "KafkaUplink",
    "MachineSlept",
    "OrderFailed",
    "ProducerError",
    "ReceiptsDropped",
    "RejectedSegment",
    "ServerStamps",
    "Service",
    "SessionState",
    "SpoolBroken",
    "SpoolBusy",
    "SpoolDamaged",
    "SpoolError",
    "SpoolFull",
    "SpoolUnsynced",
    "SuspendPolicy",
    "UplinkError",
    "UplinkRefused",
    "UplinkUnavailable",
    "WillNotCount",
    "__version__",
]

_MODULES = {
    "producers.sdk.async_client": ("AsyncClient", "AsyncService"),
    "producers.sdk.client": ("Client", "ClientStopped"),
    "producers.sdk.http_uplink": ("HttpUplink",),
    "producers.sdk.kafka_uplink": ("KafkaUplink",),
    "producers.sdk.service": ("EndReceipt", "Service"),
    "producers.sdk.session": ("ClockWentBackwards", "ProducerError", "SessionState"),
    "producers.sdk.spool": (
        "RejectedSegment",
        "SpoolBroken",
        "SpoolBusy",
        "SpoolDamaged",
        "SpoolError",
        "SpoolFull",
        "SpoolUnsynced",
    ),
    "producers.sdk.spool_errors": ("ReceiptsDropped",),
    "producers.sdk.standing": ("ClientStats",),
    "producers.sdk.server_clock": ("ServerStamps",),
    "producers.sdk.suspends": ("Clocks", "SuspendPolicy"),
    "producers.sdk.timekeeper": (
        "ClockNotice",
        "ClockSetBack",
        "ClockStepped",
        "MachineSlept",
    ),
    "producers.sdk.uplink": (
        "AtRisk",
        "Backoff",
        "Grant",
        "OrderFailed",
        "UplinkError",
        "UplinkRefused",
        "UplinkUnavailable",
        "WillNotCount",
    ),
    "schemas.errors": ("BadRecord", "DurabillError"),
    "schemas.extras": ("ExtraMissing",),
}

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_names(__name__, _MODULES)
