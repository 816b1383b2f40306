// A client of Durabill in TypeScript, written from docs/contract.md and docs/http.md alone.
//
//     node client.js http       BASE_URL, ORDERS, SEGMENTS, INTERVAL_MS, TOKEN_FILE: over HTTP
//     node client.js kafka      BOOTSTRAP_SERVERS, TOPIC, ORDERS, SEGMENTS, INTERVAL_MS: into Kafka
//     node client.js vectors F  encodes the segments of vectors/segments.json
//
// It keeps unsent segments in memory; a client that may be killed keeps them on disk. Node 22.18 and
// later run client.ts as it is.
import { randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { Kafka, Partitioners, logLevel } from "kafkajs";

type Segment = { order: string; number: number; startMs: number; endMs: number; isLast: boolean };
type Order = { number: string; lease?: string; baseMs: number; anchorMs: number; intervalMs: number };
type Answer = { status: number; body: any; wishMs?: number };

// -- the contract in bytes: Avro's single-object encoding, and the partition of a key

function long(value: number): number[] {
  let rest = BigInt(value) * 2n; // zigzag, of numbers from 0 on
  const bytes: number[] = [];
  for (; rest > 127n; rest >>= 7n) bytes.push(Number(rest & 127n) | 128);
  return [...bytes, Number(rest)];
}

function encode(each: Segment): Buffer {
  const key = Buffer.from(each.order);
  const times = [each.number, each.startMs, each.endMs].flatMap(long);
  const head = Buffer.from("c301ba627070e049bb87", "hex");
  return Buffer.concat([head, Buffer.from(long(key.length)), key, Buffer.from([...times, +each.isLast])]);
}

function murmur2(key: Buffer): number {
  const m = 0x5bd1e995;
  let h = 0x9747b28c ^ key.length;
  let at = 0;
  for (; at + 4 <= key.length; at += 4) {
    let k = Math.imul(key.readInt32LE(at), m);
    k = Math.imul(k ^ (k >>> 24), m);
    h = Math.imul(h, m) ^ k;
  }
  if (at < key.length) h = Math.imul(h ^ key.readUIntLE(at, key.length - at), m);
  h = Math.imul(h ^ (h >>> 13), m);
  return (h ^ (h >>> 15)) >>> 0;
}

// -- over HTTP

const env = (name: string): string => process.env[name] ?? "";
const monotonicMs = (): number => Math.floor(performance.now());

// The server's wish with a jitter on top, else longer and longer: never less than the wish.
const pause = (failures: number, wishMs?: number) => {
  const fullMs = Math.min(100 * 2 ** Math.min(failures, 20), 30_000);
  const jitterMs = Math.random() * Math.max(fullMs, (wishMs ?? 0) / 2);
  return sleep(wishMs === undefined ? fullMs / 2 + jitterMs / 2 : wishMs + jitterMs);
};

function wishOf(headers: Headers): number | undefined {
  const said = headers.get("retry-after");
  if (said === null) return undefined;
  const dateMs = Date.parse(said) - (Date.parse(headers.get("date") ?? "") || Date.now());
  return /^\d+$/.test(said) ? Number(said) * 1000 : Math.max(dateMs || 0, 0);
}

// Without an answer, or with one that breaks off, `status` is 0. Only JSON has a body.
async function post(path: string, body: unknown, headers: Record<string, string> = {}): Promise<Answer> {
  const token = env("TOKEN_FILE") && readFileSync(env("TOKEN_FILE"), "utf8").trim(); // may be renewed
  const authorization: Record<string, string> = token ? { authorization: `Bearer ${token}` } : {};
  try {
    const answer = await fetch(env("BASE_URL") + path, {
      method: "POST",
      body: JSON.stringify(body),
      headers: { "content-type": "application/json", ...authorization, ...headers },
      redirect: "manual",
      signal: AbortSignal.timeout(15_000),
    });
    const text = await answer.text();
    const isJson = /^application\/([\w.-]+\+)?json/.test(answer.headers.get("content-type") ?? "");
    return { status: answer.status, body: isJson ? JSON.parse(text) : null, wishMs: wishOf(answer.headers) };
  } catch {
    return { status: 0, body: null };
  }
}

async function start(): Promise<Order> {
  const key = randomUUID(); // the same for every try: a lost answer opens no second order
  for (let failures = 0; ; failures++) {
    const { status, body, wishMs } = await post("/v1/orders", {}, { "idempotency-key": key });
    const anchorMs = monotonicMs();
    if (status === 201 && typeof body?.service_order_number === "string" && body.server_timestamp_ms >= 0)
      return {
        number: body.service_order_number,
        lease: body.lease,
        baseMs: body.server_timestamp_ms,
        anchorMs,
        intervalMs: body.report_interval_ms,
      };
    await pause(failures, wishMs);
  }
}

// Cuts a segment every interval, by the monotonic clock alone: the wall clock may be wrong.
async function measure(order: Order, segments: number, waiting: Segment[]): Promise<void> {
  let startMs = order.baseMs;
  for (let number = 1; number <= segments; number++) {
    const dueMs = order.anchorMs + number * order.intervalMs;
    while (monotonicMs() < dueMs) await sleep(dueMs - monotonicMs());
    const isLast = number === segments;
    const endMs = isLast ? order.baseMs + monotonicMs() - order.anchorMs : startMs + order.intervalMs;
    waiting.push({ order: order.number, number, startMs, endMs, isLast });
    startMs = endMs;
  }
}

// Says of each segment sent whether it is settled; null for what is no answer of a gateway.
function judged(answer: Answer, batches: Segment[][]): Map<Segment, boolean> | null {
  const uploads = answer.body?.uploads;
  if (answer.status !== 200 || uploads?.length !== batches.length) return null;
  const settled = new Map<Segment, boolean>();
  for (const [at, batch] of batches.entries()) {
    const { service_order_number, count, errors = [] } = uploads[at];
    if (service_order_number !== batch[0]!.order || count !== batch.length) return null;
    for (const each of batch) settled.set(each, true);
    for (const error of errors) {
      const bad = batch[error.index];
      if (bad?.number !== error.business_data_number) return null;
      settled.set(bad!, error.final === true);
      if (error.final) console.error(`${bad!.order}/${bad!.number} was refused: ${error.reason}`);
    }
  }
  return settled;
}

async function renew(orders: Map<string, Order>, answer: Answer): Promise<void> {
  for (const { service_order_number, errors } of answer.body.uploads) {
    const order = orders.get(service_order_number)!;
    if (!errors?.some((each: any) => each.reason.startsWith("LEASE_"))) continue;
    const renewed = await post(`/v1/orders/${encodeURIComponent(order.number)}/lease`, {}, { lease: order.lease ?? "" });
    if (renewed.status < 300 && renewed.body?.lease) order.lease = renewed.body.lease;
  }
}

function byOrder(segments: Segment[]): Segment[][] {
  const batches = new Map<string, Segment[]>();
  for (const each of segments) batches.set(each.order, [...(batches.get(each.order) ?? []), each]);
  return [...batches.values()];
}

async function overHttp(): Promise<void> {
  const waiting: Segment[] = [];
  const orders = new Map<string, Order>();
  let measuring = 0;
  for (let at = 0; at < Number(env("ORDERS")); at++) {
    const order = await start();
    orders.set(order.number, order);
    measuring++;
    void measure(order, Number(env("SEGMENTS")), waiting).then(() => measuring--);
  }
  for (let limit = 500, failures = 0; measuring > 0 || waiting.length > 0; ) {
    if (waiting.length === 0) {
      await sleep(10);
      continue;
    }
    const batches = byOrder(waiting.slice(0, limit));
    const uploads = batches.map((batch) => ({
      service_order_number: batch[0]!.order,
      lease: orders.get(batch[0]!.order)!.lease,
      segments: batch.map((each) => ({
        business_data_number: each.number,
        start_ms: each.startMs,
        end_ms: each.endMs,
        end_identifier: each.isLast,
      })),
    }));
    const answer = await post("/v1/segments", { uploads, client: { name: "typescript", pending: waiting.length } });
    const settled = judged(answer, batches);
    if (answer.status === 413 && limit > 1) {
      limit = Math.max(1, Math.floor(Math.min(limit, waiting.length) / 2)); // whoever says so
    } else if (settled === null) {
      await pause(failures++, answer.wishMs);
    } else {
      const left = waiting.filter((each) => settled.get(each) !== true);
      failures = left.length < waiting.length ? 0 : failures + 1;
      limit = Math.min(500, limit * 2);
      waiting.splice(0, waiting.length, ...left);
      await renew(orders, answer);
      if ([...settled.values()].includes(false)) await pause(failures);
    }
  }
}

// -- into Kafka

async function intoKafka(): Promise<void> {
  const kafka = new Kafka({ brokers: env("BOOTSTRAP_SERVERS").split(","), logLevel: logLevel.ERROR });
  // The default partitioner is Java's: murmur2. With acks -1 all in-sync replicas have it.
  const producer = kafka.producer({ createPartitioner: Partitioners.DefaultPartitioner, idempotent: true });
  const count = Number(env("SEGMENTS"));
  const intervalMs = Number(env("INTERVAL_MS"));
  const beganMs = Date.now() - count * intervalMs;
  await producer.connect();
  for (let order = 0; order < Number(env("ORDERS")); order++) {
    const number = `TS-${randomUUID()}`;
    const messages = Array.from({ length: count }, (_, at) => {
      const [startMs, endMs] = [beganMs + at * intervalMs, beganMs + (at + 1) * intervalMs];
      return { key: number, value: encode({ order: number, number: at + 1, startMs, endMs, isLast: at + 1 === count }) };
    });
    await producer.send({ topic: env("TOPIC"), acks: -1, messages });
    console.log(number);
  }
  await producer.disconnect();
}

// -- against the vectors

function vectors(path: string): void {
  for (const each of JSON.parse(readFileSync(path, "utf8")).segments) {
    const { service_order_number: order, business_data_number: number, start_ms, end_ms } = each.segment;
    const key = Buffer.from(order);
    const value = encode({ order, number, startMs: start_ms, endMs: end_ms, isLast: each.segment.end_identifier });
    const partitions = Object.keys(each.partitions).map((count) => (murmur2(key) & 0x7fffffff) % Number(count));
    console.log([value.toString("hex"), murmur2(key).toString(16).padStart(8, "0"), ...partitions].join(" "));
  }
}

const [mode, file] = process.argv.slice(2);
if (mode === "http") await overHttp();
else if (mode === "kafka") await intoKafka();
else if (mode === "vectors" && file) vectors(file);
else throw new Error("usage: node client.js http | kafka | vectors FILE");
