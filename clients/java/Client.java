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
import java.net.http.*;
import java.nio.charset.StandardCharsets;
import java.nio.file.*;
import java.time.*;
import java.time.format.DateTimeFormatter;
import java.util.*;
import java.util.concurrent.ThreadLocalRandom;

public final class Client {
    /** One segment of business data: [startMs, endMs) on the server's time. */
    record Segment(String order, long number, long startMs, long endMs, boolean isLast) {}

    /** Without an answer, or with one that breaks off, status is 0. What isn't JSON has no fields. */
    record Answer(int status, JsonNode body, long wishMs) {}

    record Upload(Service service, List<Segment> segments) {}

    static final ObjectMapper JSON = new ObjectMapper();
    static final Answer NONE = new Answer(0, JSON.createObjectNode(), 0);
    static final HttpClient HTTP = HttpClient.newHttpClient(); // it follows no redirects

    static Answer post(String path, Object body, String... headers) throws InterruptedException {
        try {
            var request = HttpRequest.newBuilder(URI.create(System.getenv("BASE_URL") + path))
                    .timeout(Duration.ofSeconds(15)).headers(headers).header("Content-Type", "application/json")
                    .POST(HttpRequest.BodyPublishers.ofByteArray(JSON.writeValueAsBytes(body)));
            if (System.getenv("TOKEN_FILE") != null) { // at each request: it may be renewed
                String token = Files.readString(Path.of(System.getenv("TOKEN_FILE"))).strip();
                request.header("Authorization", "Bearer " + token);
            }
            var said = HTTP.send(request.build(), HttpResponse.BodyHandlers.ofByteArray());
            boolean isJson = said.headers().firstValue("Content-Type").orElse("").startsWith("application/json");
            return new Answer(said.statusCode(), isJson ? JSON.readTree(said.body()) : NONE.body, wishOf(said.headers()));
        } catch (IOException error) {
            return NONE;
        }
    }

    static long wishOf(HttpHeaders headers) {
        String wish = headers.firstValue("Retry-After").orElse("");
        if (wish.matches("\\d{1,9}")) return Long.parseLong(wish) * 1000;
        try { // by the server's clock: ours may be wrong
            return Duration.between(dateIn(headers, "Date"), dateIn(headers, "Retry-After")).toMillis();
        } catch (DateTimeException error) {
            return 0;
        }
    }

    static ZonedDateTime dateIn(HttpHeaders headers, String name) {
        return ZonedDateTime.parse(headers.firstValue(name).orElse(""), DateTimeFormatter.RFC_1123_DATE_TIME);
    }

    /** Waits for the server's wish, else longer and longer, with a jitter on top. */
    static void pause(int failures, long wishMs) throws InterruptedException {
        long leastMs = Math.max(wishMs, Math.min(50L << Math.min(failures, 9), 15_000));
        Thread.sleep(leastMs + ThreadLocalRandom.current().nextLong(leastMs));
    }

    /** A service that runs. Its time is the server's at the start, and the monotonic clock since. */
    static final class Service {
        final String order;
        final long baseMs, intervalMs, anchorNs;
        final List<Segment> waiting = new ArrayList<>();
        String lease;
        boolean isLeaseOver;
        long cut;

        Service() throws InterruptedException {
            String key = UUID.randomUUID().toString(); // the same for every try: no second order is opened
            Answer said = NONE;
            for (int failures = 0; said.status != 201 || !said.body.has("lease"); failures++) {
                if (failures > 0) pause(failures, said.wishMs);
                said = post("/v1/orders", Map.of(), "Idempotency-Key", key);
            }
            anchorNs = System.nanoTime();
            order = said.body.path("service_order_number").asText();
            baseMs = said.body.path("server_timestamp_ms").asLong();
            intervalMs = said.body.path("report_interval_ms").asLong();
            lease = said.body.path("lease").asText();
        }

        /** Cuts the segments that are due, each from where the one before ended. */
        void measure(long count) {
            long passedMs = (System.nanoTime() - anchorNs) / 1_000_000;
            for (; cut < count && passedMs >= (cut + 1) * intervalMs; cut++) {
                long at = baseMs + cut * intervalMs;
                waiting.add(new Segment(order, cut + 1, at, at + intervalMs, cut + 1 == count));
            }
        }

        void renew() throws InterruptedException {
            String number = URLEncoder.encode(order, StandardCharsets.UTF_8).replace("+", "%20");
            Answer said = post("/v1/orders/" + number + "/lease", Map.of(), "Lease", lease);
            isLeaseOver = said.status != 200 || !said.body.has("lease");
            if (isLeaseOver) pause(0, said.wishMs);
            else lease = said.body.get("lease").asText();
        }

        Object uploadOf(List<Segment> some) {
            var values = some.stream().map(each -> List.of(each.number, each.startMs, each.endMs, each.isLast)).toList();
            return Map.of("service_order_number", order, "lease", lease, "segments", values);
        }
    }

    /** Returns what is to be sent again; null for no gateway's answer, which says nothing about a segment. */
    static List<Segment> judge(Answer said, List<Upload> sent) {
        JsonNode verdicts = said.body.path("uploads");
        if (said.status != 200 || verdicts.size() != sent.size()) return null;
        List<Segment> again = new ArrayList<>();
        for (int at = 0; at < sent.size(); at++) {
            JsonNode verdict = verdicts.path(at);
            Service service = sent.get(at).service;
            List<Segment> segments = sent.get(at).segments;
            boolean isAbout = verdict.path("service_order_number").asText().equals(service.order);
            if (!isAbout || verdict.path("count").asInt(-1) != segments.size()) return null;
            for (JsonNode error : verdict.path("errors")) {
                int index = error.path("index").asInt(-1);
                if (index < 0 || index >= segments.size()) return null;
                boolean isLease = error.path("reason").asText().startsWith("LEASE_");
                service.isLeaseOver |= isLease;
                if (isLease || !error.path("final").asBoolean()) again.add(segments.get(index));
                else System.err.println(segments.get(index) + " was refused: " + error.path("reason").asText());
            }
        }
        return again;
    }

    static void overHttp(long orderCount, long segmentCount) throws InterruptedException {
        List<Service> services = new ArrayList<>();
        while (services.size() < orderCount) services.add(new Service());
        for (int limit = 500, failures = 0; ; ) {
            List<Upload> sent = new ArrayList<>();
            int count = 0, pending = 0;
            for (Service each : services) {
                each.measure(segmentCount);
                if (each.isLeaseOver) each.renew();
                pending += each.waiting.size();
                int some = Math.min(each.waiting.size(), limit - count);
                if (some > 0) sent.add(new Upload(each, List.copyOf(each.waiting.subList(0, some))));
                count += some;
            }
            if (count == 0) {
                if (services.stream().allMatch(each -> each.cut == segmentCount)) return;
                Thread.sleep(10);
                continue;
            }
            var uploads = sent.stream().map(each -> each.service.uploadOf(each.segments)).toList();
            var body = Map.of("uploads", uploads, "client", Map.of("name", "java", "pending", pending));
            Answer said = post("/v1/segments", body, "Accept", "application/json");
            List<Segment> again = judge(said, sent);
            if (said.status == 413 && count > 1) {
                limit = count / 2; // whoever says so
            } else if (again == null) {
                pause(failures++, said.wishMs);
            } else {
                for (Upload each : sent) each.service.waiting.subList(0, each.segments.size()).retainAll(again);
                failures = again.size() < count ? 0 : failures + 1;
                limit = Math.min(500, limit * 2);
                if (!again.isEmpty()) pause(failures, 0);
            }
        }
    }

    static long number(String variable) {
        return Long.parseLong(System.getenv(variable));
    }

    public static void main(String[] arguments) throws Exception {
        switch (arguments.length == 0 ? "" : arguments[0]) {
            case "http" -> overHttp(number("ORDERS"), number("SEGMENTS"));
            case "kafka" -> Kafka.write(number("ORDERS"), number("SEGMENTS"), number("INTERVAL_MS"));
            case "vectors" -> Kafka.vectors(Path.of(arguments[1]));
            default -> throw new IllegalArgumentException("usage: Client http | kafka | vectors FILE");
        }
    }
}
