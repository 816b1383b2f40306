"""`docs/operations.md` beside the program: rights, topics, exit codes, pages."""

import re

from durabill.deploy import topics
from durabill.deploy.commands.stack import NOT_RUNNING
from durabill.deploy.streams import BROKEN_PIPE_EXIT_CODE
from durabill.schemas import errors
from durabill.stream_processors.kafka.rights import rights_of
from durabill.stream_processors.settings import Settings, checkpoint_topic
from durabill.stream_processors.worker import pages
from tests.unit.documents import rows_of, section, text_of

PAGE = "docs/operations.md"
SETTINGS = Settings(application_id="APP")
TOPICS = {
    "segments": SETTINGS.segments_topic,
    "totals": SETTINGS.totals_topic,
    "orders": SETTINGS.orders_topic,
    "dead letters": SETTINGS.dead_letters_topic,
    "checkpoint": checkpoint_topic("APP"),
    "seal": SETTINGS.seal_topic,
}
ROLES = {
    "worker": "worker",
    "ledger": "ledger",
    "gateway": "gateway",
    "`durabill topics check`": "check",
    "`durabill fleet`": "fleet",
    "`durabill seal`": "seal",
    "`durabill seal check`": "seal check",
    "`durabill order`": "order",
    "`durabill audit`": "audit",
    "`durabill totals`": "totals",
    "`durabill leakage`": "leakage",
    "`durabill dead-letters`": "letters",
    "`durabill dead-letters resend`": "resend",
    "archive": "archive",
    "`durabill replay`": "replay",
}
"""The table's names of what `rights_of` knows by another one."""


def told_rights() -> dict[str, set[tuple[str, str, str]]]:
    """Return {role: {(operation, kind, name)}} as the table has it."""
    told = {}
    for role, topic_cell, group_cell, ids in rows_of(section(PAGE, "## Rights on Kafka")):
        rights = set()
        for part in topic_cell.split(";"):
            names, _, operations = part.rpartition(":")
            rights |= {
                ("topic", TOPICS[name.strip()], each.strip())
                for name in names.split(",")
                for each in operations.split(",")
            }
        names, _, operation = group_cell.partition(":")
        rights |= {
            ("group", name.strip(), operation.strip()) for name in names.split(",") if group_cell
        }
        assert bool(ids) == (role == "worker")
        told[role] = rights
    return told


def needed_rights(role: str) -> set[tuple[str, str, str]]:
    return {(each.kind, each.name, each.operation) for each in rights_of(SETTINGS, role)}


def test_rights_are_those_that_are_asked_for() -> None:
    told = told_rights()
    assert told.pop("`durabill status`") == {("topic", SETTINGS.segments_topic, "Describe")}
    assert told == {
        name: {(each.kind, each.name, each.operation) for each in rights_of(SETTINGS, role)}
        for name, role in ROLES.items()
    }


def test_settings_of_the_topics() -> None:
    told = {row[0]: row[1] for row in rows_of(section(PAGE, "## Topics"))}
    assert list(told) == list(TOPICS)
    for name in ("segments", "totals"):
        for setting in re.findall(r"`([a-z.]+=[^`]+)`", told[name]):
            key, _, value = setting.partition("=")
            assert topics._SETTINGS[name][key] == value
    assert topics._SETTINGS["dead_letters"] == topics._SETTINGS["totals"]
    for name in ("checkpoint", "seal"):
        assert topics._SETTINGS[name]["cleanup.policy"] == "compact"
        assert "`cleanup.policy=compact`" in told[name]
    bytes_max, _ = topics._MESSAGE_BYTES_MIN["checkpoint"]
    assert f"messages of up to {bytes_max // 2**20} MiB" in told["checkpoint"]
    assert set(topics.AS_MANY_PARTITIONS_AS_SEGMENTS) == {
        name for name, told_of in told.items() if "as many partitions as segments" in told_of
    }


def test_the_page_names_every_exit_code() -> None:
    told = {int(row[0]): row[2] for row in rows_of(section(PAGE, "## Exit codes"))}
    assert errors.DurabillError.exit_code == 1
    assert errors.SettingsError.exit_code == 2
    assert (errors.PoisonError.exit_code, errors.StallError.exit_code) == (70, 75)
    assert set(told) == {0, 1, 2, NOT_RUNNING, 70, 75, 130, BROKEN_PIPE_EXIT_CODE}


def test_pages_of_the_worker() -> None:
    told = re.findall(r"^\| `GET (/\S+)` \|", section(PAGE, "## Watching"), re.M)
    described = re.findall(r"^    GET (/\S+)", pages.__doc__ or "", re.M)
    assert sorted(told) == sorted(described)
    assert f"at least {pages.TOKEN_CHARS_MIN} characters" in text_of(PAGE)


def test_every_command_that_runs_is_in_the_table_of_processes() -> None:
    told = [row[1] for row in rows_of(section(PAGE, "## Processes"))]
    names = ("worker", "ledger", "gateway", "archive", "seal")
    assert told == [f"`durabill {each}`" for each in names]
