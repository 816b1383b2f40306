"""The gateway that is measured: `python -m tests.bench.run_gateway SERVERS TOPIC [CERT KEY]`."""

import json
import sys
from pathlib import Path

from durabill.deploy.logs import set_up_logging
from durabill.producers.gateway.server import GatewayConfig, run_gateway
from durabill.producers.gateway.tls import TlsFiles

if __name__ == "__main__":
    set_up_logging()
    servers, topic, *files = sys.argv[1:]
    config = GatewayConfig(
        {"bootstrap.servers": servers},
        topic,
        tls=TlsFiles(Path(files[0]), Path(files[1])) if files else None,
        correction_window_ms=86_400_000,
        client_segments_max=40_000,  # all clients of the bench are one
        tenant_segments_max=40_000,
    )
    run_gateway(config, lambda url: print(json.dumps({"mark": "ready", "url": url}), flush=True))
