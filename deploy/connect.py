"""Comes in at Kafka before a command or a process does anything: is it there, does it let us in?

librdkafka tries for ever, and says why in its log lines and its error callback alone. Both are
listened to here, and what they say is told with the setting that it is about. What waiting can't
mend (a name that nobody knows, a password, a certificate) ends within seconds; what may come by
itself (a broker that isn't up yet) is waited for, with a word after two seconds.
"""

import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from confluent_kafka import KafkaError, KafkaException, Producer

from durabill.deploy.terminal import say
from durabill.schemas.errors import UnreachableError
from durabill.stream_processors.kafka.errors import WORD_AFTER_S

if TYPE_CHECKING:
    from durabill.stream_processors.settings import Settings

PROCESS_PATIENCE_S = 30.0
"""How long a process that is to run on waits for Kafka; then a process manager starts it again."""

COMMAND_PATIENCE_S = 10.0
"""How long a command waits, which somebody sits before."""

SAY_AGAIN_S = 5.0
_ASK_S = 0.5
_NOISE = re.compile(r" \(after \d+ms in state [^)]*\)")


@dataclass(frozen=True)
class _Kind:
    """A kind of trouble, by a pattern of what librdkafka says of it; the first that fits counts.

    `certain_s`: waiting won't help where it is still so after so many seconds; None: it may.
    """

    pattern: str
    certain_s: float | None
    advice: Callable[["Settings"], str]


def _protocol(settings: "Settings") -> str:
    return (
        f"DURABILL_SECURITY_PROTOCOL is {settings.security_protocol}, which doesn't seem to be what"
        " Kafka speaks at this address (PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL)"
    )


def _protocol_or_running(settings: "Settings") -> str:
    return f"{_protocol(settings)}, or something else listens there"


def _mechanism(settings: "Settings") -> str:
    return f"DURABILL_SASL_MECHANISM is {settings.sasl_mechanism}; Kafka takes others here"


def _credentials(settings: "Settings") -> str:
    return (
        f"Look at DURABILL_SASL_USERNAME ({settings.sasl_username}), DURABILL_SASL_PASSWORD and"
        f" DURABILL_SASL_MECHANISM ({settings.sasl_mechanism})"
    )


def _authority(settings: "Settings") -> str:
    file = settings.ssl_ca_location or "not set: the system's certificates count"
    return (
        f"DURABILL_SSL_CA_LOCATION ({file}) must hold the certificate that Kafka's is signed by,"
        f" and Kafka's must be for the host names in DURABILL_BOOTSTRAP_SERVERS"
    )


def _certificate(settings: "Settings") -> str:
    files = settings.ssl_certificate_location or "not set", settings.ssl_key_location or "not set"
    return (
        f"Kafka refuses our certificate, or misses it: DURABILL_SSL_CERTIFICATE_LOCATION"
        f" ({files[0]}) and DURABILL_SSL_KEY_LOCATION ({files[1]})"
    )


def _file(name: str) -> Callable[["Settings"], str]:
    variable = f"DURABILL_SSL_{name.upper()}"
    return lambda settings: (
        f"{variable} ({getattr(settings, f'ssl_{name}')}) can't be used: it must be a PEM file"
        + (", and DURABILL_SSL_KEY_PASSWORD its password" if name == "key_location" else "")
    )


def _name(settings: "Settings") -> str:
    return "No such host is known: look at DURABILL_BOOTSTRAP_SERVERS"


def _running(settings: "Settings") -> str:
    return (
        "Is it running, and is DURABILL_BOOTSTRAP_SERVERS right? `durabill kafka start` runs one"
        " on this machine"
    )


_KINDS = (
    _Kind(r"ssl\.ca\.location failed", 0, _file("ca_location")),
    _Kind(r"ssl\.certificate\.location failed", 0, _file("certificate_location")),
    _Kind(r"ssl\.key\.location failed", 0, _file("key_location")),
    _Kind(r"Unsupported SASL mechanism", 1, _mechanism),
    _Kind(r"current SASL state", 1, _protocol),
    _Kind(r"(?i)SASL auth|authentication failed|invalid credentials", 1, _credentials),
    _Kind(r"certificate verify failed", 1, _authority),
    _Kind(r"alert (bad|no|unknown|unsupported)? ?(certificate|ca)|certificate ", 1, _certificate),
    _Kind(r"security\.protocol|broker listener\?|SSL listener\?", 3, _protocol),
    _Kind(r"require SASL|wrong version number|Invalid response size", 3, _protocol),
    _Kind(r"closed by peer", 4, _protocol_or_running),
    _Kind(r"Failed to resolve", 3, _name),
    _Kind(r"", None, _running),
)


class _Ears(logging.Handler):
    """Hears what librdkafka says of one client; keeps the last cause of each broker."""

    def __init__(self) -> None:
        super().__init__()
        self.causes: dict[str, str] = {}
        self.logger = logging.Logger("librdkafka")  # of this client alone: nobody else hears it
        self.logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Hear a log line: `FAIL [client] [thread]: broker: cause`."""
        self._hear(record.getMessage().partition("]: ")[2])

    def on_error(self, error: KafkaError) -> None:
        """Hear an error of the error callback: `broker: cause`."""
        if error.code() != KafkaError._ALL_BROKERS_DOWN:
            self._hear(error.str())

    def _hear(self, text: str) -> None:
        broker, _, cause = _NOISE.sub("", text).partition(": ")
        address = broker.rpartition("://")[2].partition("/")[0]
        if ":" in address and cause:
            self.causes.pop(address, None)
            self.causes[address] = cause

    def said(self) -> str:
        """Return what it said last of each broker; of three brokers at most."""
        last = list(self.causes.items())[-3:]
        return "; ".join(f"{address}: {cause}" for address, cause in last) or "no answer"


def kind_of(cause: str) -> _Kind:
    """Return the kind of trouble that librdkafka's words are about."""
    return next(kind for kind in _KINDS if re.search(kind.pattern, cause))


def enter(settings: "Settings", role: str, *, patience_s: float = COMMAND_PATIENCE_S) -> None:
    """Return once Kafka lets us in, and grants what a role (see `rights_of`) needs.

    Raises UnreachableError or AccessError, whose messages say what to do.
    """
    from durabill.stream_processors.kafka.rights import check_rights, rights_of

    await_kafka(settings, patience_s=patience_s)
    check_rights(settings.librdkafka(), rights_of(settings, role))


def await_kafka(settings: "Settings", *, patience_s: float = COMMAND_PATIENCE_S) -> None:
    """Return once Kafka answers and lets us in.

    Raises UnreachableError with Kafka's, OpenSSL's or the system's own word and the setting that it
    is about: within a few seconds where waiting can't help, else after `patience_s`.
    """
    ears = _Ears()
    kafka = {**settings.librdkafka(), "logger": ears.logger, "error_cb": ears.on_error}
    try:
        client = Producer(kafka)
    except KafkaException as error:
        raise _unreachable(settings, error.args[0].str()) from error
    started_s = time.monotonic()
    say_at_s = started_s + WORD_AFTER_S
    while not _answers(client):
        now_s = time.monotonic()
        if is_certain(ears.causes, len(settings.bootstrap_servers.split(",")), now_s - started_s):
            raise _unreachable(settings, ears.said())
        if now_s > started_s + patience_s:
            raise _unreachable(settings, ears.said(), f" for {patience_s:g} s")
        if now_s > say_at_s:
            say_at_s = now_s + SAY_AGAIN_S
            cause = ears.said()
            say(f"waiting for Kafka at {_where(settings)}: {cause}. {_advice(settings, cause)}")


def is_certain(causes: dict[str, str], addresses: int, after_s: float) -> bool:
    """Tell whether waiting can't help at any of the `addresses`, by each one's last cause."""
    certain_s = [kind_of(cause).certain_s for cause in causes.values()]
    return len(causes) >= addresses and all(s is not None and after_s > s for s in certain_s)


def _answers(client: Producer) -> bool:
    try:
        client.list_topics(timeout=_ASK_S)
    except KafkaException:
        client.poll(0.1)  # this is when librdkafka tells why
        return False
    return True


def _where(settings: "Settings") -> str:
    return f"{settings.bootstrap_servers} (DURABILL_BOOTSTRAP_SERVERS)"


def _advice(settings: "Settings", cause: str) -> str:
    return kind_of(cause).advice(settings) + "."


def _unreachable(settings: "Settings", cause: str, how_long: str = "") -> UnreachableError:
    return UnreachableError(
        f"Kafka at {_where(settings)} can't be reached{how_long}: {cause}\n"
        f"{_advice(settings, cause)}"
    )
