"""Where a relay sends the events of all runs: the outbox, Kafka, and what a consumer needs."""
