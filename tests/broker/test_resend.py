"""Sending back all dead letters of a reason: each origin once, however often it is asked for."""

import json
from collections import Counter

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from durabill.deploy.commands.cli import main
from durabill.schemas import partition_for
from durabill.schemas.headers import headers_in
from durabill.stream_processors.dead_letters.letters import list_dead_letters
from durabill.stream_processors.dead_letters.resend import send_back
from durabill.stream_processors.dead_letters.review import State, review
from tests.broker.test_dead_letters import bury
from tests.conftest import Topics
from tests.waiting import HANG_S

Standing = dict[bytes | None, tuple[State, str]]
"""By key: where the origin stands, and its newest reason."""


@pytest.fixture
def kafka(bootstrap_servers: str) -> dict[str, str]:
    return {"bootstrap.servers": bootstrap_servers}


class Judge:
    """Rejects what comes to the segments topic, as a worker does."""

    def __init__(self, kafka: dict[str, str], topics: Topics) -> None:
        self.kafka, self.topics = kafka, topics
        self.next = dict.fromkeys(range(topics.partitions), 0)

    def rejects(self, reason: str, *, but: bytes = b"") -> int:
        """Makes dead letters of the records that came since the last call; returns how many."""
        consumer = Consumer({**self.kafka, "group.id": "judge", "enable.partition.eof": True})
        consumer.assign(
            [TopicPartition(self.topics.segments, p, at) for p, at in self.next.items()]
        )
        producer = Producer(self.kafka)
        count, open_ = 0, set(self.next)
        while open_:
            message = consumer.poll(HANG_S)
            assert message is not None
            partition, offset = message.partition(), message.offset()
            assert partition is not None
            assert offset is not None
            if message.error() is not None:
                open_.discard(partition)
                continue
            self.next[partition] = offset + 1
            if message.key() == but:
                continue
            count += 1
            ours = [("reason", reason), ("source_topic", self.topics.segments)]
            ours += [("source_partition", str(partition)), ("source_offset", str(offset))]
            headers = [*headers_in(message), *((name, text.encode()) for name, text in ours)]
            producer.produce(
                self.topics.dead_letters,
                message.value(),
                message.key(),
                partition,
                headers=[(name, value) for name, value in headers],
            )
        assert producer.flush(HANG_S) == 0
        consumer.close()
        return count


@pytest.fixture
def judge(kafka: dict[str, str], topics: Topics) -> Judge:
    """A judge that has already rejected two segments, of the orders A and B."""
    judge = Judge(kafka, topics)
    producer = Producer(kafka)
    for key in (b"A", b"B"):
        producer.produce(topics.segments, b"a segment", key, partition_for(key, 4))
    assert producer.flush(HANG_S) == 0
    assert judge.rejects("TOO_LATE") == 2
    return judge


def standing(judge: Judge, reason: str = "TOO_LATE") -> Standing:
    topics = judge.topics
    found = list(
        review(judge.kafka, topics.dead_letters, segments_topic=topics.segments, reason=reason)
    )
    assert len(found) == len({each.letter.key for each in found}), "an origin comes once"
    return {each.letter.key: (each.state, each.letter.reason) for each in found}


def send(judge: Judge, *states: State, reason: str = "TOO_LATE") -> int:
    topics = judge.topics
    letters = [
        each.letter
        for each in review(
            judge.kafka, topics.dead_letters, segments_topic=topics.segments, reason=reason
        )
        if each.state in states
    ]
    return len(list(send_back(judge.kafka, topics.dead_letters, letters, topics.segments)))


def test_an_origin_is_sent_once_and_its_fate_is_known(judge: Judge) -> None:
    assert standing(judge) == {b"A": (State.NEW, "TOO_LATE"), b"B": (State.NEW, "TOO_LATE")}
    assert standing(judge, "NOT_AVRO") == {}
    assert send(judge, State.NEW) == 2
    assert {State.SENT_BACK} == {state for state, _ in standing(judge).values()}
    assert judge.rejects("NOT_AVRO", but=b"A") == 1
    fate: Standing = {b"A": (State.SENT_BACK, "TOO_LATE"), b"B": (State.REJECTED_AGAIN, "NOT_AVRO")}
    assert fate == standing(judge)
    assert {b"B": fate[b"B"]} == standing(judge, "NOT_AVRO")
    assert send(judge, State.NEW) == 0


def test_sending_again_adds_one_dead_letter_an_origin_and_never_doubles(judge: Judge) -> None:
    assert send(judge, State.NEW) == 2
    for _ in range(3):
        assert judge.rejects("TOO_LATE") == 2
        assert {State.REJECTED_AGAIN} == {state for state, _ in standing(judge).values()}
        assert send(judge, State.NEW, State.REJECTED_AGAIN) == 2
    assert len(list(list_dead_letters(judge.kafka, judge.topics.dead_letters))) == 2 + 3 * 2


def test_letters_that_were_doubled_before_are_one_origin(judge: Judge) -> None:
    """What `resend --reason` did: each letter, those of records sent back too."""
    for _ in range(3):
        letters = list(list_dead_letters(judge.kafka, judge.topics.dead_letters))
        list(send_back(judge.kafka, judge.topics.dead_letters, letters, judge.topics.segments))
        assert len(letters) == judge.rejects("TOO_LATE")
    assert len(list(list_dead_letters(judge.kafka, judge.topics.dead_letters))) == 2 * 2**3
    assert {State.REJECTED_AGAIN} == {state for state, _ in standing(judge).values()}
    assert send(judge, State.NEW, State.REJECTED_AGAIN) == 2


def test_a_crashed_workers_repeat_is_the_same_origin(judge: Judge) -> None:
    topics = judge.topics
    judge.next = dict.fromkeys(judge.next, 0)
    assert judge.rejects("TOO_LATE") == 2  # the same two records once more
    assert send(judge, State.NEW) == 2
    assert {State.SENT_BACK} == {state for state, _ in standing(judge).values()}
    # Also where it was the repeat that somebody has sent back.
    last = list(list_dead_letters(judge.kafka, topics.dead_letters, repeats=True))[-1]
    list(send_back(judge.kafka, topics.dead_letters, [last], topics.segments))
    judge.rejects("TOO_LATE")
    assert {State.REJECTED_AGAIN} == {state for state, _ in standing(judge).values()}


def test_headers_that_lie_hide_no_origin(judge: Judge) -> None:
    dead = judge.topics.dead_letters
    lies = [f"{dead}/0/999999", f"{dead}/99/0", "elsewhere/0/0", f"{dead}/0/", f"{dead}/x/0", "/"]
    lies += [f"{dead}/3/{offset}" for offset in (0, 1)]  # itself; another order's
    for offset, lie in enumerate(lies, 100):
        own = (("resent_from", lie.encode()),)
        bury(judge.kafka, dead, offset, reason="TOO_LONG", partition=3, own_headers=own)
    found = list(review(judge.kafka, dead, segments_topic=judge.topics.segments, reason="TOO_LONG"))
    # Of the last two, one says that it is the first of the eight sent back, and one the second.
    assert {State.NEW} == {each.state for each in found if each.letter.offset not in (0, 1, 6, 7)}
    assert len(lies) - 2 <= len(found) <= len(lies)
    assert {State.NEW} == {state for state, _ in standing(judge).values()}


def test_a_cut_letter_is_told_and_holds_nobody_up(judge: Judge) -> None:
    cut = (("cut_value", b"3000000 " + b"0" * 64),)
    bury(judge.kafka, judge.topics.dead_letters, 7, reason="TOO_LATE", own_headers=cut)
    assert standing(judge)[b"SO1"] == (State.CUT, "TOO_LATE")
    assert send(judge, State.NEW) == 2


def test_the_command_sends_once_and_tells_the_rest_apart(
    judge: Judge, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.umask", lambda mask: 0)  # of a process of its own, not of ours
    monkeypatch.setenv("DURABILL_BOOTSTRAP_SERVERS", judge.kafka["bootstrap.servers"])
    monkeypatch.setenv("DURABILL_SEGMENTS_TOPIC", judge.topics.segments)
    monkeypatch.setenv("DURABILL_DEAD_LETTERS_TOPIC", judge.topics.dead_letters)

    def resend(*flags: str) -> tuple[list[str], str]:
        monkeypatch.setattr("sys.argv", ["durabill", "dead-letters", "resend", *flags])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code, capsys.readouterr().err
        out, err = capsys.readouterr()
        return out.splitlines(), err

    lines, told = resend("--reason", "TOO_LATE", "--json")
    assert len(lines) == 2
    assert "2 records sent back" in told
    assert judge.rejects("TOO_LONG", but=b"A") == 1
    lines, told = resend("--reason", "TOO_LATE")
    assert lines == []
    assert "0 records sent back" in told
    assert "1 not sent: sent back before, and not rejected since" in told
    assert "1 not sent: sent back before, and rejected again, last as TOO_LONG" in told
    lines, told = resend("--reason", "TOO_LATE", "--json")
    assert Counter({"SENT_BACK": 1, "REJECTED_AGAIN": 1}) == Counter(
        json.loads(line)["state"] for line in lines
    )
    lines, told = resend("--reason", "TOO_LATE", "--again")
    assert len(lines) == 1
    assert "1 record sent back" in told
