"""The bench's peers do the worker's job: what they call a total is one, by the present contract."""

from random import Random
from typing import Any

import pytest

from durabill.schemas import SegmentEvent, decode_total
from durabill.stream_processors.core.order import Order, Policy
from tests.bench import peer_job


@pytest.mark.parametrize("seed", range(30))
def test_first_total_is_the_workers(seed: int) -> None:
    dice = Random(seed)
    count = dice.randint(1, 6)
    numbers = [*dice.sample(range(1, count + 1), count), *dice.choices(range(1, count + 1), k=3)]
    ends = {count, dice.randint(1, count)}
    order, state, policy = Order("SO1", 2), peer_job.new_state(), Policy()
    for offset, number in enumerate(numbers):
        start_ms = 1_000 + 100 * number + dice.randrange(50)
        end_ms = start_ms + dice.randrange(150)
        fields: dict[str, Any] = {
            "service_order_number": "SO1",
            "business_data_number": number,
            "start_ms": start_ms,
            "end_ms": end_ms,
            "end_identifier": number in ends,
        }
        ours = order.apply(SegmentEvent(**fields), 5_000, offset, policy)
        theirs = peer_job.fold(state, fields, 2, offset, 5_000)
        if ours is None:
            assert theirs is None
            continue
        assert theirs is not None
        assert ours == decode_total(theirs)
        break
    else:
        pytest.fail("no total in the end")
