// A client of Durabill into Kafka, in Java 17, written from docs/contract.md alone.
//
//     java Client kafka      BOOTSTRAP_SERVERS, TOPIC, ORDERS, SEGMENTS, INTERVAL_MS: writes whole orders
//     java Client vectors F  encodes the segments of vectors/segments.json

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HexFormat;
import java.util.Properties;
import java.util.TreeSet;
import java.util.UUID;
import java.util.concurrent.Future;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.serialization.ByteArraySerializer;

final class Kafka {
    static void putLong(ByteArrayOutputStream out, long value) {
        long rest = value << 1 ^ value >> 63; // zigzag
        for (; (rest & ~0x7FL) != 0; rest >>>= 7) {
            out.write((int) (rest & 0x7F | 0x80));
        }
        out.write((int) rest);
    }

    static byte[] encode(Client.Segment each) {
        byte[] key = each.order().getBytes(StandardCharsets.UTF_8);
        ByteArrayOutputStream out = new ByteArrayOutputStream();
        out.writeBytes(HexFormat.of().parseHex("c301ba627070e049bb87"));
        putLong(out, key.length);
        out.writeBytes(key);
        putLong(out, each.number());
        putLong(out, each.startMs());
        putLong(out, each.endMs());
        out.write(each.isLast() ? 1 : 0);
        return out.toByteArray();
    }

    static int murmur2(byte[] key) {
        final int m = 0x5bd1e995;
        int h = 0x9747b28c ^ key.length;
        int at = 0;
        for (; at + 4 <= key.length; at += 4) {
            int k = 0;
            for (int each = 3; each >= 0; each--) {
                k = k << 8 | key[at + each] & 0xFF;
            }
            k *= m;
            k = (k ^ k >>> 24) * m;
            h = h * m ^ k;
        }
        if (at < key.length) {
            for (int each = key.length - 1; each >= at; each--) {
                h ^= (key[each] & 0xFF) << 8 * (each - at);
            }
            h *= m;
        }
        h = (h ^ h >>> 13) * m;
        return h ^ h >>> 15;
    }

    static void write(long orderCount, long segmentCount, long intervalMs) throws Exception {
        Properties settings = new Properties();
        settings.put("bootstrap.servers", System.getenv("BOOTSTRAP_SERVERS"));
        settings.put("acks", "all"); // the default partitioner is what the contract asks for: murmur2
        ByteArraySerializer bytes = new ByteArraySerializer();
        long beganMs = System.currentTimeMillis() - segmentCount * intervalMs;
        try (KafkaProducer<byte[], byte[]> producer = new KafkaProducer<>(settings, bytes, bytes)) {
            for (long at = 0; at < orderCount; at++) {
                String order = "JAVA-" + UUID.randomUUID();
                var sent = new ArrayList<Future<?>>();
                for (long number = 1; number <= segmentCount; number++) {
                    long startMs = beganMs + (number - 1) * intervalMs;
                    Client.Segment each = new Client.Segment(order, number, startMs, startMs + intervalMs, number == segmentCount);
                    byte[] key = order.getBytes(StandardCharsets.UTF_8);
                    sent.add(producer.send(new ProducerRecord<>(System.getenv("TOPIC"), key, encode(each))));
                }
                producer.flush();
                for (var each : sent) {
                    each.get(); // throws where Kafka doesn't have it
                }
                System.out.println(order);
            }
        }
    }

    static void vectors(Path path) throws IOException {
        for (JsonNode each : new ObjectMapper().readTree(path.toFile()).get("segments")) {
            JsonNode told = each.get("segment");
            Client.Segment segment = new Client.Segment(told.get("service_order_number").asText(),
                    told.get("business_data_number").asLong(), told.get("start_ms").asLong(),
                    told.get("end_ms").asLong(), told.get("end_identifier").asBoolean());
            int hash = murmur2(segment.order().getBytes(StandardCharsets.UTF_8));
            StringBuilder line = new StringBuilder(HexFormat.of().formatHex(encode(segment)));
            line.append(' ').append(HexFormat.of().toHexDigits(hash));
            TreeSet<Integer> counts = new TreeSet<>();
            each.get("partitions").fieldNames().forEachRemaining(count -> counts.add(Integer.valueOf(count)));
            counts.forEach(count -> line.append(' ').append((hash & 0x7fffffff) % count));
            System.out.println(line);
        }
    }
}
