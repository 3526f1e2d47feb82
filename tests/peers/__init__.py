"""Relays in front of inference servers that are not ours, each in an environment of its own."""
