"""How fast the daemon is beside what one writes from the library's documentation."""
