"""Inputs that nobody wrote, made of those that somebody did: `python -m tests.fuzz`."""
