import org.apache.kafka.common.serialization.Deserializer;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.common.serialization.Serializer;

import java.io.ByteArrayOutputStream;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.HexFormat;

/**
 * What is known of an order, and its total: the same job as `peer_job.py`. Left out, in favour of this
 * peer: deadlines, dead letters, the correction window.
 */
final class OrderState {
    private Pieces times = new Pieces();
    private Pieces numbers = new Pieces();
    private long accepted;
    private long lengthMs;
    private long endNumber;
    private long startedMs = Long.MAX_VALUE;
    private long endedMs;
    private int revision;
    private boolean settled;
    private String digest = "";

    /** Takes a segment in; tells whether the order is settled by it. */
    boolean fold(Segment segment) {
        accepted++;
        lengthMs += segment.endMs() - segment.startMs();
        startedMs = Math.min(startedMs, segment.startMs());
        endedMs = Math.max(endedMs, segment.endMs());
        boolean changed = numbers.add(segment.number(), segment.number() + 1);
        if (segment.endMs() > segment.startMs()) {
            changed |= times.add(segment.startMs(), segment.endMs());
        }
        if (segment.isEnd() && segment.number() > endNumber) {
            endNumber = segment.number();
            changed = true;
        }
        settled &= !changed;
        if (settled || endNumber == 0 || numbers.start(0) != 1 || numbers.count() != 1) {
            return false;
        }
        settled = true;
        revision++;
        return true;
    }

    /** Returns the encoded OrderTotal; `settledAtMs` is the append time of the last record. */
    byte[] total(byte[] header, String order, int partition, long offset, long settledAtMs) {
        String previous = digest;
        digest = evidence(order);
        long durationMs = times.measure();
        long segments = numbers.measure();
        long afterEnd = 0;
        for (int i = 0; i < numbers.count(); i++) {
            afterEnd += Math.max(0, numbers.end(i) - Math.max(numbers.start(i), endNumber + 1));
        }
        AvroWriter out = new AvroWriter();
        out.writeBytes(header, 0, header.length);
        out.writeString(order);
        out.writeLongs(revision, 0, durationMs, 1, durationMs, startedMs, endedMs);
        if (times.count() > 0) {
            out.writeLongs(times.count());
            for (int i = 0; i < times.count(); i++) {
                out.writeLongs(times.start(i), times.end(i));
            }
        }
        out.writeLongs(0, 1, endNumber, 0);
        long gapMs = endedMs - startedMs - durationMs;
        out.writeLongs(segments, accepted - segments, lengthMs - durationMs, gapMs, afterEnd);
        out.writeString(digest);
        out.writeString(previous);
        out.writeLongs(partition, offset, settledAtMs);
        return out.toByteArray();
    }

    private String evidence(String order) {
        StringBuilder text = new StringBuilder("durabill-evidence-1\n").append(order).append('\n');
        for (int i = 0; i < times.count(); i++) {
            text.append(i > 0 ? "," : "").append(times.start(i)).append('-').append(times.end(i));
        }
        text.append('\n');
        for (int i = 0; i < numbers.count(); i++) {
            text.append(i > 0 ? "," : "").append(numbers.start(i)).append('-').append(numbers.end(i) - 1);
        }
        text.append('\n').append(endNumber).append('\n');
        try {
            MessageDigest sha256 = MessageDigest.getInstance("SHA-256");
            byte[] bytes = text.toString().getBytes(StandardCharsets.UTF_8);
            return HexFormat.of().formatHex(sha256.digest(bytes));
        } catch (NoSuchAlgorithmException error) {
            throw new IllegalStateException(error);
        }
    }

    /** Avro's binary encoding. */
    private static final class AvroWriter extends ByteArrayOutputStream {
        AvroWriter() {
            super(320);
        }

        void writeBytes(byte[] data, int from, int size) {
            write(data, from, size);
        }

        void writeString(String text) {
            byte[] data = text.getBytes(StandardCharsets.UTF_8);
            writeLongs(data.length);
            write(data, 0, data.length);
        }

        void writeLongs(long... values) {
            for (long value : values) {
                long rest = (value << 1) ^ (value >> 63);
                while ((rest & ~0x7FL) != 0) {
                    write((int) (rest & 0x7F | 0x80));
                    rest >>>= 7;
                }
                write((int) rest);
            }
        }
    }

    static Serde<OrderState> serde() {
        return Serdes.serdeFrom(new Writer(), new Reader());
    }

    private static final class Writer implements Serializer<OrderState> {
        @Override
        public byte[] serialize(String topic, OrderState state) {
            if (state == null) {
                return null;
            }
            byte[] digest = state.digest.getBytes(StandardCharsets.US_ASCII);
            int size = 45 + state.times.bytes() + state.numbers.bytes() + digest.length;
            ByteBuffer out = ByteBuffer.allocate(size);
            out.putLong(state.accepted).putLong(state.lengthMs).putLong(state.endNumber);
            out.putLong(state.startedMs).putLong(state.endedMs);
            out.putInt(state.revision).put((byte) (state.settled ? 1 : 0));
            state.times.write(out);
            state.numbers.write(out);
            out.put(digest);
            return out.array();
        }
    }

    private static final class Reader implements Deserializer<OrderState> {
        @Override
        public OrderState deserialize(String topic, byte[] data) {
            if (data == null) {
                return null;
            }
            ByteBuffer in = ByteBuffer.wrap(data);
            OrderState state = new OrderState();
            state.accepted = in.getLong();
            state.lengthMs = in.getLong();
            state.endNumber = in.getLong();
            state.startedMs = in.getLong();
            state.endedMs = in.getLong();
            state.revision = in.getInt();
            state.settled = in.get() != 0;
            state.times = Pieces.read(in);
            state.numbers = Pieces.read(in);
            if (in.hasRemaining()) {
                byte[] digest = new byte[in.remaining()];
                in.get(digest);
                state.digest = new String(digest, StandardCharsets.US_ASCII);
            }
            return state;
        }
    }
}
