"""Real servers on this machine: Kafka, PostgreSQL, and what they need."""
