"""Relays records between a message broker and an inference API: nothing lost, nothing doubled."""

__version__ = "0.1.0"
