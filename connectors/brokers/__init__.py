"""One module per broker; each offers the `Broker` protocol of `connectors.records`."""
