"""Whatever clocks, networks and servers do, a bill is within the bound that is stated with it."""

from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from durabill.producers.sdk.suspends import SuspendPolicy
from tests.sim.metering import DAY, HOUR, MINUTE, MS, Gateway, Meter, S, Scenario, Span

LASTS = 3 * DAY


def steps(
    by_us: st.SearchStrategy[int], count_max: int
) -> st.SearchStrategy[tuple[tuple[int, int], ...]]:
    return st.lists(st.tuples(st.integers(0, LASTS), by_us), max_size=count_max).map(tuple)


def spans(longest_us: int) -> st.SearchStrategy[tuple[Span, ...]]:
    """Up to three spans of time, one after another."""
    edges = st.lists(
        st.tuples(st.integers(0, LASTS), st.integers(1, longest_us)), max_size=3, unique=True
    )

    def apart(drawn: list[tuple[int, int]]) -> tuple[Span, ...]:
        found: list[Span] = []
        for from_us, length_us in sorted(drawn):
            if not found or from_us > found[-1].until_us + HOUR:
                found.append(Span(from_us, from_us + length_us))
        return tuple(found)

    return edges.map(apart)


def scenarios(
    servers: st.SearchStrategy[tuple[Gateway, ...]], dead: st.SearchStrategy[tuple[Span, ...]]
) -> st.SearchStrategy[Scenario]:
    return servers.flatmap(
        lambda drawn: st.builds(
            Scenario,
            name=st.just("drawn"),
            lasts_us=st.integers(0, LASTS) | st.integers(0, HOUR),
            interval_us=st.sampled_from((10 * MINUTE, HOUR, 7 * HOUR + MS)),
            drift_ppm=st.integers(-500, 500),
            ways_us=st.tuples(st.integers(0, 2 * S), st.integers(0, 2 * S)),
            lost=st.sampled_from((0.0, 0.1, 0.6)),
            gateways=st.just(drawn),
            switches=st.just(()) | switches(len(drawn) - 1),
            sleeps=spans(10 * HOUR),
            sees_suspends=st.just(True),  # what nobody sees, nobody can state
            suspends=st.sampled_from(SuspendPolicy),
            offline=spans(DAY),
            dead=dead,
            rounds=st.booleans(),
        )
    )


def switches(count: int) -> st.SearchStrategy[tuple[int, ...]]:
    drawn = st.lists(st.integers(0, LASTS), min_size=count, max_size=count)
    return drawn.map(lambda each: tuple(sorted(each)))


APART = st.lists(
    st.builds(
        Gateway,
        clock_id=st.sampled_from("abcd"),
        ahead_us=st.integers(-250 * MS, 250 * MS),
    ),
    min_size=1,
    max_size=3,
    unique_by=lambda each: each.clock_id,
).map(tuple)
"""Several servers, each with a clock of its own."""
LARGE = st.integers(10 * MINUTE, 5 * HOUR) | st.integers(-5 * HOUR, -10 * MINUTE)
"""More than a crystal can drift while the client is offline."""
SMALL = st.integers(-2 * S, 2 * S)
SET = st.builds(Gateway, steps=steps(LARGE, 1)) | st.builds(
    Gateway, steps=steps(LARGE | SMALL, 2), tells_steps=st.just(True)
)
"""A server whose clock is set now and then; where nobody could see it, it says so.

Nobody can where the client is dead meanwhile, and counts the gap.
"""


VAGUE = Scenario(
    "an answer that took a minute by a hair, and then one of another server",
    lasts_us=0,
    ways_us=(0, 0),
    gateways=(Gateway("a", 3_899), Gateway("b")),
    sleeps=(Span(0, 57_965_199),),
    suspends=SuspendPolicy.COUNT,
    interval_us=10 * MINUTE,
)


@given(scenarios(APART, spans(3 * HOUR)), st.integers(0, 2**32))
@example(VAGUE, 1)
def test_bills_are_within_their_bounds(scenario: Scenario, seed: int) -> None:
    outcome = Meter(scenario, seed).run()
    assert outcome.error_ms <= outcome.bound_ms
    assert (outcome.in_the_future, outcome.before_the_opening) == (0, 0)
    assert outcome.clock_wrong_us <= 0
    segments = outcome.segments
    assert [each.business_data_number for each in segments] == list(range(1, len(segments) + 1))
    assert all(one.end_ms <= other.start_ms for one, other in pairwise(segments))


@given(scenarios(SET.map(lambda each: (each,)), st.just(())), st.integers(0, 2**32))
def test_bills_are_within_their_bounds_where_servers_are_set(scenario: Scenario, seed: int) -> None:
    outcome = Meter(scenario, seed).run()
    assert outcome.error_ms <= outcome.bound_ms
    assert outcome.before_the_opening == 0
    segments = outcome.segments
    assert [each.business_data_number for each in segments] == list(range(1, len(segments) + 1))
    assert all(one.end_ms <= other.start_ms for one, other in pairwise(segments))
