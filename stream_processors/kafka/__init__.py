"""How every process speaks to Kafka: client options, errors, rights, reads from outside a group."""
