"""Exactly once, through kills, zombies and broken servers: the test of record.

`python -m tools.chaos` relays a throttled load between a real Kafka and a real TorchServe, hurts
everything that takes part, from outside and at random, and holds what came out against what went
in. `python -m tools.chaos.controls` breaks the relay in known ways and wants each to be noticed.
`python -m tools.chaos.link` holds back what a broken connection to the broker cut off.
"""
