"""Kafka: exactly once, through kills, zombies, scale-ups and broken servers."""
