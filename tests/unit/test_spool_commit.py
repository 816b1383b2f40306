"""What a commit has stored is stored, whatever fails behind it: no number is given twice."""

from collections.abc import Callable
from pathlib import Path

import pytest

from durabill.producers.sdk.session import SessionState
from durabill.producers.sdk.spool import Entry, Spool, SpoolBroken
from durabill.producers.sdk.spool_file import SpoolFile
from durabill.schemas import SegmentEvent


def segment(number: int) -> SegmentEvent:
    return SegmentEvent("SO1", number, number * 10, number * 10 + 10, False)


def state(next_number: int) -> SessionState:
    return SessionState("SO1", 10, next_number, next_number * 10, False)


@pytest.mark.parametrize("error", [MemoryError(), SystemExit(), SpoolBroken("the disk")])
@pytest.mark.parametrize("is_behind", [True, False], ids=["behind the commit", "before it"])
def test_an_error_at_a_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, is_behind: bool
) -> None:
    commit = SpoolFile.commit

    def fail(self: SpoolFile, change: Callable[[], object], *, durable: bool = True) -> None:
        if is_behind:
            commit(self, change, durable=durable)
        raise error

    with Spool(tmp_path / "spool") as spool:
        spool.append([segment(1)], state(2))
        with monkeypatch.context() as patch:
            patch.setattr(SpoolFile, "commit", fail)
            if is_behind:
                spool.append_all([Entry([segment(2)], state(3))])
            else:
                with pytest.raises(type(error)):
                    spool.append_all([Entry([segment(2)], state(3))])
        at = 3 if is_behind else 2
        assert (spool.pending(), spool.session("SO1")) == (at - 1, state(at))
        spool.append([segment(at)], state(at + 1))
        with monkeypatch.context() as patch:
            patch.setattr(SpoolFile, "commit", fail)
            with pytest.raises(type(error)):
                spool.acknowledge([each.entry_id for each in spool.oldest(9)])
        spool.append([segment(at + 1)], state(at + 2))
        left = [each.segment.business_data_number for each in spool.oldest(9)]
        assert left == ([at + 1] if is_behind else list(range(1, at + 2)))
        assert spool.pending() == len(left)
