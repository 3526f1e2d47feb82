"""Fault injection against real servers: `python -m tests.chaos NAME`, `--help` lists the scenarios.

A testbed has a broker, TorchServe, relays, a load generator and an observer. Targets (the relays,
the servers, the connections) are struck by faults from outside, by a schedule that is drawn from a
seed. The observer fills an operation log with what went in and what came out, and the promise
(exactly once on Kafka, at least once on Pub/Sub) is checked against it.

    scenarios/    one module for each scenario (choose one)
    brokers/      one package for each broker, with the same file names (choose one)
"""
