"""The real servers for tests, the demo and `make serve`: one module for each (choose one)."""
