"""What Kafka's errors mean, and how Kafka is asked.

An error of Kafka's is one of three things. It passes by itself (a leader moves, a coordinator
loads, a broker is away): ask again, for some time (`patiently`). It is a right that we lack:
`AccessError` names it. Anything else goes up as it is.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple, TypeVar

from confluent_kafka import KafkaError, KafkaException

from durabill.schemas.errors import AccessError, UnreachableError

T = TypeVar("T")
log = logging.getLogger("durabill.kafka")

WORD_AFTER_S = 2.0
"""What takes longer than this is told."""

PATIENCE_S = 30.0
TOPIC_SPREADS_S = 5.0
"""For so long may a broker that has just started not know of a topic."""

_PAUSE_S = 0.2

_PASSING = {
    KafkaError._TRANSPORT,
    KafkaError._DESTROY_BROKER,  # a broker that was asked has left the client's list meanwhile
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._RESOLVE,
    KafkaError._TIMED_OUT,
    KafkaError._TIMED_OUT_QUEUE,
    KafkaError._WAIT_COORD,
    KafkaError._WAIT_CACHE,
    KafkaError.REQUEST_TIMED_OUT,
    KafkaError.NETWORK_EXCEPTION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.REPLICA_NOT_AVAILABLE,
    KafkaError.BROKER_NOT_AVAILABLE,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.NOT_COORDINATOR,
    KafkaError.UNSTABLE_OFFSET_COMMIT,
    KafkaError.OFFSET_NOT_AVAILABLE,
    KafkaError.KAFKA_STORAGE_ERROR,
    KafkaError.UNKNOWN_LEADER_EPOCH,
    KafkaError.FENCED_LEADER_EPOCH,
}
_KIND_OF = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "topic",
    KafkaError.GROUP_AUTHORIZATION_FAILED: "group",
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED: "transactional id",
}
"""Code of a refusal -> the kind of resource that it is about."""

_UNKNOWN_TOPIC = {
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_TOPIC,
    KafkaError._UNKNOWN_PARTITION,
}


class Right(NamedTuple):
    """A right on Kafka: `operation` on the topic, group or transactional id `name`."""

    operation: str
    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.operation} on {self.kind} {self.name}"


def passes(error: KafkaError) -> bool:
    """Tell whether an error may be gone when Kafka is asked again."""
    return not error.fatal() and (error.code() in _PASSING or error.retriable())


def lacks_topic(error: KafkaError) -> bool:
    """Tell whether Kafka says that there is no such topic, or partition."""
    return error.code() in _UNKNOWN_TOPIC


def user_of(kafka: Mapping[str, Any]) -> str:
    """Return whom Kafka takes a client with this configuration for, as people would say it."""
    protocol = str(kafka.get("security.protocol", "PLAINTEXT"))
    if protocol.startswith("SASL"):
        return f"the user {kafka.get('sasl.username', '')}"
    if protocol == "SSL" and kafka.get("ssl.certificate.location"):
        return f"the user of the certificate {kafka['ssl.certificate.location']}"
    return "the user ANONYMOUS"


def lacks_right(
    kafka: Mapping[str, Any], *rights: Right, says: str = "", hidden: Sequence[str] = ()
) -> AccessError:
    """Return the error for rights that are missing.

    `says` is Kafka's own word. `hidden` topics are those that Kafka says it hasn't, which is what
    it says where we have no right on them.
    """
    user, several = user_of(kafka), "s" if len(rights) > 1 else ""
    lines = [f"Durabill needs the right{several} {', '.join(map(str, rights))} for {user}."]
    if says:
        lines[0] += f" Kafka says: {says.rstrip('.')}."
    if hidden:
        lines.insert(
            0,
            f"Kafka has no topic {', '.join(hidden)}, or hides it: that is what it does where one"
            " has no right on it. If it isn't there, create it with: durabill topics create",
        )
    principal = user.removeprefix("the user ").replace("of the certificate ", "")
    for right in rights:
        option = right.kind.replace(" ", "-")
        lines.append(
            f"  To grant it: kafka-acls.sh --bootstrap-server {kafka.get('bootstrap.servers')}"
            f" --add --allow-principal User:{principal} --operation {right.operation}"
            f" --{option} {right.name}"
        )
    return AccessError("\n".join(lines))


def judged(error: KafkaError, kafka: Mapping[str, Any], *rights: Right) -> Exception:
    """Return what to raise for an error of Kafka's that doesn't pass.

    `rights` are those that were needed for what was asked; the one that Kafka's code is about is
    named.
    """
    needed = [each for each in rights if each.kind == _KIND_OF.get(error.code())]
    if needed:
        return lacks_right(kafka, *needed, says=error.str())
    on_topics = [each for each in rights if each.kind == "topic"]
    if lacks_topic(error) and on_topics:
        return lacks_right(kafka, *on_topics, hidden=[each.name for each in on_topics])
    return KafkaException(error)


def explained(error: BaseException, kafka: Mapping[str, Any], *rights: Right) -> BaseException:
    """Return an error of any client's, aiokafka's too, as one that names the right it is about.

    `rights` are all that the process needs. Errors that aren't about rights come back unchanged.
    """
    cause = error.args[0] if isinstance(error, KafkaException) else None
    code = cause.code() if isinstance(cause, KafkaError) else getattr(error, "errno", None)
    if code not in _KIND_OF:
        return error
    needed = [each for each in rights if each.kind == _KIND_OF[code]]
    if cause is None:  # aiokafka's, which only reads
        needed = [each for each in needed if each.operation == "Read"]
    named = [each for each in needed if each.name in str(error)] or needed
    return lacks_right(kafka, *named, says=str(error)) if named else error


def answer_of(future: "Future[T]", timeout_s: float) -> T:
    """Return what an AdminClient answers; one that is late is an error that passes."""
    try:
        return future.result(timeout_s)
    except TimeoutError as error:
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT)) from error


def patiently(
    ask: Callable[[float], T],
    what: str,
    kafka: Mapping[str, Any],
    *rights: Right,
    patience_s: float | None = None,
) -> T:
    """Return Kafka's answer; ask again while its errors pass, and say so after two seconds.

    `ask` gets for how many seconds it may wait. `what` is told, as in "waiting for WHAT". Raises
    AccessError, UnreachableError when patience is over, KafkaException for what doesn't pass.
    """
    started_s = time.monotonic()
    patience_s = PATIENCE_S if patience_s is None else patience_s
    told_s = started_s + WORD_AFTER_S - _PAUSE_S
    while True:
        try:
            return ask(WORD_AFTER_S)
        except KafkaException as error:
            cause = error.args[0]
            now_s = time.monotonic()
            still = TOPIC_SPREADS_S if lacks_topic(cause) else patience_s
            if not (passes(cause) or lacks_topic(cause)):
                raise judged(cause, kafka, *rights) from error
            if now_s > started_s + still:
                if lacks_topic(cause):
                    raise judged(cause, kafka, *rights) from error
                raise UnreachableError(
                    f"{what}: Kafka at {kafka.get('bootstrap.servers')}"
                    f" (DURABILL_BOOTSTRAP_SERVERS) hasn't answered for {patience_s:g} s:"
                    f" {cause.str()}"
                ) from error
            if now_s > told_s:
                told_s = now_s + PATIENCE_S / 6
                log.warning("waiting for %s: %s", what, cause.str())
        time.sleep(_PAUSE_S)
