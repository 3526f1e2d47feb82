"""One package for each broker; each offers the `Broker` protocol of `connectors.records`.

Choose one; `connectors.registry` makes them known, `publishing` is what they share.
"""

from typing import Any

Untyped = Any
"""An object of a broker's library, which ships no types."""
