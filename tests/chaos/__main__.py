"""Chaos: `python -m tests.chaos`, or `make chaos ARGS="--seed 7"`.

Runs three Kafka brokers, PostgreSQL, a gateway, two to four workers and a ledger in a temporary
folder, with a fleet that never stops publishing and hostile clients beside it, and does to them
what a seed's schedule says: kill -9, freezes beyond the session, workers added and removed, clocks
hours off, a follower frozen or killed while its leader appends, leaders moved, coordinators killed,
all brokers restarted one by one or down at once, PostgreSQL killed, the brokers slow, silent or cut
off for some. Then it checks that every revision of every total is there exactly once, in every
field what the log says, and the ledger, the checkpoint and the dead letters likewise; and that no
process ended that no fault explains. Exit code 1 on any violation. Linux only (/proc).

As it is, five seeds of a million segments each: some 45 minutes on two cores.
"""

import argparse
import contextlib
import json
import random
import signal
import sys
import time
from pathlib import Path

from durabill.schemas.errors import DurabillError
from tests.chaos import report
from tests.chaos.cluster import sweep
from tests.chaos.run import Chaos, long_form, run, short_form
from tests.chaos.schedule import Kind


def main() -> int:
    """Run the chosen seeds; return the exit code."""
    arguments = _arguments()
    if not Path("/proc/self/stat").exists():
        print("Chaos looks into /proc, so it needs Linux.", file=sys.stderr)
        return 69
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda got, _: sys.exit(128 + got))  # so that all is stopped
    began_s = time.monotonic()

    def say(words: str) -> None:
        if not arguments.quiet:
            print(f"[{time.monotonic() - began_s:5.0f} s] {words}", file=sys.stderr, flush=True)

    sweep()
    seeds = _seeds(arguments)
    reports = []
    failed = ""
    with contextlib.suppress(KeyboardInterrupt):
        for seed in seeds:
            try:
                reports.append(run(_chaos(arguments, seed), keep=arguments.keep, say=say))
            except DurabillError as error:
                failed = str(error)
                break
            if reports[-1].violations:
                say(f"seed {seed}: {len(reports[-1].violations)} violations")
    finished = len(reports) == len(seeds)
    violated = any(each.violations for each in reports)
    if arguments.json:
        runs = [each.as_json() for each in reports]
        print(json.dumps({"ok": finished and not violated, "runs": runs}, ensure_ascii=False))
    elif reports:
        print(report.text(reports))
    if failed:
        print(f"error: {failed}", file=sys.stderr)
    elif not finished:
        print(f"interrupted: {len(reports)} of {len(seeds)} seeds were run", file=sys.stderr)
        return 130
    return 1 if failed or violated else 0


def _seeds(arguments: argparse.Namespace) -> list[int]:
    if arguments.seed is not None:
        return [arguments.seed + each for each in range(arguments.seeds or 1)]
    if arguments.fresh:
        return [random.SystemRandom().randrange(1, 10**6) for _ in range(arguments.seeds or 5)]
    return [each + 1 for each in range(arguments.seeds or 5)]


def _chaos(arguments: argparse.Namespace, seed: int) -> Chaos:
    if arguments.short:
        brokers = arguments.brokers or 1
        return short_form(seed, arguments.segments or 20_000, arguments.rate or 650, brokers)
    return long_form(
        seed,
        segments=arguments.segments or 1_000_000,
        rate=arguments.rate or 3_500,
        seconds=60 * arguments.minutes,
        down_s=arguments.down,
        brokers=arguments.brokers or 3,
        without=frozenset(Kind[name] for name in arguments.without),
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    more = parser.add_argument
    more("--seed", type=int, help="the first (or only) seed; repeats its schedule")
    more("--seeds", type=int, help="how many seeds; 5, or 1 with --seed")
    more("--fresh", action="store_true", help="seeds that nobody has chosen; they are printed")
    more("--brokers", type=int, choices=(1, 3), help="how many brokers; 3, or 1 with --short")
    more("--segments", type=int, help="segments of each seed at least; 1,000,000")
    more("--minutes", type=float, default=0.0, help="go on with faults for so long a seed; 0")
    more("--rate", type=float, help="records a second that the fleet publishes; 3,500")
    more("--down", type=float, default=60.0, help="seconds that all brokers are down; 60")
    names = [kind.name for kind in Kind]
    more(
        "--without",
        nargs="+",
        default=[],
        choices=names,
        metavar="KIND",
        help=f"kinds of fault to leave out: {', '.join(names)}",
    )
    more("--short", action="store_true", help="the form that is part of `make test`")
    more("--keep", action="store_true", help="keep the folder with all data and logs")
    more("--json", action="store_true", help="the report as JSON on standard output")
    more("--quiet", action="store_true", help="no progress on standard error")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
