import java.nio.ByteBuffer;

/** Disjoint, sorted pieces [start, end) that do not touch: times, or numbers. */
final class Pieces {
    private long[] edges = new long[2];
    private int used;

    int count() {
        return used / 2;
    }

    long start(int piece) {
        return edges[2 * piece];
    }

    long end(int piece) {
        return edges[2 * piece + 1];
    }

    long measure() {
        long sum = 0;
        for (int i = 0; i < used; i += 2) {
            sum += edges[i + 1] - edges[i];
        }
        return sum;
    }

    /** Adds [start, end); tells whether it added anything. */
    boolean add(long start, long end) {
        if (used > 0 && start == edges[used - 1]) {
            edges[used - 1] = end;
            return true;
        }
        if (used == 0 || start > edges[used - 1]) {
            replace(used, used, start, end);
            return true;
        }
        int low = 0;
        while (edges[low + 1] < start) {
            low += 2;
        }
        if (edges[low] <= start && end <= edges[low + 1]) {
            return false;
        }
        int high = low;
        long first = start;
        long last = end;
        while (high < used && edges[high] <= end) {
            first = Math.min(first, edges[high]);
            last = Math.max(last, edges[high + 1]);
            high += 2;
        }
        replace(low, high, first, last);
        return true;
    }

    /** Puts one piece in the place of those from position `low` to `high`. */
    private void replace(int low, int high, long start, long end) {
        int after = used - (high - low) + 2;
        if (after > edges.length) {
            edges = java.util.Arrays.copyOf(edges, 2 * after);
        }
        System.arraycopy(edges, high, edges, low + 2, used - high);
        edges[low] = start;
        edges[low + 1] = end;
        used = after;
    }

    int bytes() {
        return 4 + 8 * used;
    }

    void write(ByteBuffer out) {
        out.putInt(used);
        for (int i = 0; i < used; i++) {
            out.putLong(edges[i]);
        }
    }

    static Pieces read(ByteBuffer in) {
        Pieces pieces = new Pieces();
        pieces.used = in.getInt();
        pieces.edges = new long[Math.max(2, pieces.used)];
        for (int i = 0; i < pieces.used; i++) {
            pieces.edges[i] = in.getLong();
        }
        return pieces;
    }
}
