"""Google Pub/Sub: at least once, through kills and cut streams, on Google's emulator."""
