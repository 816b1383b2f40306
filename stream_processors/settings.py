"""All settings, from the environment (`DURABILL_*`) and from flags; every error at once.

A field's environment name is its own in capitals with the prefix DURABILL_. Flags win over the
environment. The options of Kafka clients stand in `kafka.options`, each with its why.
"""

import re
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from durabill.schemas import DEAD_LETTERS_TOPIC, SEGMENTS_TOPIC, TOTALS_TOPIC
from durabill.schemas.errors import SettingsError
from durabill.schemas.limits import GRACE_FACTOR_MAX, INTERIM_TOTALS_MAX, POLICY_TIME_MAX_S
from durabill.schemas.topics import ORDERS_TOPIC, SEAL_TOPIC, Topics
from durabill.schemas.web import host_name
from durabill.stream_processors.core.order import Policy

PREFIX = "DURABILL_"
INTERIM_INTERVAL_MIN_S = 1
Seconds = Annotated[float, msgspec.Meta(ge=0, le=POLICY_TIME_MAX_S)]
Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Named = Annotated[str, msgspec.Meta(min_length=1)]
TopicName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._-]{1,249}\Z")]  # as Kafka has it
SECRETS = (
    *("sasl_password", "ssl_key_password", "schema_registry_password"),
    *("ledger_dsn", "worker_token"),
)
"""Settings that are, or may hold, a password: never shown; each may come from a file as well."""

_FILE = "_FILE"
Framing = Literal["single-object", "confluent"]
Mechanism = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]


def checkpoint_topic(application_id: str) -> str:
    """Return the name of an application's changelog topic."""
    return f"{application_id}-checkpoint-changelog"


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The one settings object. Times in seconds here, in milliseconds everywhere else.

    Its text shows no secrets: it may get into a log or a traceback.
    """

    bootstrap_servers: str = ""
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Mechanism = "PLAIN"
    sasl_username: str = ""
    sasl_password: str = ""
    ssl_ca_location: str = ""
    ssl_certificate_location: str = ""
    ssl_key_location: str = ""
    ssl_key_password: str = ""
    schema_registry_url: str = ""
    schema_registry_username: str = ""
    schema_registry_password: str = ""
    schema_registry_ca_location: str = ""
    schema_registry_certificate_location: str = ""
    schema_registry_key_location: str = ""
    segments_framing: Framing = "single-object"
    totals_framing: Framing = "single-object"

    application_id: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._-]{1,100}\Z")] = "durabill"
    previous_application_id: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._-]{0,100}\Z")] = ""
    segments_topic: TopicName = SEGMENTS_TOPIC
    totals_topic: TopicName = TOTALS_TOPIC
    orders_topic: TopicName = ORDERS_TOPIC
    dead_letters_topic: TopicName = DEAD_LETTERS_TOPIC
    seal_topic: TopicName = SEAL_TOPIC

    settle_grace_s: Seconds = 30
    idle_timeout_s: Seconds = 300
    correction_window_s: Seconds = 86_400
    interim_interval_s: Seconds = 86_400
    opened_only: bool = False
    checkpoint_interval_s: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 1.0
    stall_timeout_s: Annotated[float, msgspec.Meta(ge=1, le=3600)] = 60.0

    worker_host: Named = "127.0.0.1"
    worker_port: Port = 0
    worker_urls: str = ""
    worker_token: str = ""
    gateway_host: Named = "127.0.0.1"
    gateway_port: Port = 8080
    gateway_allowed_hosts: str = ""
    gateway_access_log: bool = False
    gateway_auth: Literal["none", "keys", "jwt", "keys+jwt", "proxy"] = "none"
    api_keys_file: str = ""
    jwt_issuer: str = ""
    jwt_audience: str = ""
    jwt_tenant_claim: str = "tenant"
    jwks_url: str = ""
    jwks_file: str = ""
    gateway_caller_requests_per_s: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 500
    gateway_auth_failures_per_min: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 30
    gateway_tls_certificate: str = ""
    gateway_tls_key: str = ""
    gateway_tls_client_ca: str = ""
    gateway_client_segments: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 2_000
    gateway_tenant_segments: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 20_000
    gateway_tenant_requests: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 1_000
    gateway_tenant_orders: Annotated[int, msgspec.Meta(ge=1, le=10_000_000)] = 100_000
    gateway_connections: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 4_000
    gateway_address_connections: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 2_000
    gateway_clock_offset_max_s: Annotated[float, msgspec.Meta(ge=1, le=86_400)] = 30.0
    report_interval_s: Annotated[float, msgspec.Meta(ge=0.001, le=86_400)] = 10
    leases: Literal["auto", "required", "optional"] = "auto"
    lease_s: Annotated[float, msgspec.Meta(ge=60, le=POLICY_TIME_MAX_S)] = 604_800
    lease_keys_file: str = ""
    receipt_key_file: str = ""

    ledger_dsn: str = ""
    seal_dir: str = ""
    seal_key_file: str = ""
    seal_interval_s: Annotated[float, msgspec.Meta(ge=0.1, le=3600)] = 10.0
    archive_dir: str = ""
    data_dir: Named = ".durabill"

    def __repr__(self) -> str:
        return f"Settings({', '.join(self._shown())})"

    def _shown(self) -> Iterator[str]:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            hidden = value and (name in SECRETS or "@" in str(value))  # a URL's user and password
            yield f"{name}={'…' if hidden else repr(value)}"

    @property
    def checkpoint_topic(self) -> str:
        """Return the name of the changelog topic of the interval table."""
        return checkpoint_topic(self.application_id)

    @property
    def topics(self) -> Topics:
        """Return the names of all topics; raises SettingsError unless they differ."""
        return Topics(
            segments=self.segments_topic,
            totals=self.totals_topic,
            dead_letters=self.dead_letters_topic,
            checkpoint=self.checkpoint_topic,
            orders=self.orders_topic,
        )

    @property
    def all_topics(self) -> Topics:
        """Return the same with that of the sealed log's checkpoints."""
        return replace(self.topics, seal=self.seal_topic)

    @property
    def seal_folder(self) -> Path:
        """Return the folder of the sealed log."""
        return Path(self.seal_dir or Path(self.data_dir) / "seal")

    @property
    def api_keys_path(self) -> Path:
        """Return the file of API keys."""
        return Path(self.api_keys_file or Path(self.data_dir) / "api-keys.json")

    @property
    def lease_keys(self) -> Path:
        """Return the file of the keys that sign leases."""
        return Path(self.lease_keys_file or Path(self.data_dir) / "gateway-leases.json")

    @property
    def receipt_keys(self) -> Path:
        """Return the file of the keys that sign receipts."""
        return Path(self.receipt_key_file or Path(self.data_dir) / "gateway-receipts.json")

    @property
    def policy(self) -> Policy:
        """Return the settlement policy, in milliseconds."""
        return Policy(
            settle_grace_ms=round(self.settle_grace_s * 1000),
            idle_timeout_ms=round(self.idle_timeout_s * 1000),
            correction_window_ms=round(self.correction_window_s * 1000),
            interim_interval_ms=round(self.interim_interval_s * 1000),
            opened_only=self.opened_only,
        )

    def interim_problems(self) -> list[str]:
        """Return what is wrong with the interval of interim totals, beside the waits."""
        name, interval_s = f"{PREFIX}INTERIM_INTERVAL_S", self.interim_interval_s
        if interval_s == 0:
            return []
        if interval_s < INTERIM_INTERVAL_MIN_S:
            least = f"the least is {INTERIM_INTERVAL_MIN_S}, and 0 means never"
            return [f"{name}={interval_s:g}: {least}"]
        allowed_s = interval_s * INTERIM_TOTALS_MAX
        waits = {
            "IDLE_TIMEOUT_S": (self.idle_timeout_s, ""),
            "SETTLE_GRACE_S": (self.settle_grace_s * GRACE_FACTOR_MAX, f" x {GRACE_FACTOR_MAX}"),
        }
        return [
            f"{PREFIX}{wait}{times} is {wait_s:g} s, more than {INTERIM_TOTALS_MAX:,} times"
            f" {name}={interval_s:g}: one order could be due so many interim totals at once."
            f" Set {name} to {wait_s / INTERIM_TOTALS_MAX:g} or more, or to 0 for none"
            for wait, (wait_s, times) in waits.items()
            if wait_s > allowed_s
        ]

    def librdkafka(self) -> dict[str, str]:
        """Return the connection part of a confluent-kafka configuration."""
        conf = {
            "bootstrap.servers": self.bootstrap_servers,
            "security.protocol": self.security_protocol,
        }
        if self.security_protocol.startswith("SASL"):
            conf["sasl.mechanism"] = self.sasl_mechanism
            conf["sasl.username"] = self.sasl_username
            conf["sasl.password"] = self.sasl_password
        for key in ("ca.location", "certificate.location", "key.location", "key.password"):
            value = getattr(self, "ssl_" + key.replace(".", "_"))
            if value and self.security_protocol.endswith("SSL"):
                conf[f"ssl.{key}"] = value
        return conf

    def ssl_context(self) -> ssl.SSLContext | None:
        """Return the TLS context for the worker's consumer, or None without TLS."""
        if not self.security_protocol.endswith("SSL"):
            return None
        context = ssl.create_default_context(cafile=self.ssl_ca_location or None)
        if self.ssl_certificate_location:
            context.load_cert_chain(
                self.ssl_certificate_location,
                self.ssl_key_location or None,
                self.ssl_key_password,  # also where empty: without any it asks at the terminal
            )
        return context

    def require(self, *names: str) -> None:
        """Raise SettingsError for all of these settings that are empty."""
        problems = [
            f"{PREFIX}{name.upper()} is not set: {_WHAT_FOR.get(name, 'this command needs it')}"
            for name in names
            if not getattr(self, name)
        ]
        if problems:
            raise SettingsError(problems)


_FILES = ("ssl_ca_location", "ssl_certificate_location", "ssl_key_location")
_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[^\s:/\[\]]+)(:[0-9]{1,5})?")
_DEFAULTS = msgspec.structs.asdict(Settings())
_WHAT_FOR = {
    "bootstrap_servers": "where Kafka is, host:port[,host:port]; `durabill kafka start` runs one",
    "schema_registry_url": "where the registry is, http://… or https://…",
    "seal_key_file": "the key that signs; `durabill keys make FILE` makes one",
    "archive_dir": "the folder of the archive; --archive-dir names one too",
    "ledger_dsn": "where PostgreSQL is, as postgresql://user@host:port/database",
}


def load_settings(environ: Mapping[str, str], **flags: Any) -> Settings:
    """Return the settings; flags that are None don't count. Raises SettingsError with all faults.

    A variable that starts with DURABILL_ and is no setting is a fault as well (a typing error in
    a grace period would otherwise bill by the default), except DURABILL_TEST_* and the switches
    that the local stack reads itself (DURABILL_NO_SYSTEM_TOOLS, DURABILL_MAVEN_REPOSITORY).
    Each of SECRETS may stand in a file instead, which DURABILL_..._FILE names.
    """
    raw: dict[str, Any] = {}
    problems: list[str] = []
    for variable, value in environ.items():
        name = variable.removeprefix(PREFIX).lower()
        is_file = variable.endswith(_FILE) and name.removesuffix(_FILE.lower()) in SECRETS
        if not variable.startswith(PREFIX) or variable.startswith(
            (PREFIX + "TEST_", PREFIX + "NO_SYSTEM_TOOLS", PREFIX + "MAVEN_REPOSITORY")
        ):
            continue
        if is_file and variable.startswith(PREFIX):
            name = name.removesuffix(_FILE.lower())
            if PREFIX + name.upper() in environ:
                problems.append(f"{variable} and {PREFIX}{name.upper()} are both set: give one")
            elif flags.get(name) is None:
                raw[name] = _content(variable, value, problems)
        elif name not in Settings.__struct_fields__:
            known = [PREFIX + each.upper() for each in Settings.__struct_fields__]
            near = [f"; is it {each}?" for each in get_close_matches(variable, known, 1, 0.8)]
            problems.append("".join([f"{variable} is no setting of Durabill", *near]))
        else:
            raw[name] = value
    raw.update({name: value for name, value in flags.items() if value is not None})
    good: dict[str, Any] = {}
    hints = get_type_hints(Settings, include_extras=True)
    for name, value in raw.items():
        if not str(value).isascii() and re.search("[\ud800-\udfff]", str(value)):
            problems.append(f"{PREFIX}{name.upper()} is no text in UTF-8")
            continue
        try:
            good[name] = msgspec.convert(value, hints[name], strict=False)
        except msgspec.ValidationError as error:
            shown = "…" if name in SECRETS else _unsecret(str(value))
            problems.append(f"{PREFIX}{name.upper()}={shown}: {_explain(error, hints[name])}")
    problems += _connection_problems({**_DEFAULTS, **good})
    if dsn := good.get("ledger_dsn"):
        from durabill.stream_processors.dsn import (  # psycopg is for those who need it
            BadDsn,
            read_dsn,
        )

        try:
            read_dsn(dsn)
        except BadDsn as error:
            problems.append(f"{PREFIX}LEDGER_DSN: {error}")
    if not problems:
        settings = Settings(**good)
        problems = [*settings.interim_problems(), *_topic_problems(settings)]
    if problems:
        raise SettingsError(problems)
    return settings


def _topic_problems(settings: Settings) -> list[str]:
    """Return what is wrong with the topics' names together."""
    try:
        _ = settings.all_topics  # checks them as they are made
    except SettingsError as error:
        return error.problems
    return []


_BOUND = re.compile(r"Expected `(?:int|float)` (<=|>=|<|>) (.+)")
_BOUNDS = {">=": "at least", ">": "more than", "<=": "at most", "<": "less than"}
_PATTERN = re.compile(r".*matching regex '\^\[A-Za-z0-9\._-\]\{([01]),(\d+)\}.*")
_KINDS = {float: "a number", int: "a whole number", bool: "true or false"}


def _explain(error: msgspec.ValidationError, hint: Any) -> str:
    """Return what is wrong with a value; of an enumeration also what is allowed."""
    if get_origin(hint) is Literal:
        return f"it must be one of {', '.join(get_args(hint))}"
    if bound := _BOUND.fullmatch(str(error)):
        return f"it must be {_BOUNDS[bound[1]]} {float(bound[2]):.15g}"
    if pattern := _PATTERN.fullmatch(str(error)):
        return f"it must be {pattern[1]} to {pattern[2]} letters of A-Z a-z 0-9 . _ -"
    if hint == Named:
        return "it must not be empty"
    kind = _KINDS.get(getattr(hint, "__origin__", hint))
    return str(error) if kind is None else f"it must be {kind}"


def _connection_problems(values: Mapping[str, Any]) -> Iterator[str]:
    """Yield what can be known of the connection's settings before anything connects."""
    for address in filter(None, values["bootstrap_servers"].split(",")):
        if not _ADDRESS.fullmatch(address):
            yield f"{PREFIX}BOOTSTRAP_SERVERS: {address!r} is no HOST:PORT"
    for url in _parts(values["worker_urls"]):
        if not url.startswith(("http://", "https://")):
            yield f"{PREFIX}WORKER_URLS: {_unsecret(url)} is no http://HOST:PORT"
    for name in _parts(values["gateway_allowed_hosts"]):
        if name != "*" and host_name(name) is None:
            yield f"{PREFIX}GATEWAY_ALLOWED_HOSTS: {_unsecret(name)} is no name of a host"
    protocol = values["security_protocol"]
    is_tls = protocol.endswith("SSL")
    if protocol.startswith("SASL") and not values["sasl_username"]:
        yield f"{PREFIX}SASL_USERNAME is not set, and {PREFIX}SECURITY_PROTOCOL={protocol} needs it"
    for name in _FILES:
        path = values[name]
        if is_tls and path and (why := _unreadable(path)):
            yield f"{PREFIX}{name.upper()}={path!r} can't be read: {why}"
    yield from _registry_problems(values)
    if is_tls and values["ssl_key_location"] and not values["ssl_certificate_location"]:
        yield f"{PREFIX}SSL_KEY_LOCATION is set without {PREFIX}SSL_CERTIFICATE_LOCATION"


def _parts(text: str) -> list[str]:
    return [part for each in text.split(",") if (part := each.strip())]


def _unsecret(text: str) -> str:
    """Return a value as it may be shown: an address may hold a user and a password."""
    return "…" if "@" in text else repr(text)


def _registry_problems(values: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the settings of a schema registry."""
    url, prefix = values["schema_registry_url"], f"{PREFIX}SCHEMA_REGISTRY"
    if url and not url.startswith(("http://", "https://")):
        yield f"{prefix}_URL: it begins with http:// or https://"
    for name in ("segments_framing", "totals_framing"):
        if values[name] == "confluent" and not url:
            yield f"{PREFIX}{name.upper()}=confluent needs {prefix}_URL: ids come from a registry"
    if values["schema_registry_password"] and not values["schema_registry_username"]:
        yield f"{prefix}_PASSWORD is set without {prefix}_USERNAME"
    for name in ("ca", "certificate", "key"):
        path = values[f"schema_registry_{name}_location"]
        if path and (why := _unreadable(path)):
            yield f"{prefix}_{name.upper()}_LOCATION={path!r} can't be read: {why}"
    if (
        values["schema_registry_key_location"]
        and not values["schema_registry_certificate_location"]
    ):
        yield f"{prefix}_KEY_LOCATION is set without {prefix}_CERTIFICATE_LOCATION"


def _unreadable(path: str) -> str | None:
    """Return why a file can't be read, None if it can."""
    try:
        with open(path, "rb"):
            return None
    except OSError as error:
        return error.strerror


def _content(variable: str, path: str, problems: list[str]) -> str:
    """Return a file's text without the line end that editors put there."""
    try:
        content = Path(path).read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
        problems.append(f"{variable}={path}: the file can't be read: {why}")
        return ""
    if not content:  # taken as it is it would mean "none": a web server that asks for no token, say
        problems.append(f"{variable}={path}: the file is empty")
    return content
