// A client of Durabill into Kafka, in TypeScript, written from docs/contract.md alone.
//
//     node client.js kafka      BOOTSTRAP_SERVERS, TOPIC, ORDERS, SEGMENTS, INTERVAL_MS: writes whole orders
//     node client.js vectors F  encodes the segments of vectors/segments.json
import { randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import { Kafka, Partitioners, logLevel } from "kafkajs";

export type Segment = { order: string; number: number; startMs: number; endMs: number; isLast: boolean };
export const env = (name: string): string => process.env[name] ?? "";

// Avro's zigzag, of numbers from 0 on.
function long(value: number): number[] {
  let rest = BigInt(value) * 2n;
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

export async function intoKafka(): Promise<void> {
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

export function vectors(path: string): void {
  for (const each of JSON.parse(readFileSync(path, "utf8")).segments) {
    const { service_order_number: order, business_data_number: number, start_ms, end_ms } = each.segment;
    const key = Buffer.from(order);
    const value = encode({ order, number, startMs: start_ms, endMs: end_ms, isLast: each.segment.end_identifier });
    const partitions = Object.keys(each.partitions).map((count) => (murmur2(key) & 0x7fffffff) % Number(count));
    console.log([value.toString("hex"), murmur2(key).toString(16).padStart(8, "0"), ...partitions].join(" "));
  }
}
