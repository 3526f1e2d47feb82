"""The speed of the daemon beside what one writes from the library's documentation."""
