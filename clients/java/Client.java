// A client of Durabill in Java 17, written from docs/contract.md and docs/http.md alone.
//
//     java Client http       BASE_URL, ORDERS, SEGMENTS, INTERVAL_MS, TOKEN_FILE: over HTTP
//     java Client kafka      BOOTSTRAP_SERVERS, TOPIC, ORDERS, SEGMENTS, INTERVAL_MS: into Kafka
//     java Client vectors F  encodes the segments of vectors/segments.json
//
// It keeps unsent segments in memory; a client that may be killed keeps them on disk. Over HTTP it
// needs the JDK and Jackson; into Kafka kafka-clients besides.

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.net.URI;
import java.net.URLEncoder;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.time.Instant;
import java.time.ZonedDateTime;
import java.time.format.DateTimeFormatter;
import java.time.format.DateTimeParseException;
import java.util.ArrayList;
import java.util.HexFormat;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Properties;
import java.util.TreeSet;
import java.util.UUID;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.atomic.AtomicInteger;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.serialization.ByteArraySerializer;

public final class Client {
    /** One segment of business data: [startMs, endMs) on the server's time. */
    record Segment(String order, long number, long startMs, long endMs, boolean isLast) {}

    record Order(String number, long baseMs, long intervalMs, long anchorNs) {}

    /** Without an answer, or with one that breaks off, status is 0. Only JSON has a body. */
    record Answer(int status, JsonNode body, Optional<Duration> wish) {}

    static final ObjectMapper JSON = new ObjectMapper();

    // -- the contract in bytes: Avro's single-object encoding, and the partition of a key

    static void putLong(ByteArrayOutputStream out, long value) {
        long rest = value << 1 ^ value >> 63; // zigzag
        for (; (rest & ~0x7FL) != 0; rest >>>= 7) {
            out.write((int) (rest & 0x7F | 0x80));
        }
        out.write((int) rest);
    }

    static byte[] encode(Segment each) {
        byte[] key = each.order.getBytes(StandardCharsets.UTF_8);
        ByteArrayOutputStream out = new ByteArrayOutputStream();
        out.writeBytes(HexFormat.of().parseHex("c301ba627070e049bb87"));
        putLong(out, key.length);
        out.writeBytes(key);
        putLong(out, each.number);
        putLong(out, each.startMs);
        putLong(out, each.endMs);
        out.write(each.isLast ? 1 : 0);
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

    // -- over HTTP

    static final HttpClient HTTP =
            HttpClient.newBuilder()
                    .version(HttpClient.Version.HTTP_1_1)
                    .followRedirects(HttpClient.Redirect.NEVER)
                    .connectTimeout(Duration.ofSeconds(5))
                    .build();

    static Answer post(String path, JsonNode body, String... headers) throws InterruptedException {
        try {
            HttpRequest.Builder request =
                    HttpRequest.newBuilder(URI.create(System.getenv("BASE_URL") + path))
                            .timeout(Duration.ofSeconds(15))
                            .header("Content-Type", "application/json")
                            .POST(HttpRequest.BodyPublishers.ofByteArray(JSON.writeValueAsBytes(body)));
            String file = System.getenv("TOKEN_FILE");
            if (file != null) { // at each request: it may be renewed
                request.header("Authorization", "Bearer " + Files.readString(Path.of(file)).strip());
            }
            if (headers.length > 0) {
                request.headers(headers);
            }
            HttpResponse<byte[]> said = HTTP.send(request.build(), HttpResponse.BodyHandlers.ofByteArray());
            String kind = said.headers().firstValue("Content-Type").orElse("").split(";")[0].strip();
            boolean isJson = kind.matches("application/([\\w.-]+\\+)?json");
            return new Answer(said.statusCode(), isJson ? JSON.readTree(said.body()) : null, wishOf(said));
        } catch (IOException error) {
            return new Answer(0, null, Optional.empty());
        }
    }

    static Optional<Duration> wishOf(HttpResponse<?> said) {
        String wish = said.headers().firstValue("Retry-After").orElse("");
        if (wish.matches("\\d{1,9}")) {
            return Optional.of(Duration.ofSeconds(Long.parseLong(wish)));
        }
        try { // by the server's clock: ours may be wrong
            Instant until = dateOf(wish);
            Duration left = Duration.between(said.headers().firstValue("Date").map(Client::dateOf).orElse(Instant.now()), until);
            return Optional.of(left.isNegative() ? Duration.ZERO : left);
        } catch (DateTimeParseException error) {
            return Optional.empty();
        }
    }

    static Instant dateOf(String text) {
        return ZonedDateTime.parse(text, DateTimeFormatter.RFC_1123_DATE_TIME).toInstant();
    }

    /** The server's wish with a jitter on top, else longer and longer: never less than the wish. */
    static void pause(int failures, Optional<Duration> wish) throws InterruptedException {
        long fullMs = Math.min(100L << Math.min(failures, 20), 30_000);
        long wishMs = wish.map(Duration::toMillis).orElse(fullMs / 2);
        long spreadMs = wish.isPresent() ? Math.max(fullMs, wishMs / 2) : fullMs / 2;
        Thread.sleep(wishMs + ThreadLocalRandom.current().nextLong(spreadMs));
    }

    static Order start(Map<String, String> leases) throws InterruptedException {
        String key = UUID.randomUUID().toString(); // the same for every try: no second order is opened
        for (int failures = 0; ; failures++) {
            Answer said = post("/v1/orders", JSON.createObjectNode(), "Idempotency-Key", key);
            long anchorNs = System.nanoTime();
            if (said.status == 201 && said.body != null && said.body.path("service_order_number").isTextual()) {
                String number = said.body.get("service_order_number").asText();
                if (said.body.hasNonNull("lease")) {
                    leases.put(number, said.body.get("lease").asText());
                }
                long baseMs = said.body.path("server_timestamp_ms").asLong();
                return new Order(number, baseMs, said.body.path("report_interval_ms").asLong(), anchorNs);
            }
            pause(failures, said.wish);
        }
    }

    /** Cuts a segment every interval, by the monotonic clock alone: the wall clock may be wrong. */
    static void measure(Order order, long count, List<Segment> waiting) throws InterruptedException {
        long at = order.baseMs;
        for (long number = 1; number <= count; number++) {
            long dueMs = number * order.intervalMs;
            for (long ms = sinceMs(order); ms < dueMs; ms = sinceMs(order)) {
                Thread.sleep(dueMs - ms);
            }
            long end = number == count ? order.baseMs + sinceMs(order) : at + order.intervalMs;
            synchronized (waiting) {
                waiting.add(new Segment(order.number, number, at, end, number == count));
            }
            at = end;
        }
    }

    static long sinceMs(Order order) {
        return (System.nanoTime() - order.anchorNs) / 1_000_000;
    }

    static ObjectNode body(Map<String, List<Segment>> sent, Map<String, String> leases, int pending) {
        ObjectNode body = JSON.createObjectNode();
        for (var upload : sent.entrySet()) {
            ObjectNode node = body.withArray("/uploads").addObject();
            node.put("service_order_number", upload.getKey());
            if (leases.containsKey(upload.getKey())) {
                node.put("lease", leases.get(upload.getKey()));
            }
            for (Segment each : upload.getValue()) {
                node.withArray("/segments").addObject()
                        .put("business_data_number", each.number)
                        .put("start_ms", each.startMs)
                        .put("end_ms", each.endMs)
                        .put("end_identifier", each.isLast);
            }
        }
        body.putObject("client").put("name", "java").put("pending", pending);
        return body;
    }

    /** Says of each segment sent whether it is settled; null for what is no gateway's answer. */
    static Map<Segment, Boolean> judged(Answer said, Map<String, List<Segment>> sent) {
        if (said.status != 200 || said.body == null || said.body.path("uploads").size() != sent.size()) {
            return null;
        }
        Map<Segment, Boolean> settled = new LinkedHashMap<>();
        int at = 0;
        for (var upload : sent.entrySet()) {
            JsonNode answer = said.body.get("uploads").get(at++);
            List<Segment> segments = upload.getValue();
            if (!answer.path("service_order_number").asText().equals(upload.getKey())
                    || answer.path("count").asInt(-1) != segments.size()) {
                return null;
            }
            segments.forEach(each -> settled.put(each, true));
            for (JsonNode error : answer.path("errors")) {
                int index = error.path("index").asInt(-1);
                if (index < 0 || index >= segments.size()
                        || segments.get(index).number != error.path("business_data_number").asLong()) {
                    return null;
                }
                boolean isFinal = error.path("final").asBoolean();
                settled.put(segments.get(index), isFinal);
                if (isFinal) {
                    System.err.println(segments.get(index) + " was refused: " + error.path("reason").asText());
                }
            }
        }
        return settled;
    }

    static void renew(Map<String, String> leases, JsonNode uploads) throws InterruptedException {
        for (JsonNode upload : uploads) {
            boolean isOver = false;
            for (JsonNode error : upload.path("errors")) {
                isOver |= error.path("reason").asText().startsWith("LEASE_");
            }
            if (isOver) {
                String number = upload.get("service_order_number").asText();
                String path = "/v1/orders/" + URLEncoder.encode(number, StandardCharsets.UTF_8).replace("+", "%20");
                Answer said = post(path + "/lease", JSON.createObjectNode(), "Lease", leases.getOrDefault(number, ""));
                if (said.status / 100 == 2 && said.body != null && said.body.hasNonNull("lease")) {
                    leases.put(number, said.body.get("lease").asText());
                }
            }
        }
    }

    static void overHttp(int orderCount, long segmentCount) throws InterruptedException {
        Map<String, String> leases = new ConcurrentHashMap<>();
        List<Segment> waiting = new ArrayList<>(); // guarded by itself
        AtomicInteger measuring = new AtomicInteger(orderCount);
        for (int at = 0; at < orderCount; at++) {
            Order order = start(leases);
            new Thread(() -> {
                try {
                    measure(order, segmentCount, waiting);
                    measuring.decrementAndGet();
                } catch (InterruptedException error) {
                    Thread.currentThread().interrupt();
                }
            }).start();
        }
        for (int limit = 500, failures = 0; ; ) {
            boolean isOver = measuring.get() == 0;
            Map<String, List<Segment>> sent = new LinkedHashMap<>();
            int pending, batch;
            synchronized (waiting) {
                pending = waiting.size();
                batch = Math.min(limit, pending);
                for (Segment each : waiting.subList(0, batch)) {
                    sent.computeIfAbsent(each.order, order -> new ArrayList<>()).add(each);
                }
            }
            if (batch == 0) {
                if (isOver) {
                    return;
                }
                Thread.sleep(10);
                continue;
            }
            Answer said = post("/v1/segments", body(sent, leases, pending));
            Map<Segment, Boolean> settled = judged(said, sent);
            if (said.status == 413 && limit > 1) { // whoever says so
                limit = Math.max(1, batch / 2);
            } else if (settled == null) {
                pause(failures++, said.wish);
            } else {
                boolean hasProgress;
                synchronized (waiting) {
                    hasProgress = waiting.removeIf(each -> settled.getOrDefault(each, false));
                }
                failures = hasProgress ? 0 : failures + 1;
                limit = Math.min(500, limit * 2);
                renew(leases, said.body.get("uploads"));
                if (settled.containsValue(false)) {
                    pause(failures, Optional.empty());
                }
            }
        }
    }

    // -- into Kafka

    static void intoKafka(int orderCount, int segmentCount, long intervalMs) throws Exception {
        Properties settings = new Properties();
        settings.put("bootstrap.servers", System.getenv("BOOTSTRAP_SERVERS"));
        settings.put("acks", "all"); // the default partitioner is what the contract asks for: murmur2
        ByteArraySerializer bytes = new ByteArraySerializer();
        long beganMs = System.currentTimeMillis() - segmentCount * intervalMs;
        try (KafkaProducer<byte[], byte[]> producer = new KafkaProducer<>(settings, bytes, bytes)) {
            for (int at = 0; at < orderCount; at++) {
                String order = "JAVA-" + UUID.randomUUID();
                var sent = new ArrayList<java.util.concurrent.Future<?>>();
                for (int number = 1; number <= segmentCount; number++) {
                    long startMs = beganMs + (number - 1) * intervalMs;
                    Segment each = new Segment(order, number, startMs, startMs + intervalMs, number == segmentCount);
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

    // -- against the vectors

    static void vectors(Path path) throws IOException {
        for (JsonNode each : JSON.readTree(path.toFile()).get("segments")) {
            JsonNode told = each.get("segment");
            Segment segment = new Segment(told.get("service_order_number").asText(),
                    told.get("business_data_number").asLong(), told.get("start_ms").asLong(),
                    told.get("end_ms").asLong(), told.get("end_identifier").asBoolean());
            int hash = murmur2(segment.order.getBytes(StandardCharsets.UTF_8));
            StringBuilder line = new StringBuilder(HexFormat.of().formatHex(encode(segment)));
            line.append(' ').append(HexFormat.of().toHexDigits(hash));
            TreeSet<Integer> counts = new TreeSet<>();
            each.get("partitions").fieldNames().forEachRemaining(count -> counts.add(Integer.valueOf(count)));
            counts.forEach(count -> line.append(' ').append((hash & 0x7fffffff) % count));
            System.out.println(line);
        }
    }

    public static void main(String[] arguments) throws Exception {
        String mode = arguments.length == 0 ? "" : arguments[0];
        if (mode.equals("http")) {
            overHttp(Integer.parseInt(System.getenv("ORDERS")), Long.parseLong(System.getenv("SEGMENTS")));
        } else if (mode.equals("kafka")) {
            intoKafka(Integer.parseInt(System.getenv("ORDERS")), Integer.parseInt(System.getenv("SEGMENTS")),
                    Long.parseLong(System.getenv("INTERVAL_MS")));
        } else if (mode.equals("vectors") && arguments.length == 2) {
            vectors(Path.of(arguments[1]));
        } else {
            throw new IllegalArgumentException("usage: Client http | kafka | vectors FILE");
        }
    }
}
