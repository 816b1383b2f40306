"""A broker with a user a role, rights and TLS, for the tests of what a missing one looks like.

Everybody who comes by the plain listener may do everything: that is how the tests make topics and
grant rights. The others know their users by name and password (SASL) or by TLS, and grant nothing
that hasn't been granted.
"""

import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

from durabill.deploy.local.java import find_java
from durabill.deploy.local.kafka import UNHURRIED, LocalKafka
from durabill.deploy.local.stack import HOST, find_free_ports
from tests.conftest import JARS_DIR
from tests.waiting import HANG_S

PASSWORD = "correct-horse"
"""Of every user."""

STORE_PASSWORD = "changeit"
_KINDS = {
    "topic": ResourceType.TOPIC,
    "group": ResourceType.GROUP,
    "transactional id": ResourceType.TRANSACTIONAL_ID,
}


@dataclass(frozen=True)
class Right:
    """What a role needs: an operation, by Kafka's name, on a resource. `prefixed`: or longer."""

    operation: str
    kind: str
    name: str
    prefixed: bool = False

    def __str__(self) -> str:
        return f"{self.operation} on {self.kind} {self.name}"

    def acl(self, user: str) -> AclBinding:
        """Return it as Kafka's admin client takes it."""
        pattern = ResourcePatternType.PREFIXED if self.prefixed else ResourcePatternType.LITERAL
        words = "".join("_" + each.lower() if each.isupper() else each for each in self.operation)
        operation = AclOperation[words.strip("_").upper()]
        kind, allow = _KINDS[self.kind], AclPermissionType.ALLOW
        return AclBinding(kind, self.name, pattern, f"User:{user}", "*", operation, allow)


def role_rights(role: str, application_id: str, topics: Mapping[str, str]) -> list[Right]:
    """Return a role's rights as docs/operations.md has them; `topics` are names by their roles."""
    segments, totals = topics["segments"], topics["totals"]
    if role == "worker":
        return [
            *(Right(each, "topic", segments) for each in ("Read", "Write", "DescribeConfigs")),
            *(
                Right(each, "topic", topics[output])
                for output in ("totals", "orders")
                for each in ("Read", "Write", "DescribeConfigs")
            ),
            *(
                Right(each, "topic", topics["dead_letters"])
                for each in ("Write", "DescribeConfigs")
            ),
            *(
                Right(each, "topic", topics["checkpoint"])
                for each in ("Read", "Write", "DescribeConfigs")
            ),
            Right("Read", "group", application_id),
            Right("Write", "transactional id", f"{application_id}-", prefixed=True),
        ]
    if role == "ledger":
        outputs = [Right("Read", "topic", topics[each]) for each in ("totals", "orders")]
        return [*outputs, Right("Read", "group", f"{application_id}-ledger")]
    if role == "seal":
        return [
            Right("Read", "topic", totals),
            *(Right(each, "topic", topics["seal"]) for each in ("Read", "Write")),
            Right("Describe", "group", "durabill-look"),
        ]
    if role == "audit":
        return [
            *(Right("Read", "topic", topics[each]) for each in ("segments", "totals", "orders")),
            *(Right("Read", "topic", topics[each]) for each in ("dead_letters", "checkpoint")),
            *(Right("Describe", "group", f"durabill-{each}") for each in ("look", "dead-letters")),
        ]
    if role == "gateway":
        return [Right("Write", "topic", segments)]
    assert role == "look"
    return [
        *(Right("Read", "topic", topics[each]) for each in ("segments", "totals", "orders")),
        Right("Read", "topic", topics["dead_letters"]),
        Right("Write", "topic", segments),
        *(
            Right("Describe", "group", f"durabill-{each}")
            for each in ("look", "dead-letters", "fleet")
        ),
    ]


class GuardedKafka:
    """The broker. `plain` is where everything is allowed; `sasl`, `tls` and `sasl_tls` ask who."""

    def __init__(self, data_dir: Path, users: Iterable[str]) -> None:
        plain, sasl, tls, sasl_tls, controller = find_free_ports(5)
        self.plain, self.sasl = f"{HOST}:{plain}", f"{HOST}:{sasl}"
        self.tls, self.sasl_tls = f"{HOST}:{tls}", f"{HOST}:{sasl_tls}"
        self.ca = data_dir / "ca.pem"
        store = data_dir / "server.p12"
        _make_certificate(store, self.ca)
        listeners = (
            f"PLAINTEXT://{self.plain},SASL://{self.sasl},"
            f"TLS://{self.tls},SASLTLS://{self.sasl_tls}"
        )
        known = " ".join(f'user_{user}="{PASSWORD}"' for user in users)
        login = f"org.apache.kafka.common.security.plain.PlainLoginModule required {known};"
        self._kafka = LocalKafka(
            data_dir,
            plain,
            jars_dir=JARS_DIR,
            more={
                **UNHURRIED,
                "listeners": f"{listeners},CONTROLLER://{HOST}:{controller}",
                "advertised.listeners": listeners,
                "controller.quorum.voters": f"1@{HOST}:{controller}",
                "listener.security.protocol.map": (
                    "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL:SASL_PLAINTEXT,TLS:SSL,"
                    "SASLTLS:SASL_SSL"
                ),
                "sasl.enabled.mechanisms": "PLAIN",
                "listener.name.sasl.plain.sasl.jaas.config": login,
                "listener.name.sasltls.plain.sasl.jaas.config": login,
                "ssl.keystore.location": store,
                "ssl.keystore.password": STORE_PASSWORD,
                "ssl.truststore.location": store,
                "ssl.truststore.password": STORE_PASSWORD,
                "listener.name.tls.ssl.client.auth": "required",
                "authorizer.class.name": (
                    "org.apache.kafka.metadata.authorizer.StandardAuthorizer"
                ),
                "super.users": "User:ANONYMOUS",
                "allow.everyone.if.no.acl.found": "false",
            },
        )

    def start(self) -> None:
        """Start it."""
        assert self.plain == self._kafka.start()
        self._admin = AdminClient({"bootstrap.servers": self.plain, "log_level": "0"})

    def stop(self) -> None:
        """Stop it."""
        self._kafka.stop()

    def grant(self, user: str, rights: Iterable[Right]) -> None:
        """Grant rights to a user; they are in force when this returns."""
        acls = [each.acl(user) for each in rights]
        for future in self._admin.create_acls(acls).values() if acls else ():
            future.result(HANG_S)

    def login(self, user: str, password: str = PASSWORD) -> dict[str, str]:
        """Return the settings by which a user of this broker's comes in."""
        return {
            "bootstrap_servers": self.sasl,
            "security_protocol": "SASL_PLAINTEXT",
            "sasl_mechanism": "PLAIN",
            "sasl_username": user,
            "sasl_password": password,
        }


def _make_certificate(store: Path, ca: Path) -> None:
    """Make a key and a certificate for this machine, which signs itself."""
    keytool = find_java().with_name("keytool")

    def run(*arguments: Any) -> None:
        subprocess.run(
            [keytool, *arguments, "-keystore", store, "-storepass", STORE_PASSWORD],
            check=True,
            capture_output=True,
        )

    run(
        *("-genkeypair", "-alias", "server", "-keyalg", "EC", "-dname", f"CN={HOST}"),
        *("-ext", f"SAN=ip:{HOST}", "-validity", "30", "-storetype", "PKCS12"),
    )
    run("-exportcert", "-rfc", "-alias", "server", "-file", ca)


@contextmanager
def guarded_kafka(data_dir: Path, users: Iterable[str]) -> Iterator[GuardedKafka]:
    """A broker that knows these users, around a block."""
    kafka = GuardedKafka(data_dir, users)
    try:
        kafka.start()
        yield kafka
    finally:
        kafka.stop()
