"""Runtimes of foreign servers: they decode image files, and know a model that needs no weights."""
