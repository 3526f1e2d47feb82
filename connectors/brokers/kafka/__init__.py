"""Kafka, through kafka-python. The modules here are imported when Kafka is asked for."""
