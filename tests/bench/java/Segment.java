import org.apache.kafka.common.errors.SerializationException;
import org.apache.kafka.common.serialization.Deserializer;

import java.util.Arrays;

/** One segment of business data, as `schemas/segment_event.avsc` writes it. */
record Segment(long number, long startMs, long endMs, boolean isEnd) {

    /** Reads Avro's single-object encoding by hand: the Avro library would cost far more. */
    static final class Reader implements Deserializer<Segment> {
        private final byte[] header;

        Reader(byte[] header) {
            this.header = header;
        }

        @Override
        public Segment deserialize(String topic, byte[] data) {
            if (data == null || data.length < header.length
                || !Arrays.equals(data, 0, header.length, header, 0, header.length)) {
                throw new SerializationException("no segment");
            }
            Cursor at = new Cursor(data, header.length);
            int size = (int) at.readLong();
            at.position += size;  // the record's key says the same
            return new Segment(at.readLong(), at.readLong(), at.readLong(), data[at.position] != 0);
        }
    }

    /** A position in bytes. */
    private static final class Cursor {
        private final byte[] data;
        private int position;

        Cursor(byte[] data, int position) {
            this.data = data;
            this.position = position;
        }

        long readLong() {
            long value = 0;
            for (int shift = 0; shift < 64; shift += 7) {
                byte next = data[position++];
                value |= (long) (next & 0x7F) << shift;
                if (next >= 0) {
                    return (value >>> 1) ^ -(value & 1);
                }
            }
            throw new SerializationException("a number is too long");
        }
    }
}
