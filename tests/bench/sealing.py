"""What sealing costs, without Kafka: `python -m tests.bench.sealing`.

Totals are appended to a log, written and signed as `durabill seal` does it where it has to catch
up, then checked, then proven one by one.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from durabill.schemas import encode_total
from durabill.stream_processors.audit.seal.check import check_log
from durabill.stream_processors.audit.seal.folder import log_folder
from durabill.stream_processors.audit.seal.growing import open_log
from durabill.stream_processors.audit.seal.lookup import find_receipt
from durabill.stream_processors.audit.seal.receipt import verify
from tests.broker.ledger_kit import a_total
from tests.seal_kit import ORIGIN, new_keys

TOTALS = 200_000
AT_ONCE = 65_536
"""So many a sealer that catches up seals with one checkpoint."""


@dataclass(frozen=True)
class SealCost:
    """CPU microseconds a total, and bytes on the disk; `verify_us` is of one receipt."""

    totals: int
    seal_us: float
    check_us: float
    verify_us: float
    value_bytes: float
    disk_bytes: float


def measure_sealing(totals: int = TOTALS) -> SealCost:
    """Seal, check and prove so many totals of different orders in a folder of their own."""
    values = [encode_total(a_total(f"SO-{each}", 1, 1_000 + each)) for each in range(totals)]
    with TemporaryDirectory() as name:
        folder = Path(name)
        keys = new_keys(folder)

        def seal() -> None:
            log, _ = open_log(folder, ORIGIN, keys)
            for start in range(0, totals, AT_ONCE):
                for offset, value in enumerate(values[start : start + AT_ONCE], start):
                    log.append(offset, value)
                log.commit()

        def check() -> None:
            files = log_folder(folder, ORIGIN)
            assert not check_log(files, ORIGIN, keys.trusted, values).findings

        seal_s, check_s = cpu_s(seal), cpu_s(check)
        receipt = find_receipt(folder, ORIGIN.topic, f"SO-{totals - 1}")
        assert receipt is not None
        verify_s = cpu_s(lambda: [verify(receipt, keys.trusted) for _ in range(100)]) / 100
        disk = sum(each.stat().st_size for each in folder.rglob("*") if each.is_file())
    return SealCost(
        totals=totals,
        seal_us=round(seal_s / totals * 1e6, 2),
        check_us=round(check_s / totals * 1e6, 2),
        verify_us=round(verify_s * 1e6, 1),
        value_bytes=round(sum(map(len, values)) / totals, 1),
        disk_bytes=round(disk / totals, 1),
    )


def cpu_s(work: Callable[[], object]) -> float:
    """Return the CPU seconds that some work takes this process."""
    began_s = time.process_time()
    work()
    return time.process_time() - began_s


if __name__ == "__main__":
    for field, value in asdict(measure_sealing()).items():
        print(f"{field:12} {value:>12,}")
