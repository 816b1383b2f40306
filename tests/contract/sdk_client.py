"""The Python SDK as a client under test: `python -m tests.contract.sdk_client`, told by variables.

Each service ends after SEGMENTS intervals. The token is read from TOKEN_FILE at each request.
"""

import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from durabill import Client, HttpUplink


def headers() -> Mapping[str, str]:
    """Return what shows who asks, as of now."""
    token = Path(os.environ["TOKEN_FILE"]).read_text()
    return {"authorization": f"Bearer {token}"}


def main() -> None:
    """Run the services, and send until all is settled."""
    orders, segments = int(os.environ["ORDERS"]), int(os.environ["SEGMENTS"])
    uplink = HttpUplink(os.environ["BASE_URL"], headers=headers)
    with (
        tempfile.TemporaryDirectory() as folder,
        Client(uplink, Path(folder) / "spool", on_error=lambda _: None) as client,
    ):
        services = [client.start(timeout_s=60) for _ in range(orders)]
        time.sleep(segments * int(os.environ["INTERVAL_MS"]) / 1000)
        for service in services:
            service.end(timeout_s=0)
        while client.flush(60):
            pass


if __name__ == "__main__":
    main()
