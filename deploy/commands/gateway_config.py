"""What the gateway needs to know, from the settings; who may ask it is checked beforehand."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from durabill.deploy.commands.ask_workers import known_workers
from durabill.deploy.commands.common import local_ledger
from durabill.deploy.commands.framing import segments_framing
from durabill.schemas.errors import SettingsError
from durabill.schemas.web import is_loopback

if TYPE_CHECKING:
    from durabill.producers.gateway.auth.config import AccessConfig
    from durabill.producers.gateway.server import GatewayConfig
    from durabill.producers.gateway.tls import TlsFiles
    from durabill.stream_processors.settings import Settings

log = logging.getLogger("durabill.settings")
_LEDGER_PATIENCE_S = 2


def check_gateway(settings: "Settings") -> None:
    """Raise SettingsError, or another that is told, unless it is clear who may ask and how."""
    from durabill.producers.gateway.auth.config import check_access, open_access
    from durabill.producers.gateway.tls import ServedTls

    access, tls = access_of(settings), tls_of(settings)
    check_access(access, settings.gateway_host)
    are_leases_required(settings)
    open_access(access)
    if tls is not None:
        ServedTls(tls)
    elif access.knows_callers and not is_loopback(settings.gateway_host):
        log.warning(
            "the gateway listens on %s without TLS: keys and tokens go over the network in the"
            " clear. Give it DURABILL_GATEWAY_TLS_CERTIFICATE and DURABILL_GATEWAY_TLS_KEY, unless"
            " a proxy in front of it has TLS",
            settings.gateway_host,
        )


def warn_of_absent(settings: "Settings", ledger_dsn: str | None) -> None:
    """Say in the log what isn't there yet: the gateway starts all the same, and looks again."""
    import psycopg

    from durabill.deploy.topics import has_topic
    from durabill.schemas.errors import UnreachableError
    from durabill.stream_processors.dsn import connect, error_text, shown_dsn

    try:
        is_there = has_topic(settings.librdkafka(), settings.segments_topic)
    except UnreachableError:
        return  # it let us in a moment ago; the producer tells
    if not is_there:
        log.warning(
            "Kafka has no topic %s (DURABILL_SEGMENTS_TOPIC): nothing can be started or stored, and"
            " /readyz is 503, until it is there. `durabill topics create` makes it",
            settings.segments_topic,
        )
    try:
        if ledger_dsn:
            connect(ledger_dsn, connect_timeout=_LEDGER_PATIENCE_S).close()
    except psycopg.Error as error:
        log.warning(
            "the ledger at %s can't be asked (%s). Segments are taken all the same; what no worker"
            " knows of an order is answered with 503. Is it running, and is DURABILL_LEDGER_DSN"
            " right?",
            shown_dsn(ledger_dsn or ""),
            error_text(error),
        )


def access_of(settings: "Settings") -> "AccessConfig":
    """Return who may ask the gateway."""
    from durabill.producers.gateway.auth.access import AccessLimits
    from durabill.producers.gateway.auth.config import AccessConfig

    return AccessConfig(
        mode=settings.gateway_auth,
        keys_file=settings.api_keys_path,
        issuer=settings.jwt_issuer,
        audience=settings.jwt_audience,
        tenant_claim=settings.jwt_tenant_claim,
        jwks_url=settings.jwks_url,
        jwks_file=Path(settings.jwks_file) if settings.jwks_file else None,
        limits=AccessLimits(
            requests_per_s=settings.gateway_caller_requests_per_s,
            failures_per_min=settings.gateway_auth_failures_per_min,
        ),
    )


def are_leases_required(settings: "Settings") -> bool:
    """Tell whether every upload has to show a lease.

    Where nobody says: with authentication, and where orders have to be opened. Raises SettingsError
    where none is asked for, and segments of orders that nobody opened count for nothing.
    """
    if settings.opened_only and settings.leases == "optional":
        raise SettingsError(
            [
                "DURABILL_LEASES=optional doesn't go with DURABILL_OPENED_ONLY=true: the gateway"
                " would take segments of orders that were not opened, and that don't count. Say"
                " auto or required"
            ]
        )
    if settings.leases == "auto":
        return settings.opened_only or access_of(settings).knows_callers
    return settings.leases == "required"


def tls_of(settings: "Settings") -> "TlsFiles | None":
    """Return the gateway's TLS files, None without TLS; raise SettingsError for half of them."""
    certificate, key = settings.gateway_tls_certificate, settings.gateway_tls_key
    client_ca = settings.gateway_tls_client_ca
    if not (certificate or key or client_ca):
        return None
    needed = {"DURABILL_GATEWAY_TLS_CERTIFICATE": certificate, "DURABILL_GATEWAY_TLS_KEY": key}
    missing = [f"{name} is not set: TLS needs it" for name, value in needed.items() if not value]
    if missing:
        raise SettingsError(missing)
    from durabill.producers.gateway.tls import TlsFiles

    return TlsFiles(Path(certificate), Path(key), Path(client_ca) if client_ca else None)


def gateway_config(settings: "Settings") -> "GatewayConfig":
    """Return all that the gateway needs to know; raise SigningKeyError for keys of no use."""
    from durabill.deploy.commands.gateway_authority import authority_of
    from durabill.producers.gateway.server import GatewayConfig
    from durabill.producers.gateway.web_server import Limits
    from durabill.stream_processors.kafka.options import telling

    return GatewayConfig(
        kafka=telling(settings.librdkafka()),
        topic=settings.segments_topic,
        host=settings.gateway_host,
        port=settings.gateway_port,
        allowed_hosts=tuple(each.strip() for each in settings.gateway_allowed_hosts.split(",")),
        access_log=settings.gateway_access_log,
        access=access_of(settings),
        tls=tls_of(settings),
        report_interval_ms=round(settings.report_interval_s * 1000),
        find_workers=lambda: tuple(known_workers(settings)),
        worker_token=settings.worker_token,
        find_ledger=lambda: settings.ledger_dsn or local_ledger(settings),
        correction_window_ms=settings.policy.correction_window_ms,
        limits=Limits(
            connections_max=settings.gateway_connections,
            connections_per_address_max=settings.gateway_address_connections,
        ),
        client_segments_max=settings.gateway_client_segments,
        tenant_segments_max=settings.gateway_tenant_segments,
        tenant_requests_max=settings.gateway_tenant_requests,
        tenant_orders_max=settings.gateway_tenant_orders,
        authority=authority_of(settings, are_leases_required=are_leases_required(settings)),
        clock_offset_max_ms=round(settings.gateway_clock_offset_max_s * 1000),
        segments_framing=segments_framing(settings),
    )
