"""A program that looks at a page in Chromium; it runs in an environment of its own."""
