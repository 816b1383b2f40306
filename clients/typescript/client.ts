// A client of Durabill over HTTP, in TypeScript, written from docs/http.md and docs/clients.md alone.
//
//     node client.js http   BASE_URL, ORDERS, SEGMENTS, INTERVAL_MS, TOKEN_FILE: runs services, and reports them
//     node client.js kafka, node client.js vectors FILE: see kafka.ts
//
// It keeps unsent segments in memory; a client that may be killed keeps them on disk.
import { randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { env, intoKafka, vectors, type Segment } from "./kafka.js";

// `anchorMs` is the monotonic clock at `baseMs`: the wall clock may be wrong.
type Service = { order: string; lease?: string; baseMs: number; anchorMs: number; intervalMs: number; cut: number };
type Answer = { status: number; body: any; wishMs: number };

// Waits for the server's wish, else longer and longer, with a jitter on top.
const pause = (failures: number, wishMs = 0): Promise<void> =>
  sleep(Math.max(wishMs, Math.min(50 * 2 ** failures, 15_000)) * (1 + Math.random()));

function wishOf(headers: Headers): number {
  const said = headers.get("retry-after") ?? "";
  if (/^\d+$/.test(said)) return Number(said) * 1000;
  const nowMs = Date.parse(headers.get("date") ?? ""); // by the server's clock: ours may be wrong
  return Math.max(Date.parse(said) - nowMs || 0, 0);
}

// Without an answer, or with one that breaks off, `status` is 0. Only JSON has a body.
async function post(path: string, body: unknown, headers: Record<string, string> = {}): Promise<Answer> {
  const token = env("TOKEN_FILE") && readFileSync(env("TOKEN_FILE"), "utf8").trim(); // it may be renewed
  try {
    const answer = await fetch(env("BASE_URL") + path, {
      method: "POST",
      body: JSON.stringify(body),
      headers: { "content-type": "application/json", ...(token && { authorization: `Bearer ${token}` }), ...headers },
      redirect: "manual",
      signal: AbortSignal.timeout(15_000),
    });
    const text = await answer.text();
    const isJson = answer.headers.get("content-type")?.startsWith("application/json");
    return { status: answer.status, body: isJson ? JSON.parse(text) : null, wishMs: wishOf(answer.headers) };
  } catch {
    return { status: 0, body: null, wishMs: 0 };
  }
}

async function start(): Promise<Service> {
  const key = randomUUID(); // the same for every try: a lost answer opens no second order
  for (let failures = 0; ; failures++) {
    const { status, body, wishMs } = await post("/v1/orders", {}, { "idempotency-key": key });
    const anchorMs = performance.now();
    if (status === 201 && typeof body?.service_order_number === "string") {
      const { service_order_number: order, server_timestamp_ms: baseMs, report_interval_ms: intervalMs, lease } = body;
      return { order, lease, baseMs, anchorMs, intervalMs, cut: 0 };
    }
    await pause(failures, wishMs);
  }
}

// Cuts the segments that are due, each from where the one before ended.
function measure(service: Service, count: number): Segment[] {
  const cut: Segment[] = [];
  const { order, baseMs, anchorMs, intervalMs } = service;
  while (service.cut < count && performance.now() - anchorMs >= (service.cut + 1) * intervalMs) {
    const startMs = baseMs + service.cut++ * intervalMs;
    cut.push({ order, number: service.cut, startMs, endMs: startMs + intervalMs, isLast: service.cut === count });
  }
  return cut;
}

// Returns what is to be sent again, and the orders whose lease is over; null for what is no gateway's answer.
function judged({ status, body }: Answer, sent: Segment[][]): { kept: Segment[]; over: Set<string> } | null {
  if (status !== 200 || !Array.isArray(body?.uploads) || body.uploads.length !== sent.length) return null;
  const [kept, over]: [Segment[], Set<string>] = [[], new Set()];
  for (const [at, segments] of sent.entries()) {
    const { service_order_number, count, errors = [] } = body.uploads[at] ?? {};
    if (service_order_number !== segments[0]!.order || count !== segments.length) return null;
    for (const { index, reason, final } of errors) {
      const segment = segments[index];
      if (!segment) return null;
      const isLease = String(reason).startsWith("LEASE_");
      if (isLease) over.add(segment.order);
      if (isLease || !final) kept.push(segment);
      else console.error(`${segment.order}/${segment.number} was refused: ${reason}`);
    }
  }
  return { kept, over };
}

async function renew(service: Service): Promise<void> {
  const path = `/v1/orders/${encodeURIComponent(service.order)}/lease`;
  const { status, body, wishMs } = await post(path, {}, { lease: service.lease ?? "" });
  if (status === 200 && body?.lease) service.lease = body.lease;
  else await pause(0, wishMs);
}

function body(sent: Segment[][], services: Map<string, Service>, pending: number): unknown {
  const uploads = sent.map((segments) => ({
    service_order_number: segments[0]!.order,
    lease: services.get(segments[0]!.order)!.lease,
    segments: segments.map(({ number, startMs, endMs, isLast }) => [number, startMs, endMs, isLast]),
  }));
  return { uploads, client: { name: "typescript", pending } };
}

async function overHttp(count: number): Promise<void> {
  const services = new Map<string, Service>();
  for (let at = 0; at < Number(env("ORDERS")); at++) {
    const service = await start();
    services.set(service.order, service);
  }
  let waiting: Segment[] = [];
  for (let limit = 500, failures = 0; ; ) {
    waiting.push(...[...services.values()].flatMap((service) => measure(service, count)));
    if (waiting.length === 0) {
      if ([...services.values()].every((service) => service.cut === count)) return;
      await sleep(10);
      continue;
    }
    const batch = waiting.slice(0, limit);
    const orders = [...new Set(batch.map((each) => each.order))];
    const sent = orders.map((order) => batch.filter((each) => each.order === order));
    const answer = await post("/v1/segments", body(sent, services, waiting.length));
    const verdict = judged(answer, sent);
    if (answer.status === 413 && batch.length > 1) {
      limit = Math.floor(batch.length / 2); // whoever says so
    } else if (verdict === null) {
      await pause(failures++, answer.wishMs); // it says nothing about a segment
    } else {
      failures = verdict.kept.length < batch.length ? 0 : failures + 1;
      limit = Math.min(500, limit * 2);
      waiting = [...verdict.kept, ...waiting.slice(batch.length)];
      for (const order of verdict.over) await renew(services.get(order)!);
      if (verdict.kept.length) await pause(failures);
    }
  }
}

const [mode, file] = process.argv.slice(2);
if (mode === "http") await overHttp(Number(env("SEGMENTS")));
else if (mode === "kafka") await intoKafka();
else if (mode === "vectors" && file) vectors(file);
else throw new Error("usage: node client.js http | kafka | vectors FILE");
