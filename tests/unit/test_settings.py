"""Settings from environment and flags: all errors at once, and what the documents say of them."""

import re
from pathlib import Path

import pytest

from durabill.deploy.commands.common import SETTING_DEFAULTS, SETTING_HELP
from durabill.schemas.errors import SettingsError
from durabill.stream_processors.core.order import Policy
from durabill.stream_processors.settings import PREFIX, Settings, load_settings
from tests.unit.documents import text_of

OPERATIONS = text_of("docs/operations.md")


def problems_of(environ: dict[str, str], **flags: str | None) -> list[str]:
    with pytest.raises(SettingsError) as raised:
        load_settings(environ, **flags)
    return raised.value.problems


def test_an_empty_environment_gives_the_defaults() -> None:
    assert Settings() == load_settings({})


def test_variables_are_the_fields_names_in_capitals() -> None:
    settings = load_settings(
        {
            "DURABILL_BOOTSTRAP_SERVERS": "a:1,b:2",
            "DURABILL_SETTLE_GRACE_S": "0.5",
            "DURABILL_WORKER_PORT": "6066",
            "PATH": "/bin",
        }
    )
    assert (
        settings.bootstrap_servers,
        settings.settle_grace_s,
        settings.worker_port,
    ) == ("a:1,b:2", 0.5, 6066)


def test_flags_win_over_the_environment_and_none_is_no_flag() -> None:
    environ = {"DURABILL_SETTLE_GRACE_S": "1", "DURABILL_IDLE_TIMEOUT_S": "2"}
    settings = load_settings(environ, settle_grace_s="3", idle_timeout_s=None)
    assert (settings.settle_grace_s, settings.idle_timeout_s) == (3, 2)


def test_a_flag_heals_a_wrong_variable() -> None:
    assert load_settings({"DURABILL_GATEWAY_PORT": "x"}, gateway_port="1").gateway_port == 1


def test_all_problems_are_told_at_once() -> None:
    problems = problems_of(
        {
            "DURABILL_SETTLE_GRACE_S": "soon",
            "DURABILL_GATEWAY_PORT": "70000",
            "DURABILL_APPLICATION_ID": "with space",
            "DURABILL_SETLE_GRACE_S": "3",
        },
        security_protocol="TLS",
    )
    assert len(problems) == 5
    for name in ("SETTLE_GRACE_S", "GATEWAY_PORT", "APPLICATION_ID", "SECURITY_PROTOCOL"):
        assert any(problem.startswith(PREFIX + name) for problem in problems)
    meant = "DURABILL_SETLE_GRACE_S is no setting of Durabill; is it DURABILL_SETTLE_GRACE_S?"
    assert meant in problems


@pytest.mark.parametrize("name", ["a b", "", "a\n", "ü", "x" * 250])
def test_a_name_that_no_topic_can_have_is_told(name: str) -> None:
    (problem,) = problems_of({"DURABILL_SEGMENTS_TOPIC": name})
    assert problem.endswith("it must be 1 to 249 letters of A-Z a-z 0-9 . _ -")


def test_what_must_have_a_value_is_told() -> None:
    (problem,) = problems_of({"DURABILL_DATA_DIR": ""})  # files of keys would lie where one stands
    assert problem == "DURABILL_DATA_DIR='': it must not be empty"


def test_addresses_that_are_none_are_told() -> None:
    told = problems_of(
        {
            "DURABILL_WORKER_URLS": "http://a:1, b:2,me:s3cret@c",
            "DURABILL_GATEWAY_ALLOWED_HOSTS": "billing.example, *, https://billing.example,[::1]:8080",
        }
    )
    assert told == [
        "DURABILL_WORKER_URLS: 'b:2' is no http://HOST:PORT",
        "DURABILL_WORKER_URLS: … is no http://HOST:PORT",
        "DURABILL_GATEWAY_ALLOWED_HOSTS: 'https://billing.example' is no name of a host",
    ]


def test_of_a_wrong_choice_the_right_ones_are_told() -> None:
    (problem,) = problems_of({}, security_protocol="TLS")
    allowed = "PLAINTEXT, SSL, SASL_PLAINTEXT, SASL_SSL"
    assert f"DURABILL_SECURITY_PROTOCOL='TLS': it must be one of {allowed}" == problem
    (problem,) = problems_of({"DURABILL_SASL_MECHANISM": "plain"})
    assert problem.endswith("one of PLAIN, SCRAM-SHA-256, SCRAM-SHA-512")


def test_files_that_cannot_be_read_are_told_before_anything_connects(tmp_path: Path) -> None:
    there = tmp_path / "there.pem"
    there.touch()
    problems = problems_of(
        {"DURABILL_SSL_CA_LOCATION": str(tmp_path / "no.pem")},
        security_protocol="SSL",
        ssl_certificate_location=str(tmp_path),
        ssl_key_location=str(there),
    )
    assert len(problems) == 2
    assert problems[0].startswith(f"DURABILL_SSL_CA_LOCATION='{tmp_path}/no.pem' can't be read: No")
    assert problems[1].startswith(f"DURABILL_SSL_CERTIFICATE_LOCATION='{tmp_path}' can't be read")
    # Without TLS nobody reads them.
    load_settings({"DURABILL_SSL_CA_LOCATION": str(tmp_path / "no.pem")})


def test_a_key_needs_its_certificate_and_sasl_a_user(tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    key.touch()
    (problem,) = problems_of({}, security_protocol="SSL", ssl_key_location=str(key))
    assert "DURABILL_SSL_CERTIFICATE_LOCATION" in problem
    (problem,) = problems_of({}, security_protocol="SASL_SSL")
    assert problem.startswith("DURABILL_SASL_USERNAME is not set")


@pytest.mark.parametrize("servers", ["k:9092", "k", "k:1,10.0.0.1:2", "[::1]:9092", "a-b.c_d:1"])
def test_addresses_that_may_be(servers: str) -> None:
    assert servers == load_settings({}, bootstrap_servers=servers).bootstrap_servers


@pytest.mark.parametrize("servers", ["k:port", "k:1, l:2", "http://k:1", "k:1;l:2", "k:"])
def test_what_is_no_address_is_told(servers: str) -> None:
    (problem,) = problems_of({}, bootstrap_servers=servers)
    assert "no HOST:PORT" in problem


def test_passwords_are_not_shown_in_problems() -> None:
    with pytest.raises(SettingsError) as raised:
        load_settings({"DURABILL_SASL_PASSWORD": "ok"}, sasl_password=["s3cret"])
    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_secret_may_stand_in_a_file(tmp_path: Path, end: str) -> None:
    (tmp_path / "password").write_bytes(b" s3 cret" + end.encode())
    settings = load_settings({"DURABILL_SASL_PASSWORD_FILE": str(tmp_path / "password")})
    assert settings.sasl_password == " s3 cret"


def test_a_secrets_file_that_is_missing_empty_or_one_too_many_is_told(tmp_path: Path) -> None:
    (tmp_path / "dsn").write_text("postgresql://db/ledger")
    (tmp_path / "empty").write_text("\n")
    problems = problems_of(
        {
            "DURABILL_SASL_PASSWORD_FILE": str(tmp_path / "none"),
            "DURABILL_LEDGER_DSN_FILE": str(tmp_path / "dsn"),
            "DURABILL_LEDGER_DSN": "postgresql://db/other",
            "DURABILL_GATEWAY_PORT_FILE": str(tmp_path / "dsn"),
            "DURABILL_WORKER_TOKEN_FILE": str(tmp_path / "empty"),
        }
    )
    assert len(problems) == 4
    assert f"DURABILL_SASL_PASSWORD_FILE={tmp_path}/none: the file can't be read" in problems[0]
    assert "DURABILL_LEDGER_DSN_FILE and DURABILL_LEDGER_DSN are both set" in problems[1]
    assert problems[2].startswith("DURABILL_GATEWAY_PORT_FILE is no setting of Durabill")
    assert problems[3] == f"DURABILL_WORKER_TOKEN_FILE={tmp_path}/empty: the file is empty"
    flag = load_settings({"DURABILL_LEDGER_DSN_FILE": str(tmp_path / "dsn")}, ledger_dsn="host=x")
    assert flag.ledger_dsn == "host=x"


def test_no_text_of_the_settings_shows_a_secret() -> None:
    settings = Settings(
        sasl_password="s3cret",
        ssl_key_password="s3cret",
        ledger_dsn="host=db password=s3cret",
        schema_registry_url="http://me:s3cret@registry",
        schema_registry_password="s3cret",
        worker_urls="http://me:s3cret@worker",
    )
    for text in (repr(settings), str(settings), f"{settings}", repr([settings])):
        assert "s3cret" not in text
    assert "application_id='durabill'" in repr(settings)


@pytest.mark.parametrize(
    "variable", ["DURABILL_TEST_ANYTHING", "DURABILL_NO_SYSTEM_TOOLS", "DURABILL_MAVEN_REPOSITORY"]
)
def test_switches_of_the_tests_and_the_local_stack_are_no_settings(variable: str) -> None:
    assert Settings() == load_settings({variable: "1"})


@pytest.mark.parametrize(
    "name", ["settle_grace_s", "idle_timeout_s", "correction_window_s", "interim_interval_s"]
)
def test_times_cannot_be_negative(name: str) -> None:
    assert len(problems_of({}, **{name: "-1"})) == 1


def test_the_policy_is_in_milliseconds() -> None:
    settings = Settings(settle_grace_s=0.25, idle_timeout_s=8, correction_window_s=3600)
    assert settings.policy == Policy(250, 8_000, 3_600_000)


def test_require_names_everything_that_is_missing_and_what_to_do() -> None:
    with pytest.raises(SettingsError) as raised:
        Settings().require("bootstrap_servers", "ledger_dsn")
    text = str(raised.value)
    assert len(raised.value.problems) == 2
    assert "DURABILL_BOOTSTRAP_SERVERS" in text
    assert "DURABILL_LEDGER_DSN" in text
    assert "durabill kafka start" in text
    assert raised.value.exit_code == 2


def test_librdkafka_gets_what_the_security_protocol_needs_and_no_more() -> None:
    plain = Settings(bootstrap_servers="k:9", sasl_username="u", ssl_ca_location="ca.pem")
    assert plain.librdkafka() == {"bootstrap.servers": "k:9", "security.protocol": "PLAINTEXT"}
    full = Settings(
        bootstrap_servers="k:9",
        security_protocol="SASL_SSL",
        sasl_mechanism="SCRAM-SHA-512",
        sasl_username="u",
        sasl_password="p",
        ssl_ca_location="ca.pem",
    )
    assert full.librdkafka() == {
        "bootstrap.servers": "k:9",
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.username": "u",
        "sasl.password": "p",
        "ssl.ca.location": "ca.pem",
    }


def test_every_setting_is_a_flag_with_help() -> None:
    assert set(Settings.__struct_fields__) == set(SETTING_HELP)


def test_the_help_says_every_default() -> None:
    settings = Settings()
    has_default = {name for name in SETTING_HELP if getattr(settings, name) != ""}
    assert set(SETTING_DEFAULTS) == has_default
    for name, shown in SETTING_DEFAULTS.items():
        value = getattr(settings, name)
        assert shown == (f"{value:g}" if isinstance(value, float) else str(value).lower()) or (
            shown == value
        )


def test_the_documents_list_every_setting_with_its_default_and_help() -> None:
    found = re.findall(r"^\| `DURABILL_([A-Z_]+)` \| `?([^|`]*)`? \| (.*) \|$", OPERATIONS, re.M)
    rows = {name: shown for name, shown, _ in found}
    defaults = {}
    for name in SETTING_HELP:
        value = getattr(Settings(), name)
        defaults[name.upper()] = f"{value:g}" if isinstance(value, float) else str(value)
    assert defaults == {name: shown.strip() for name, shown in rows.items()}
    assert [name for name, _, _ in found] == [name.upper() for name in SETTING_HELP]
    assert [told for _, _, told in found] == list(SETTING_HELP.values())


@pytest.mark.parametrize("text", ["0.001", "0.999", "-1"])
def test_interim_interval_is_a_second_or_never(text: str) -> None:
    (problem,) = problems_of({"DURABILL_INTERIM_INTERVAL_S": text})
    assert f"DURABILL_INTERIM_INTERVAL_S={text}" in problem.replace("'", "")
    assert load_settings({}, interim_interval_s="0").policy.interim_interval_ms == 0
    day = load_settings({}, idle_timeout_s="300", settle_grace_s="1", interim_interval_s="1")
    assert day.policy.interim_interval_ms == 1_000


@pytest.mark.parametrize(
    ("name", "most"), [("idle_timeout_s", "20000"), ("settle_grace_s", "156.25")]
)
def test_no_order_can_be_due_more_than_10000_interim_totals(name: str, most: str) -> None:
    """As a catch-up would give them all at once."""
    assert load_settings({}, interim_interval_s="2", **{name: most})
    (problem,) = problems_of({}, interim_interval_s="2", **{name: f"{float(most) + 0.01}"})
    assert f"DURABILL_{name.upper()}" in problem
    assert "more than 10,000 times DURABILL_INTERIM_INTERVAL_S=2" in problem
    assert load_settings({}, interim_interval_s="0", **{name: "1000000"})


def test_each_topic_has_a_name_of_its_own() -> None:
    with pytest.raises(SettingsError, match="of its own: same, same, "):
        load_settings({}, segments_topic="same", totals_topic="same")
    names = load_settings({}, application_id="mine").topics
    assert list(names.by_role) == ["segments", "totals", "orders", "dead_letters", "checkpoint"]
    assert names.checkpoint == "mine-checkpoint-changelog"
