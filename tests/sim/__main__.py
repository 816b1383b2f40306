"""`make sim`: histories of the engine from one seed on; what fails is told with what replays it.

make sim                      as many histories as a minute holds, from a seed of chance
make sim SEED=17              the history with this seed, with everything that happens in it
make sim ARGS="--first 0 --count 5000"
make sim ARGS=--mutations     how many histories it takes to notice each broken engine
make sim SEED=17 ARGS='--mutation "no slack"'
"""

import argparse
import logging
import sys
import time
from contextlib import ExitStack
from random import SystemRandom

from durabill.stream_processors.engine.columns import compile_kernel
from tests.sim.history import Verdict, run_seed
from tests.sim.mutations import MUTATIONS, SEEDS_MAX, caught_at, mutated

FAILURES_MAX = 5


def main() -> int:
    """Run what was asked for; return the exit code."""
    parser = argparse.ArgumentParser(prog="make sim", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seed", type=int, help="run this history and print what happens in it")
    parser.add_argument("--first", type=int, help="the first seed of many")
    parser.add_argument("--count", type=int, help="how many histories")
    parser.add_argument("--seconds", type=float, default=60.0, help="for how long, without --count")
    parser.add_argument("--mutations", action="store_true", help="break the engine in every way")
    parser.add_argument("--mutation", help="break the engine in this way")
    asked = parser.parse_args()
    logging.disable(logging.CRITICAL)  # workers die all the time here
    compile_kernel()
    if asked.mutations:
        return judge_mutations()
    with ExitStack() as broken:
        for mutation in MUTATIONS:
            if mutation.name == asked.mutation:
                broken.enter_context(mutated(mutation))
        if asked.seed is not None:
            return replay(asked.seed)
        first = SystemRandom().randrange(10**9) if asked.first is None else asked.first
        return run_many(first, asked.count, asked.seconds)


def replay(seed: int) -> int:
    """Print a history."""
    verdict = run_seed(seed, trace=True)
    print(verdict.plan.describe())
    print(*verdict.trace, sep="\n")
    print(*verdict.problems or ["nothing is wrong"], sep="\n")
    return 1 if verdict.problems else 0


def run_many(first: int, count: int | None, seconds: float) -> int:
    """Run histories; print those that fail, and how many there were."""
    began_s, done, failed = time.monotonic(), 0, 0
    while done < count if count is not None else time.monotonic() < began_s + seconds:
        verdict = run_seed(first + done)
        done += 1
        if verdict.problems:
            failed += 1
            tell(verdict)
        if failed == FAILURES_MAX:
            break
    took_s = time.monotonic() - began_s
    print(
        f"{done} histories from seed {first} on in {took_s:.1f} s"
        f" ({done / took_s * 60:.0f} a minute): {failed} failed"
    )
    return 1 if failed else 0


def tell(verdict: Verdict) -> None:
    """Print what is wrong with a history, and how to see all of it."""
    print(verdict.plan.describe(), *verdict.problems[:5], sep="\n")
    print(f"replay it: make sim SEED={verdict.plan.seed}\n", flush=True)


def judge_mutations() -> int:
    """Print after how many histories each mutation was noticed."""
    missed = 0
    for mutation in MUTATIONS:
        verdict = caught_at(mutation, range(SEEDS_MAX))
        missed += verdict is None
        found = f"seed {verdict.plan.seed}: {verdict.problems[0][:90]!r}" if verdict else "MISSED"
        print(f"{mutation.name:56} {found}", flush=True)
    print(f"{len(MUTATIONS)} mutations, {missed} missed within {SEEDS_MAX} histories each")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
