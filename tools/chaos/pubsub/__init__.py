"""At least once on Pub/Sub, through kills and cut streams: `python -m tools.chaos.pubsub`.

Four cases between Google's emulator and a real TorchServe; each holds what came out against what
went in. `python -m tools.chaos.pubsub.controls` breaks the relay in known ways and wants each to be
noticed.
"""
