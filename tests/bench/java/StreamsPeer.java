import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.clients.producer.ProducerConfig;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.Topology;
import org.apache.kafka.streams.errors.LogAndContinueExceptionHandler;
import org.apache.kafka.streams.processor.api.Processor;
import org.apache.kafka.streams.processor.api.ProcessorContext;
import org.apache.kafka.streams.processor.api.Record;
import org.apache.kafka.streams.state.KeyValueStore;
import org.apache.kafka.streams.state.Stores;

import java.util.HexFormat;
import java.util.Map;
import java.util.Properties;
import java.util.concurrent.atomic.AtomicLong;

/**
 * Kafka Streams doing the worker's job. Arguments: bootstrap servers, segments topic, totals topic,
 * records to warm up with, records to measure, folder for the state, the 10 bytes in hex with which
 * segments and totals start. Prints marks for the bench, and ends with its standard input.
 */
public final class StreamsPeer {
    private static final String STORE = "orders";

    private StreamsPeer() {
    }

    public static void main(String[] args) throws Exception {
        long warm = Long.parseLong(args[3]);
        long count = Long.parseLong(args[4]);
        AtomicLong records = new AtomicLong();
        HexFormat hex = HexFormat.of();
        byte[] segmentHeader = hex.parseHex(args[6]);
        byte[] totalHeader = hex.parseHex(args[7]);

        Topology topology = new Topology();
        topology.addSource("segments", Serdes.String().deserializer(),
            new Segment.Reader(segmentHeader), args[1]);
        topology.addProcessor("fold", () -> new Fold(totalHeader, records, warm), "segments");
        topology.addStateStore(
            Stores.keyValueStoreBuilder(Stores.inMemoryKeyValueStore(STORE), Serdes.String(),
                    OrderState.serde())
                .withCachingEnabled()
                .withLoggingEnabled(Map.of()),
            "fold");
        topology.addSink("totals", args[2], Serdes.String().serializer(),
            Serdes.ByteArray().serializer(), "fold");

        KafkaStreams streams = new KafkaStreams(topology, settings(args[0], args[2], args[5]));
        streams.start();
        while (records.get() < warm + count) {
            Thread.sleep(5);
            if (!streams.state().isRunningOrRebalancing()
                && streams.state() != KafkaStreams.State.CREATED) {
                throw new IllegalStateException("the topology stopped: " + streams.state());
            }
        }
        streams.close();  // writes what the cache holds to the changelog, and commits
        mark("done", records.get());
        System.in.read();
        System.exit(0);
    }

    private static Properties settings(String servers, String totals, String folder) {
        Properties set = new Properties();
        set.put(StreamsConfig.APPLICATION_ID_CONFIG, "streams-" + totals);
        set.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, servers);
        set.put(StreamsConfig.STATE_DIR_CONFIG, folder);
        set.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, StreamsConfig.AT_LEAST_ONCE);
        set.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, 1);
        set.put(StreamsConfig.COMMIT_INTERVAL_MS_CONFIG, 30_000);
        set.put(StreamsConfig.STATESTORE_CACHE_MAX_BYTES_CONFIG, 256L << 20);
        set.put(StreamsConfig.BUFFERED_RECORDS_PER_PARTITION_CONFIG, 20_000);
        set.put(StreamsConfig.REPLICATION_FACTOR_CONFIG, 1);
        set.put(StreamsConfig.DESERIALIZATION_EXCEPTION_HANDLER_CLASS_CONFIG,
            LogAndContinueExceptionHandler.class);
        set.put(StreamsConfig.mainConsumerPrefix(ConsumerConfig.MAX_POLL_RECORDS_CONFIG), 10_000);
        set.put(StreamsConfig.mainConsumerPrefix(ConsumerConfig.FETCH_MIN_BYTES_CONFIG), 256 << 10);
        set.put(StreamsConfig.mainConsumerPrefix(ConsumerConfig.MAX_PARTITION_FETCH_BYTES_CONFIG), 4 << 20);
        set.put(StreamsConfig.mainConsumerPrefix(ConsumerConfig.FETCH_MAX_BYTES_CONFIG), 64 << 20);
        set.put(StreamsConfig.mainConsumerPrefix(ConsumerConfig.AUTO_OFFSET_RESET_CONFIG), "earliest");
        set.put(StreamsConfig.producerPrefix(ProducerConfig.COMPRESSION_TYPE_CONFIG), "lz4");
        set.put(StreamsConfig.producerPrefix(ProducerConfig.LINGER_MS_CONFIG), 100);
        set.put(StreamsConfig.producerPrefix(ProducerConfig.BATCH_SIZE_CONFIG), 256 << 10);
        set.put(StreamsConfig.producerPrefix(ProducerConfig.BUFFER_MEMORY_CONFIG), 128L << 20);
        return set;
    }

    private static void mark(String name, long records) {
        System.out.println("{\"mark\": \"" + name + "\", \"records\": " + records + "}");
        System.out.flush();
    }

    /** One order's state an event; the total goes out as soon as the order is settled. */
    private static final class Fold implements Processor<String, Segment, String, byte[]> {
        private final byte[] totalHeader;
        private final AtomicLong records;
        private final long warm;
        private ProcessorContext<String, byte[]> context;
        private KeyValueStore<String, OrderState> store;

        Fold(byte[] totalHeader, AtomicLong records, long warm) {
            this.totalHeader = totalHeader;
            this.records = records;
            this.warm = warm;
        }

        @Override
        public void init(ProcessorContext<String, byte[]> given) {
            context = given;
            store = given.getStateStore(STORE);
        }

        @Override
        public void process(Record<String, Segment> record) {
            String order = record.key();
            OrderState state = store.get(order);
            if (state == null) {
                state = new OrderState();
            }
            if (state.fold(record.value())) {
                var at = context.recordMetadata().orElseThrow();
                byte[] total = state.total(totalHeader, order, at.partition(), at.offset(), record.timestamp());
                context.forward(record.withValue(total));
            }
            store.put(order, state);
            if (records.incrementAndGet() == warm) {
                mark("warm", warm);
            }
        }
    }
}
