"""The judge of clients: one by the book passes, and each flaw is seen by the feature that is its.

No time passes and nothing is sent: `ModelClient` has a clock of its own.
"""

import json
import re
from email.utils import parsedate_to_datetime
from itertools import groupby
from random import Random
from typing import Any

import jsonschema_rs
import pytest

from durabill.producers.conformance import judge
from durabill.producers.conformance.exchange import Exchange, Kind, Log, Sent, Told
from durabill.producers.conformance.features import (
    FEATURES,
    NAMES,
    Matrix,
    Verdict,
    faults_for,
    judged,
)
from durabill.producers.conformance.script import (
    DOWN_REQUESTS,
    RENEWAL_FAULTS,
    START_FAULTS,
    UPLOAD_FAULTS,
    Script,
)
from durabill.producers.gateway.openapi import openapi
from tests.unit.conformance_client import ModelClient

ALL_FAULTS = {*START_FAULTS, *RENEWAL_FAULTS, *UPLOAD_FAULTS}


def verdicts(matrix: Matrix) -> dict[str, Verdict]:
    """Return the verdict of each feature."""
    return {row.feature.name: row.verdict for row in matrix.rows}


@pytest.mark.parametrize("seed", range(12))
def test_a_client_by_the_book_passes(seed: int) -> None:
    client = ModelClient(seed=seed)
    matrix = client.run()
    assert [row for row in matrix.rows if row.verdict is not Verdict.PASS] == []
    assert matrix.conforms
    assert {each.fault for each in client.log.exchanges} == {"", *ALL_FAULTS}


@pytest.mark.parametrize("seed", range(5))
def test_so_does_one_that_sends_each_order_by_itself(seed: int) -> None:
    matrix = ModelClient(seed=seed, is_single=True).run()
    odd = [row for row in matrix.rows if row.verdict is not Verdict.PASS]
    assert {row.feature.name for row in odd} == {"many_orders", "report"}
    assert matrix.conforms


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("is_single", [False, True])
def test_so_does_one_that_sends_each_segment_by_itself(seed: int, is_single: bool) -> None:
    matrix = ModelClient(seed=seed, is_single=is_single, batch_max=1).run()
    odd = [row for row in matrix.rows if row.verdict is not Verdict.PASS]
    assert {row.feature.name for row in odd} <= {"batches", "many_orders", "report"}
    assert matrix.conforms


def test_so_does_one_that_sends_lists() -> None:
    assert ModelClient(is_short=True).run().conforms


SEGMENT = {"business_data_number": 1.0, "start_ms": 0, "end_ms": 5, "end_identifier": True}
ODD_UPLOADS: dict[str, Any] = {
    "nothing": {"uploads": []},
    "an upload without a segment": {"uploads": [{"service_order_number": "A", "segments": []}]},
    "one order twice, as object and as list": {
        "uploads": [
            {"service_order_number": "A", "lease": "lease-of-A-1", "segments": [SEGMENT]},
            {"service_order_number": "A", "lease": None, "segments": [[2, 5, 6.0, False]]},
        ]
    },
    "fields that aren't ours": {"uploads": [], "client": 5, "more": {}},
}


@pytest.mark.parametrize("body", ODD_UPLOADS.values(), ids=ODD_UPLOADS)
def test_what_a_gateway_takes_is_no_odd_form(body: dict[str, Any]) -> None:
    client = ModelClient()
    start = {"service_order_number": "A", "service": None, "attributes": None}
    for path, content, status in (("/v1/orders", start, 201), ("/v1/segments", body, 200)):
        for _ in range(len(START_FAULTS) + 1):
            exchange, answer = client.ask(path, content, idempotency_key="once")
            assert not exchange.wrong
        assert answer is not None
        assert answer.status == status


def test_who_looks_around_first_finds_a_gateway() -> None:
    client = ModelClient()
    for path, status in (("healthz", 200), ("readyz", 200), ("v1/receipt-keys", 200)):
        assert client.look(f"/{path}").status == status
    assert client.look("/v1/orders/A").status == 503


FLAWS = {
    "odd_form": "form",
    "new_key": "start_again",
    "hole": "numbers",
    "no_end": "end",
    "early": "times",
    "too_fast": "times",
    "overlap": "times",
    "hammers": "pauses",
    "trusts_mixed": "strange_200",
    "gap": "gapless",
    "follows_step": "clock_step",
    "gives_up": "no_loss",
    "remeasures": "same_bytes",
    "sends_twice": "settled",
    "trusts_cut": "cut",
    "impatient": "slow",
    "trusts_200": "login_page",
    "trusts_short": "strange_200",
    "trusts_errors": "proxy_error",
    "drops_403": "proxy_error",
    "drops_500": "proxy_error",
    "follows": "redirect",
    "hasty": "retry_after",
    "no_dates": "retry_after_date",
    "no_jitter": "jitter",
    "old_token": "token_renewed",
    "no_halving": "halved",
    "sends_refused": "refused_by_itself",
    "drops_batch": "refused_by_itself",
    "no_lease": "lease",
    "no_renewal": "lease_renewed",
    "own_clock": "times",
    "twice_as_fast": "times",
    "starts_late": "gapless",
    "ends_early": "end",
    "changes_start": "form",
    "long_key": "form",
    "trusts_start": "start_again",
    "hammers_later": "pauses",
    "steady": "backoff",
    "hammers_401": "token_renewed",
    "trusts_nulls": "strange_200",
    "trusts_text": "strange_200",
    "follows_get": "redirect",
    "twice_at_once": "slow",
    "others_meanwhile": "retry_after",
    "hasty_renewal": "retry_after",
    "trusts_renewal": "lease",
    "other_lease": "lease",
    "renews_with_nonsense": "lease",
}


@pytest.mark.parametrize(("flaw", "feature"), FLAWS.items(), ids=FLAWS)
def test_a_flaw_is_seen(flaw: str, feature: str) -> None:
    matrix = ModelClient([flaw]).run()
    assert verdicts(matrix)[feature] is Verdict.FAIL
    required = {each.name for each in FEATURES if each.is_required}
    assert not matrix.conforms or feature not in required


def test_every_required_feature_can_fail() -> None:
    """Of two it is seen below; they share their judge with `cut`. `ends` needs a process."""
    required = {each.name for each in FEATURES if each.is_required}
    assert required - set(FLAWS.values()) == {"lost_answer", "truncated", "ends"}


@pytest.mark.parametrize(("fault", "feature"), [("lost", "lost_answer"), ("truncated",) * 2])
def test_what_never_comes_again_is_seen(fault: str, feature: str) -> None:
    sent = Sent("A", 1, 0, 5, is_last=True)
    lost = Exchange(Kind.UPLOAD, 1.0, [sent], fault=fault, orders=frozenset("A"))
    again = Exchange(Kind.UPLOAD, 2.0, [sent], [Told.STORED], 2.0, orders=frozenset("A"))
    for exchanges, verdict in (([lost], Verdict.FAIL), ([lost, again], Verdict.PASS)):
        assert verdicts(judged(Log(1, exchanges), [feature])) == {feature: verdict}


def test_a_gap_as_long_as_the_step_goes_along_with_it() -> None:
    steps = ((3_600_000, Verdict.PASS), (3_500_000, Verdict.FAIL), (0, Verdict.FAIL))
    for step_ms, verdict in steps:
        sent = [Sent("A", 1, 0, 5, False), Sent("A", 2, 3_600_005, 3_600_010, True)]
        log = Log(1, [Exchange(Kind.UPLOAD, 1.0, sent)], step_ms=step_ms)
        assert verdicts(judged(log, ["gapless"])) == {"gapless": verdict}


FOREIGN = {
    *("login", "strange", "as_text", "nulls", "proxy_json", "proxy_page", "too_large", "redirect"),
    *("redirect_get", "cut", "down", "start_login", "start_proxy", "renewal_login"),
}
"""What answers of others are, or of nobody."""


@pytest.mark.parametrize("is_single", [False, True])
def test_what_it_answers_is_what_a_gateway_would(is_single: bool) -> None:
    """By the OpenAPI description, which the gateway's routes are made from as well."""
    document = openapi()
    client = ModelClient(is_single=is_single)
    client.run()
    routes = set()
    for path, exchange, answer in client.answers:
        if exchange.fault in FOREIGN or "html" in answer.content_type:
            continue
        template = re.sub(r"(/v1/orders)/[^/]+", r"\1/{number}", path)
        responses = document["paths"][template]["post"]["responses"]
        shape = responses[str(answer.status)]["content"][answer.content_type]["schema"]
        schema = {**shape, "components": document["components"]}
        jsonschema_rs.validate(schema, json.loads(answer.body))
        routes.add(template)
    upload = "/v1/orders/{number}/segments" if is_single else "/v1/segments"
    assert routes == {"/v1/orders", "/v1/orders/{number}/lease", upload}


def test_what_was_not_seen_is_no_pass() -> None:
    matrix = judged(Log(1), NAMES)
    found = verdicts(matrix)
    assert found.pop("no_loss") is Verdict.FAIL
    assert set(found.values()) == {Verdict.NOT_SEEN}
    assert not matrix.conforms


def test_the_script_is_the_same_for_a_seed_and_has_all() -> None:
    def told(seed: int) -> list[str]:
        script = Script(Random(seed), faults_for(NAMES))
        count = 2 * len(UPLOAD_FAULTS) + DOWN_REQUESTS
        return [script.for_upload(9, is_fresh=True) for _ in range(count)]

    assert told(3) == told(3)
    assert told(3) != told(4)
    in_turn = [fault for fault, _ in groupby(told(3))]  # one that comes several times is down
    assert sorted(filter(None, in_turn)) == sorted(UPLOAD_FAULTS)
    assert in_turn[::2] == [""] * (len(UPLOAD_FAULTS) + 1)
    assert told(3).count("down") == DOWN_REQUESTS


def test_trouble_is_only_what_shows_a_feature_that_is_asked_for() -> None:
    assert faults_for(["halved", "numbers"]) == {"too_large"}
    assert faults_for(NAMES) == ALL_FAULTS


def test_the_date_of_a_wish_is_whole_seconds_and_no_earlier_than_the_seconds() -> None:
    client = ModelClient(seed=1)
    client.run()
    (busy,) = client.log.with_fault("busy_date")
    assert busy.not_before_s is not None
    assert 1.0 <= busy.not_before_s - busy.came_s <= 2.0
    assert parsedate_to_datetime("Thu, 01 Jan 1970 00:00:01 GMT").timestamp() == 1


def test_the_matrix_for_machines() -> None:
    told = judged(Log(1), ["numbers", "no_loss"]).as_json()
    assert json.loads(json.dumps(told)) == {
        "conforms": False,
        "features": [
            {"name": "numbers", "verdict": "not seen", "required": True, "note": ""},
            {
                "name": "no_loss",
                "verdict": "fail",
                "required": True,
                "note": "0 of 1 orders have ended",
            },
        ],
    }


def test_names_are_words_and_early_is_little() -> None:
    assert all(re.fullmatch(r"[a-z_0-9]+", each) for each in NAMES)
    assert len(set(NAMES)) == len(NAMES)
    assert judge.EARLY_S < 0.1
