"""What the commands share: settings as flags, the local stack's addresses.

Nothing heavy is imported here, so that `durabill --help` answers at once.
"""

import functools
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from durabill.deploy.terminal import say

if TYPE_CHECKING:
    from durabill.schemas import WriterSchemas
    from durabill.stream_processors.settings import Settings

Command = Callable[..., None]
CONNECTION = (
    "bootstrap_servers",
    "security_protocol",
    "sasl_mechanism",
    "sasl_username",
    "sasl_password",
    "ssl_ca_location",
    "ssl_certificate_location",
    "ssl_key_location",
    "ssl_key_password",
    "data_dir",
)
TOPICS = ("segments_topic", "totals_topic", "orders_topic", "dead_letters_topic", "application_id")
REGISTRY = (
    "schema_registry_url",
    "schema_registry_username",
    "schema_registry_password",
    "schema_registry_ca_location",
    "schema_registry_certificate_location",
    "schema_registry_key_location",
)
TIMES = ("settle_grace_s", "idle_timeout_s", "correction_window_s", "interim_interval_s")
POLICY = (*TIMES, "opened_only")

SETTING_HELP = {
    "bootstrap_servers": "Where Kafka is: host:port[,host:port]. Default: the local stack's.",
    "security_protocol": "PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL.",
    "sasl_mechanism": "PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512.",
    "sasl_username": "User name for SASL.",
    "sasl_password": "Password for SASL; by the environment only, or in the file `…_FILE` names.",
    "ssl_ca_location": "File with the CA certificates that Kafka's must be signed by (PEM).",
    "ssl_certificate_location": "File with our certificate, where Kafka asks for one (PEM).",
    "ssl_key_location": "File with that certificate's key (PEM).",
    "ssl_key_password": "Password of that key; by the environment only, or by `…_FILE`.",
    "schema_registry_url": "Confluent-compatible registry; segments framed for it are read too.",
    "schema_registry_username": "User name for it (basic authentication).",
    "schema_registry_password": "Its password; by the environment only, or by `…_FILE`.",
    "schema_registry_ca_location": "File with the CA certificates to trust for it (PEM).",
    "schema_registry_certificate_location": "File with our certificate, where it asks for one.",
    "schema_registry_key_location": "File with that certificate's key, without a password.",
    "segments_framing": "What the gateway writes: single-object, or confluent (needs a registry).",
    "totals_framing": "What workers write: single-object, or confluent (needs a registry).",
    "application_id": "Name of this deployment: the worker's group, its checkpoint topic.",
    "previous_application_id": "Id whose recorded policies hold for what it has billed.",
    "segments_topic": "Topic of the segments.",
    "totals_topic": "Topic of the totals.",
    "orders_topic": "Topic of the orders that were opened.",
    "dead_letters_topic": "Topic of the dead letters.",
    "seal_topic": "Topic of the sealed log's checkpoints.",
    "settle_grace_s": "Wait after an order's end for missing segments, then INCOMPLETE.",
    "idle_timeout_s": "Wait for an order's next new segment, then ABANDONED.",
    "correction_window_s": "How long ago a segment may have ended and still count.",
    "interim_interval_s": "Longest time an order runs on without a total, then RUNNING; 0: never.",
    "opened_only": "Refuse segments of orders that no OrderOpened came ahead of: true or false.",
    "checkpoint_interval_s": "Time between checkpoints: what a crash replays at most.",
    "stall_timeout_s": "How long a worker may stand still before it says so; twice that ends it.",
    "worker_host": "Address that the worker's web server listens on.",
    "worker_port": "Its port; 0 finds a free one.",
    "worker_urls": "Web servers of workers: http://host:port, with commas between.",
    "worker_token": "Token of the workers' web servers; by the environment only, or by `…_FILE`.",
    "gateway_host": "Address that the gateway listens on.",
    "gateway_port": "Its port; 0 finds a free one.",
    "gateway_allowed_hosts": "Names that clients know the gateway by, name[,name]; * is any.",
    "gateway_access_log": "Log each request: true or false.",
    "gateway_auth": "Who may ask: none, keys, jwt, keys+jwt, or proxy: one in front sees to it.",
    "api_keys_file": "File of the API keys' hashes. Default: api-keys.json in the data folder.",
    "jwt_issuer": "Issuer of access tokens (RFC 9068), as their iss says.",
    "jwt_audience": "What tokens for this gateway have as aud.",
    "jwt_tenant_claim": "Claim of a token that names its tenant.",
    "jwks_url": "Where the issuer's public keys are: https://host/jwks.json.",
    "jwks_file": "The same as a file, in place of the URL.",
    "gateway_caller_requests_per_s": "Requests of one caller; ten times that at once. 0: any.",
    "gateway_auth_failures_per_min": "Bad keys of one address until it is slowed. 0: any.",
    "gateway_tls_certificate": "TLS certificate of the gateway, with its chain (PEM).",
    "gateway_tls_key": "File with that certificate's key (PEM).",
    "gateway_tls_client_ca": "Whose client certificates are taken (PEM); needs TLS.",
    "gateway_client_segments": "Segments of one client that may wait for Kafka at once.",
    "gateway_tenant_segments": "Segments of one tenant that may wait for Kafka at once.",
    "gateway_tenant_requests": "Requests of one tenant that may be under way at once.",
    "gateway_tenant_orders": "Orders of one tenant that may be open at once.",
    "gateway_connections": "Connections at once, of all clients.",
    "gateway_address_connections": "Connections at once of one address (IPv6: a /64).",
    "gateway_clock_offset_max_s": "Further off the broker's clock the gateway is not ready.",
    "report_interval_s": "How often clients are told to report.",
    "leases": "required, optional, or auto: required with authentication or opened orders only.",
    "lease_s": "How long a lease holds from a start or renewal on: its order may report late then.",
    "lease_keys_file": "File of the keys that sign leases. Default: made in the data folder.",
    "receipt_key_file": "File of the keys that sign receipts. Default: made in the data folder.",
    "ledger_dsn": "The ledger's PostgreSQL: postgresql://user@host/name, or by `…_FILE`.",
    "seal_dir": "Folder of the sealed log. Default: seal in the data folder.",
    "seal_key_file": "File with the key that signs the sealed log; `durabill keys make` makes it.",
    "seal_interval_s": "Time between two checkpoints of the sealed log.",
    "archive_dir": "Folder of the archive that `durabill archive` keeps of the segments.",
    "data_dir": "Folder of the local stack and of what runs here.",
}
"""One line for each setting; each is a flag."""

SETTING_DEFAULTS = {
    "security_protocol": "PLAINTEXT",
    "sasl_mechanism": "PLAIN",
    "segments_framing": "single-object",
    "totals_framing": "single-object",
    "application_id": "durabill",
    "segments_topic": "billing.segments",
    "totals_topic": "billing.totals",
    "orders_topic": "billing.orders",
    "dead_letters_topic": "billing.dead-letters",
    "seal_topic": "billing.seal-checkpoints",
    "settle_grace_s": "30",
    "idle_timeout_s": "300",
    "correction_window_s": "86400",
    "interim_interval_s": "86400",
    "opened_only": "false",
    "checkpoint_interval_s": "1",
    "stall_timeout_s": "60",
    "worker_host": "127.0.0.1",
    "worker_port": "0",
    "gateway_host": "127.0.0.1",
    "gateway_port": "8080",
    "gateway_access_log": "false",
    "gateway_auth": "none",
    "jwt_tenant_claim": "tenant",
    "gateway_caller_requests_per_s": "500",
    "gateway_auth_failures_per_min": "30",
    "gateway_client_segments": "2000",
    "gateway_tenant_segments": "20000",
    "gateway_tenant_requests": "1000",
    "gateway_tenant_orders": "100000",
    "gateway_connections": "4000",
    "gateway_address_connections": "2000",
    "gateway_clock_offset_max_s": "30",
    "report_interval_s": "10",
    "leases": "auto",
    "lease_s": "604800",
    "seal_interval_s": "10",
    "data_dir": ".durabill",
}
"""What the help says of each setting that has a default; a test compares it with `Settings`."""

AS_JSON = Annotated[bool, typer.Option("--json", help="For scripts: JSON on standard output.")]


def with_settings(*names: str) -> Callable[[Command], Command]:
    """Give a command a flag for each of these settings, and call it with `settings`.

    Flags are passed on as text, so that all that is wrong is reported at once.
    """

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def run(**arguments: Any) -> None:
            from durabill.deploy.commands.secret_flags import check_flags
            from durabill.stream_processors.settings import load_settings

            flags = {name: arguments.pop(name) for name in names}
            check_flags(flags)
            command(settings=load_settings(os.environ, **flags), **arguments)

        signature = inspect.signature(command)
        own = [each for each in signature.parameters.values() if each.name != "settings"]
        flags = [_flag(name) for name in names]
        # What typer reads; the wrapped function's own annotations name a type not imported here.
        run.__signature__ = signature.replace(parameters=own + flags)  # type: ignore[attr-defined]
        run.__annotations__ = {each.name: each.annotation for each in own + flags}
        return run

    return decorate


def _flag(name: str) -> inspect.Parameter:
    unit = "SECONDS" if name.endswith("_s") else "PORT" if name.endswith("_port") else "TEXT"
    default = SETTING_DEFAULTS.get(name)
    option = typer.Option(
        "--" + name.replace("_", "-"),
        help=SETTING_HELP[name] + (f" Default: {default}." if default else ""),
        metavar=unit,
        show_default=False,
        hidden=name.endswith("password"),  # refused: a command line can be read by everybody
        rich_help_panel="Settings (--some-setting is DURABILL_SOME_SETTING in the environment)",
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[str | None, option],
    )


def located(
    settings: "Settings", *required: str, ledger: bool = False, role: str | None = None
) -> "Settings":
    """Fill in the addresses of a local stack that runs, and insist on the `required` settings.

    Kafka's address is looked for always, the ledger's where it is required or `ledger` is true.
    With a `role`, returns once Kafka lets us in and grants what that needs (see `connect.enter`).
    """
    found = {}
    if not settings.bootstrap_servers:
        from durabill.deploy.local.kafka import LocalKafka

        kafka = LocalKafka(Path(settings.data_dir)).status()
        if kafka.usable and kafka.bootstrap_servers:
            found["bootstrap_servers"] = kafka.bootstrap_servers
            say(f"using the local Kafka at {kafka.bootstrap_servers}")
    if not settings.ledger_dsn and (ledger or "ledger_dsn" in required):
        dsn = local_ledger(settings)
        if dsn:
            found["ledger_dsn"] = dsn
            say(f"using the local PostgreSQL at {without_password(dsn)}")
    import msgspec

    settings = msgspec.structs.replace(settings, **found)
    settings.require(*required)
    if role is not None:
        from durabill.deploy.connect import enter

        enter(settings, role)
    return settings


def local_ledger(settings: "Settings") -> str | None:
    """Return where the local stack's PostgreSQL is, if it runs by now."""
    from durabill.deploy.local.postgres import LocalPostgres

    postgres = LocalPostgres(Path(settings.data_dir)).status()
    return postgres.dsn if postgres.running else None


def quiet_kafka(settings: "Settings") -> dict[str, Any]:
    """Return the librdkafka configuration for a short look: errors come as such, not as lines."""
    from durabill.stream_processors.kafka.options import quiet

    return quiet(settings.librdkafka())


def without_password(dsn: str) -> str:
    """Return where a DSN points, for messages, whichever form it has."""
    from durabill.stream_processors.dsn import shown_dsn

    return shown_dsn(dsn)


def writer_schemas(settings: "Settings") -> "WriterSchemas":
    """Return the schemas that segments may be written with: ours, and the registry's if any."""
    from durabill.schemas import WriterSchemas

    if not settings.schema_registry_url:
        return WriterSchemas()
    from durabill.schemas.errors import UnreachableError
    from durabill.stream_processors.worker.registry import NoAnswer, registry_of

    registry = registry_of(settings)

    def look_up(schema_id: int) -> str:
        try:
            schema = registry.ask(schema_id)
        except NoAnswer as error:
            # Nothing is known of the record then: to call it bad would be a guess.
            raise UnreachableError(
                f"The schema registry at {registry.address} (DURABILL_SCHEMA_REGISTRY_URL) does not"
                f" say what id {schema_id} is: {error}"
            ) from error
        if schema is None:
            raise LookupError("the registry has no such schema")
        return schema

    return WriterSchemas(look_up)
