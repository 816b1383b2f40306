"""The HTTP gateway for clients that do not speak Kafka."""
