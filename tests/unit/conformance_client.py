"""A client that is played by the book, in a time of its own; flaws can be given to it."""

import json
from collections import defaultdict
from collections.abc import Collection
from email.utils import parsedate_to_datetime
from random import Random
from typing import Any

from durabill.producers.conformance.answers import Answer, Cut
from durabill.producers.conformance.exchange import Exchange, Log, Sent
from durabill.producers.conformance.features import NAMES, Matrix, faults_for, judged
from durabill.producers.conformance.player import Player, Rules
from durabill.producers.conformance.script import Script

WALL_MS = 1_800_000_000_250
INTERVAL_MS = 100
_STEPS_MAX = 400
OFF_MS = 37 * 60_000
_ASKING_S = 0.002


class ModelClient:
    """Runs services against a played gateway until all is settled, or after many requests.

    `flaws` are words that the methods below look for. `is_single`: by the route for one order.
    `is_short`: segments are lists. A request has at most `batch_max` of them.
    """

    def __init__(
        self,
        flaws: Collection[str] = (),
        *,
        seed: int = 0,
        orders: int = 2,
        segments: int = 40,
        is_single: bool = False,
        is_short: bool = False,
        batch_max: int = 500,
    ) -> None:
        self._flaws = flaws
        self._is_single = is_single
        self._is_short = is_short
        self._batch_max = batch_max
        self._segments = segments
        self._dice = Random(seed)
        self._now_s = 1_000.0
        self._token = ""
        self._first_token = ""
        self._cut = dict[str, int]()  # order -> segments cut so far
        self._orders = dict[str, dict[str, Any]]()
        self._waiting = list[Sent]()
        self._limit = batch_max
        self._failures = 0
        self._said_too_late = 0
        self._tries_401 = self._starts = 0
        self.log = Log(orders, exit_code=0, wanted_ms=segments * INTERVAL_MS)
        self.answers: list[tuple[str, Exchange, Answer]] = []
        self._player = Player(
            self.log,
            Script(Random(seed), faults_for(NAMES)),
            Rules(INTERVAL_MS, has_tokens=True, has_leases=True),
            monotonic_s=lambda: self._now_s,
            wall_ms=self._wall_ms,
            on_token=self._on_token,
        )

    def run(self) -> Matrix:
        """Return what the judge says of it."""
        for _ in range(self.log.orders_wanted):
            self._start()
        for _ in range(_STEPS_MAX):
            self._measure()
            if not self._waiting and self.log.is_done():
                break
            if self._waiting:
                self._upload()
            else:
                self._now_s += 0.01
        return judged(self.log, NAMES)

    def _wall_ms(self) -> float:
        return WALL_MS + (self._now_s - 1_000) * 1000

    def _on_token(self, token: str) -> None:
        self._token = token
        self._first_token = self._first_token or token

    def ask(self, path: str, body: Any, **headers: str) -> tuple[Exchange, Answer | None]:
        """Return what became of a request; no answer where the connection was cut."""
        token = self._first_token if "old_token" in self._flaws else self._token
        if "hammers_401" in self._flaws and self._token != self._first_token:
            self._tries_401 += 1
            token = self._first_token if self._tries_401 < 8 else token
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        named |= {"content-type": "application/json", "authorization": f"bearer {token}"}
        exchange, answer = self._player.answer("POST", path, named, json.dumps(body).encode())
        exchange.answered_s = self._now_s + answer.delay_s
        self.answers.append((path, exchange, answer))
        if answer.delay_s > 0.5 and "impatient" in self._flaws:
            self._now_s += 0.5
            return exchange, None
        self._now_s += answer.delay_s + _ASKING_S
        is_lost = answer.cut is not Cut.NEVER and "trusts_cut" not in self._flaws
        return exchange, None if is_lost else answer

    def look(self, path: str) -> Answer:
        """Return what a GET is answered, without a token."""
        return self._player.answer("GET", path, {}, b"")[1]

    def _pause(self, answer: Answer | None) -> None:
        self._failures += 1
        said = None if answer is None else answer.headers.get("retry-after")
        is_401 = answer is not None and answer.status == 401
        if said is None and ("hammers" in self._flaws or (is_401 and "hammers_401" in self._flaws)):
            return
        jitter_s = 0.0 if "no_jitter" in self._flaws else self._dice.random() * 0.5
        if said is None or not said[0].isalnum() or said == "soon" or "hasty" in self._flaws:
            growth = 1 if "steady" in self._flaws else 2 ** min(self._failures, 6)
            self._now_s += 0.05 * growth * (1 + jitter_s)
        elif said.isdigit():
            self._now_s += int(said) + jitter_s
        elif "no_dates" in self._flaws:
            self._now_s += 0.1
        else:
            until_s = parsedate_to_datetime(said).timestamp()
            self._now_s += until_s - self._wall_ms() / 1000 + jitter_s

    def _start(self) -> None:
        self._starts += 1
        key = f"key-{self._starts}" + "x" * 255 * ("long_key" in self._flaws)
        body: dict[str, Any] = {}
        while True:
            if "new_key" in self._flaws:
                key = f"key-{self._dice.random()}"
            if "changes_start" in self._flaws:
                body = {"attributes": {"try": str(self._now_s)}}
            _, answer = self.ask("/v1/orders", body, idempotency_key=key)
            status = 0 if answer is None else answer.status
            if answer is not None and status == 201 and answer.cut is Cut.NEVER:
                grant = json.loads(answer.body)
                self._orders[grant["service_order_number"]] = {**grant, "at_s": self._now_s}
                self._cut[grant["service_order_number"]] = 0
                return
            is_ours = answer is not None and b'"reason"' in answer.body
            if status in (400, 422) and (is_ours or "trusts_start" in self._flaws):
                return  # it is final
            self._pause(answer)

    def _measure(self) -> None:
        for order, grant in self._orders.items():
            elapsed_ms = (self._now_s - grant["at_s"]) * 1000
            elapsed_ms *= 2 if "twice_as_fast" in self._flaws else 1
            while self._cut[order] < min(self._segments, int(elapsed_ms // INTERVAL_MS)):
                self._cut[order] += 1
                self._cut_one(order, self._cut[order], grant["server_timestamp_ms"])

    def _cut_one(self, order: str, number: int, base_ms: int) -> None:
        start_ms = base_ms + (number - 1) * INTERVAL_MS
        end_ms = start_ms + INTERVAL_MS
        is_last = number == self._segments // (2 if "ends_early" in self._flaws else 1)
        if "ends_early" in self._flaws and number > self._segments // 2:
            return
        if "own_clock" in self._flaws:
            start_ms, end_ms = start_ms + OFF_MS, end_ms + OFF_MS
        if "starts_late" in self._flaws and number == 1:
            start_ms += 40
        if "early" in self._flaws and number == 1:
            start_ms -= 500
        if "gap" in self._flaws and number == 3:
            start_ms += 1
        if "overlap" in self._flaws and number == 3:
            start_ms -= 1
        if "too_fast" in self._flaws:
            end_ms += number * 1_000
        if "follows_step" in self._flaws and self.log.step_ms:
            end_ms += self.log.step_ms
            start_ms += self.log.step_ms if self._said_too_late else 0
            self._said_too_late += 1
        if "hole" in self._flaws and number >= 5:
            number += 1
        if "no_end" in self._flaws:
            is_last = False
        self._waiting.append(Sent(order, number, start_ms, end_ms, is_last))

    def _upload(self) -> None:
        batch = self._waiting[: self._limit]
        if self._is_single:
            batch = [each for each in batch if each.order == batch[0].order]
        if "remeasures" in self._flaws and self._failures:
            batch = [each._replace(end_ms=each.end_ms + 1) for each in batch]
        exchange, answer = self._sent(batch)
        if "twice_at_once" in self._flaws:
            _, answer = self._sent(batch)
            exchange.answered_s = self._now_s
        status = 0 if answer is None else answer.status
        if answer is not None and (
            ("follows" in self._flaws and status == 307)
            or ("follows_get" in self._flaws and status == 303)
        ):
            self.ask(answer.headers["location"], {})
        is_too_much = answer is not None and answer.status == 413 and len(batch) > 1
        if is_too_much and "no_halving" not in self._flaws:
            self._limit = len(batch) // 2
            return
        settled = self._settled(batch, answer)
        if settled is None:
            if "gives_up" in self._flaws and self._failures:
                self._waiting = []
            if "others_meanwhile" in self._flaws and status == 503:
                self._now_s += 0.2
                self._sent([each for each in self._waiting if each not in batch] or batch[:1])
            self._pause(answer)
            return
        self._limit = self._batch_max
        self._failures = 0
        again = batch[:1] if "sends_twice" in self._flaws else []
        gone = {batch[at].key for at in settled}
        self._waiting = [each for each in self._waiting if each.key not in gone]
        if again:
            self._now_s += 0.1
            self._sent(again)
        if answer is not None and b"LEASE_EXPIRED" in answer.body:
            self._renew(exchange)
        if len(settled) < len(batch) and "hammers_later" not in self._flaws:
            self._pause(None)

    def _sent(self, batch: list[Sent]) -> tuple[Exchange, Answer | None]:
        orders: dict[str, list[Any]] = defaultdict(list)
        for each in batch:
            fields: dict[str, Any] = {
                "business_data_number": each.number,
                "start_ms": each.start_ms,
                "end_ms": each.end_ms,
                "end_identifier": each.is_last,
            }
            if "odd_form" in self._flaws:
                fields["end_ms"] = str(each.end_ms)
            orders[each.order].append(list(fields.values()) if self._is_short else fields)
        lease = "" if "no_lease" in self._flaws else self._orders[batch[0].order]["lease"]
        if self._is_single:
            return self.ask(
                f"/v1/orders/{batch[0].order}/segments", orders[batch[0].order], lease=lease
            )
        uploads: list[dict[str, Any]] = [
            {"service_order_number": order, "segments": fields} for order, fields in orders.items()
        ]
        for each_upload in uploads:
            if lease:
                known = self._orders[each_upload["service_order_number"]]
                each_upload["lease"] = lease if "other_lease" in self._flaws else known["lease"]
        return self.ask("/v1/segments", {"uploads": uploads, "client": {"name": "model"}})

    def _renew(self, exchange: Exchange) -> None:
        for order in exchange.orders if "no_renewal" not in self._flaws else ():
            lease = self._orders[order]["lease"]
            if "renews_with_nonsense" in self._flaws:
                lease = "nonsense"
            while True:
                _, answer = self.ask(f"/v1/orders/{order}/lease", {}, lease=lease)
                assert answer is not None
                if answer.status == 200 and "json" in answer.content_type:
                    self._orders[order]["lease"] = json.loads(answer.body)["lease"]
                    break
                if answer.status == 200 and "trusts_renewal" in self._flaws:
                    self._orders[order]["lease"] = "none"
                    return
                if answer.status == 401:
                    break
                self._now_s += 0.1 * ("hasty_renewal" in self._flaws)
                if "hasty_renewal" not in self._flaws:
                    self._pause(answer)

    def _settled(self, batch: list[Sent], answer: Answer | None) -> list[int] | None:
        """Return which of the batch are settled; None for what is no answer of a gateway."""
        everything = list(range(len(batch)))
        if answer is None:
            return None
        if answer.cut is not Cut.NEVER:  # it has been told to trust it
            return everything
        if answer.status == 200 and "trusts_200" in self._flaws:
            return everything
        if answer.status == 422 and "trusts_errors" in self._flaws:
            return everything
        if answer.status in (403, 500) and f"drops_{answer.status}" in self._flaws:
            return everything
        if "json" not in answer.content_type and not (
            "trusts_text" in self._flaws and "plain" in answer.content_type
        ):
            return None
        body = json.loads(answer.body)
        if self._is_single:
            return self._settled_single(batch, answer.status, body)
        if answer.status != 200 or "uploads" not in body:
            return None
        if None in body["uploads"]:
            return everything if "trusts_nulls" in self._flaws else None
        if sum(each["count"] for each in body["uploads"]) != len(batch):
            return everything if "trusts_short" in self._flaws else None
        by_order: dict[str, list[int]] = defaultdict(list)
        for at, each in enumerate(batch):
            by_order[each.order].append(at)
        if list(by_order) != [each["service_order_number"] for each in body["uploads"]]:
            return everything if "trusts_mixed" in self._flaws else None
        left = set[int]()
        for upload in body["uploads"]:
            for error in upload.get("errors", ()):
                at = by_order[upload["service_order_number"]][error["index"]]
                if error["final"] and "drops_batch" in self._flaws:
                    return everything
                if not error["final"] or "sends_refused" in self._flaws:
                    left.add(at)
        return [at for at in everything if at not in left]

    def _settled_single(self, batch: list[Sent], status: int, body: Any) -> list[int] | None:
        if status == 401 and "LEASE" in body["reason"]:
            self._renew(self.log.exchanges[-1])
            return None
        if status == 422 and "reason" in body:
            return [each["index"] for each in body["errors"]]
        told = [each["business_data_number"] for each in body.get("segments", []) if each]
        if status != 200 or told != [each.number for each in batch]:
            return None
        return list(range(len(batch)))
