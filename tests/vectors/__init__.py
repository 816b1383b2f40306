"""Test vectors for clients, consumers and auditors in any language: `vectors/*.json`.

`python -m tests.vectors` makes them, from the plain core; `tests/unit/test_vectors.py` compares.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.vectors.histories import orders_file
from tests.vectors.receipts import receipts_file
from tests.vectors.records import clock_marks_file, openings_file, segments_file

FOLDER = Path(__file__).resolve().parents[2] / "vectors"


def files() -> Mapping[str, str]:
    """Return the content of each file, by its name."""
    made: dict[str, dict[str, Any]] = {
        "segments.json": segments_file(),
        "clock_marks.json": clock_marks_file(),
        "openings.json": openings_file(),
        "orders.json": orders_file(),
        "receipts.json": receipts_file(),
    }
    return {
        name: json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        for name, content in made.items()
    }
