"""The process that is measured: a worker as `durabill worker` runs it. Arguments: port."""

import os
import sys

from durabill.deploy.logs import set_up_logging
from durabill.schemas import WriterSchemas
from durabill.stream_processors.settings import load_settings
from durabill.stream_processors.worker.app import run_worker
from tests.bench.lab import PARTITIONS

if __name__ == "__main__":
    set_up_logging()
    run_worker(load_settings(os.environ), PARTITIONS, int(sys.argv[1]), WriterSchemas())
