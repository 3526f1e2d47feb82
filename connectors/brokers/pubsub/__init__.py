"""Google Pub/Sub, through google-cloud-pubsub, imported when it is asked for."""
