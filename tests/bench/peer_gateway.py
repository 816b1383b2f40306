"""What a gateway costs at least in Python: `python -m tests.bench.peer_gateway SERVERS TOPIC`.

aiohttp, msgspec, Avro written by hand, produce_batch, one report a request. It checks nothing,
knows nobody, bounds nothing, signs nothing, and takes a record for stored when another one is.
"""

import asyncio
import json
import sys
import threading
from typing import Any

import msgspec
import uvloop
from aiohttp import web
from confluent_kafka import Producer

from durabill.producers.sdk.kafka_uplink import producer_config
from durabill.schemas import SEGMENT_HEADER


class Segment(msgspec.Struct):
    """One segment."""

    business_data_number: int
    start_ms: int
    end_ms: int
    end_identifier: bool


class Upload(msgspec.Struct):
    """The segments of an order."""

    service_order_number: str
    segments: list[Segment]


class Request(msgspec.Struct):
    """A whole body."""

    uploads: list[Upload]


_REQUEST = msgspec.json.Decoder(Request)


def _put(out: bytearray, value: int) -> None:
    value <<= 1
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


def _record(head: bytes, segment: Segment) -> bytes:
    out = bytearray(head)
    _put(out, segment.business_data_number)
    _put(out, segment.start_ms)
    _put(out, segment.end_ms)
    out.append(segment.end_identifier)
    return bytes(out)


class Floor:
    """The handler, its producer, and the thread that polls."""

    def __init__(self, servers: str, topic: str) -> None:
        config: dict[str, Any] = producer_config(
            {"bootstrap.servers": servers}, delivery_timeout_ms=10_000
        )
        self._topic = topic
        self._producer = Producer(config)
        threading.Thread(target=self._poll, daemon=True).start()

    def _poll(self) -> None:
        while True:
            self._producer.poll(0.1)

    async def add(self, request: web.Request) -> web.Response:
        """POST /v1/segments"""
        loop = asyncio.get_running_loop()
        stored: asyncio.Future[int | None] = loop.create_future()
        records: list[dict[str, Any]] = []
        for upload in _REQUEST.decode(await request.read()).uploads:
            key = upload.service_order_number.encode()
            head = SEGMENT_HEADER + bytes([2 * len(key)]) + key
            records += [{"key": key, "value": _record(head, each)} for each in upload.segments]
        records[-1]["callback"] = lambda _, message: loop.call_soon_threadsafe(
            stored.set_result, message.offset()
        )
        self._producer.produce_batch(self._topic, records)
        body = msgspec.json.encode({"count": len(records), "offset": await stored})
        return web.Response(body=body, content_type="application/json")


async def serve(servers: str, topic: str) -> None:
    """Serve until killed; prints where."""
    app = web.Application()
    app.router.add_post("/v1/segments", Floor(servers, topic).add)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    print(json.dumps({"mark": "ready", "url": f"http://{host}:{port}"}), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve(*sys.argv[1:3]))
