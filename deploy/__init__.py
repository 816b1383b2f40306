"""How Durabill is run: the local stack (Kafka, PostgreSQL), topics and the `durabill` command."""
