"""What an operator runs beside the daemon: one module for each command."""
