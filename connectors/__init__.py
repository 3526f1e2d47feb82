"""Relays records between a message broker and an inference API: nothing lost, nothing doubled."""
