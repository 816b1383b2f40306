// A client of Durabill over HTTP, in Java 17, written from docs/http.md and docs/clients.md alone.
//
//     java Client http   BASE_URL, ORDERS, SEGMENTS, INTERVAL_MS, TOKEN_FILE: runs services, and reports them
//     java Client kafka, java Client vectors FILE: see Kafka.java
//
// It keeps unsent segments in memory; a client that may be killed keeps them on disk. It needs the JDK and Jackson.

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
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
import java.time.ZonedDateTime;
import java.time.format.DateTimeFormatter;
import java.time.format.DateTimeParseException;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.UUID;
import java.util.concurrent.ThreadLocalRandom;

public final class Client {
    /** One segment of business data: [startMs, endMs) on the server's time. */
    record Segment(String order, long number, long startMs, long endMs, boolean isLast) {}

    /** Without an answer, or with one that breaks off, status is 0. What isn't JSON has no fields. */
    record Answer(int status, JsonNode body, long wishMs) {}

    static final ObjectMapper JSON = new ObjectMapper();
    static final Answer NONE = new Answer(0, JSON.createObjectNode(), 0);
    static final HttpClient HTTP = HttpClient.newBuilder().connectTimeout(Duration.ofSeconds(10)).build();

    static Answer post(String path, Object body, String... header) throws InterruptedException {
        try {
            HttpRequest.Builder request = HttpRequest.newBuilder(URI.create(System.getenv("BASE_URL") + path))
                    .timeout(Duration.ofSeconds(15))
                    .header("Content-Type", "application/json")
                    .headers(header)
                    .POST(HttpRequest.BodyPublishers.ofByteArray(JSON.writeValueAsBytes(body)));
            if (System.getenv("TOKEN_FILE") != null) { // at each request: it may be renewed
                String token = Files.readString(Path.of(System.getenv("TOKEN_FILE"))).strip();
                request.header("Authorization", "Bearer " + token);
            }
            HttpResponse<byte[]> said = HTTP.send(request.build(), HttpResponse.BodyHandlers.ofByteArray());
            boolean isJson = said.headers().firstValue("Content-Type").orElse("").startsWith("application/json");
            return new Answer(said.statusCode(), isJson ? JSON.readTree(said.body()) : NONE.body, wishOf(said));
        } catch (IOException error) {
            return NONE;
        }
    }

    static long wishOf(HttpResponse<?> said) {
        String wish = said.headers().firstValue("Retry-After").orElse("");
        if (wish.matches("\\d{1,9}")) {
            return Long.parseLong(wish) * 1000;
        }
        try { // by the server's clock: ours may be wrong
            ZonedDateTime now = dateOf(said.headers().firstValue("Date").orElse(""));
            return Math.max(Duration.between(now, dateOf(wish)).toMillis(), 0);
        } catch (DateTimeParseException error) {
            return 0;
        }
    }

    static ZonedDateTime dateOf(String text) {
        return ZonedDateTime.parse(text, DateTimeFormatter.RFC_1123_DATE_TIME);
    }

    /** Waits for the server's wish, else longer and longer, with a jitter on top. */
    static void pause(int failures, long wishMs) throws InterruptedException {
        long leastMs = Math.max(wishMs, Math.min(50L << Math.min(failures, 9), 15_000));
        Thread.sleep(leastMs + ThreadLocalRandom.current().nextLong(leastMs));
    }

    /** A service that runs. Its time is the server's at the start, and the monotonic clock since. */
    static final class Service {
        final String order;
        final long baseMs, intervalMs, anchorNs = System.nanoTime();
        String lease;
        long cut;

        Service(JsonNode grant) {
            order = grant.get("service_order_number").asText();
            baseMs = grant.path("server_timestamp_ms").asLong();
            intervalMs = grant.path("report_interval_ms").asLong();
            lease = grant.path("lease").asText();
        }

        static Service start() throws InterruptedException {
            String key = UUID.randomUUID().toString(); // the same for every try: no second order is opened
            for (int failures = 0; ; failures++) {
                Answer said = post("/v1/orders", Map.of(), "Idempotency-Key", key);
                if (said.status == 201 && said.body.has("service_order_number")) {
                    return new Service(said.body);
                }
                pause(failures, said.wishMs);
            }
        }

        /** Cuts the segments that are due, each from where the one before ended. */
        void measure(long count, List<Segment> waiting) {
            long passedMs = (System.nanoTime() - anchorNs) / 1_000_000;
            for (; cut < count && passedMs >= (cut + 1) * intervalMs; cut++) {
                long at = baseMs + cut * intervalMs;
                waiting.add(new Segment(order, cut + 1, at, at + intervalMs, cut + 1 == count));
            }
        }

        void renew() throws InterruptedException {
            String path = "/v1/orders/" + URLEncoder.encode(order, StandardCharsets.UTF_8).replace("+", "%20") + "/lease";
            Answer said = post(path, Map.of(), "Lease", lease);
            if (said.status == 200 && said.body.has("lease")) {
                lease = said.body.get("lease").asText();
            }
        }
    }

    static Map<String, Object> body(Map<Service, List<Segment>> sent, int pending) {
        List<Object> uploads = new ArrayList<>();
        sent.forEach((service, segments) -> uploads.add(Map.of(
                "service_order_number", service.order,
                "lease", service.lease,
                "segments", segments.stream()
                        .map(each -> List.of(each.number, each.startMs, each.endMs, each.isLast))
                        .toList())));
        return Map.of("uploads", uploads, "client", Map.of("name", "java", "pending", pending));
    }

    /** Adds what is to be sent again to kept, and services whose lease is over to over; false for no gateway's answer. */
    static boolean judge(Answer said, Map<Service, List<Segment>> sent, List<Segment> kept, List<Service> over) {
        if (said.status != 200 || said.body.path("uploads").size() != sent.size()) {
            return false;
        }
        int at = 0;
        for (var upload : sent.entrySet()) {
            JsonNode verdict = said.body.get("uploads").get(at++);
            boolean isAbout = verdict.path("service_order_number").asText().equals(upload.getKey().order);
            if (!isAbout || verdict.path("count").asInt(-1) != upload.getValue().size()) {
                return false;
            }
            for (JsonNode error : verdict.path("errors")) {
                int index = error.path("index").asInt(-1);
                if (index < 0 || index >= upload.getValue().size()) {
                    return false;
                }
                boolean isLease = error.path("reason").asText().startsWith("LEASE_");
                if (isLease && !over.contains(upload.getKey())) {
                    over.add(upload.getKey());
                }
                if (isLease || !error.path("final").asBoolean()) {
                    kept.add(upload.getValue().get(index));
                } else {
                    System.err.println(upload.getValue().get(index) + " was refused: " + error.path("reason").asText());
                }
            }
        }
        return true;
    }

    static void overHttp(int orderCount, long segmentCount) throws InterruptedException {
        Map<String, Service> services = new LinkedHashMap<>();
        while (services.size() < orderCount) {
            Service service = Service.start();
            services.put(service.order, service);
        }
        List<Segment> waiting = new ArrayList<>();
        for (int limit = 500, failures = 0; ; ) {
            services.values().forEach(each -> each.measure(segmentCount, waiting));
            if (waiting.isEmpty() && services.values().stream().allMatch(each -> each.cut == segmentCount)) {
                return;
            } else if (waiting.isEmpty()) {
                Thread.sleep(10);
                continue;
            }
            List<Segment> batch = waiting.subList(0, Math.min(limit, waiting.size()));
            Map<Service, List<Segment>> sent = new LinkedHashMap<>();
            for (Segment each : batch) {
                sent.computeIfAbsent(services.get(each.order), order -> new ArrayList<>()).add(each);
            }
            List<Segment> kept = new ArrayList<>();
            List<Service> over = new ArrayList<>();
            Answer said = post("/v1/segments", body(sent, waiting.size()), "Accept", "application/json");
            if (said.status == 413 && batch.size() > 1) {
                limit = batch.size() / 2; // whoever says so
            } else if (!judge(said, sent, kept, over)) {
                pause(failures++, said.wishMs); // it says nothing about a segment
            } else {
                failures = kept.size() < batch.size() ? 0 : failures + 1;
                limit = Math.min(500, limit * 2);
                batch.clear(); // out of what waits
                waiting.addAll(0, kept);
                for (Service each : over) {
                    each.renew();
                }
                if (!kept.isEmpty()) {
                    pause(failures, 0);
                }
            }
        }
    }

    public static void main(String[] arguments) throws Exception {
        String mode = arguments.length == 0 ? "" : arguments[0];
        if (mode.equals("http")) {
            overHttp(Integer.parseInt(System.getenv("ORDERS")), Long.parseLong(System.getenv("SEGMENTS")));
        } else if (mode.equals("kafka")) {
            Kafka.write(Integer.parseInt(System.getenv("ORDERS")), Integer.parseInt(System.getenv("SEGMENTS")),
                    Long.parseLong(System.getenv("INTERVAL_MS")));
        } else if (mode.equals("vectors") && arguments.length == 2) {
            Kafka.vectors(Path.of(arguments[1]));
        } else {
            throw new IllegalArgumentException("usage: Client http | kafka | vectors FILE");
        }
    }
}
