"""Images with labels -> a classifier, and the files that a server needs of it."""

import os

# torch's threads wait for each other many times a batch. Sleeping at once costs a fifth of the
# speed of an idle machine; spinning for long costs, beside other busy processes, a slice of
# somebody's time at each wait. So they spin for some 0.1 ms, then sleep (docs/decisions/006).
# Both settings are read once, when torch is loaded; whoever set them knows better.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "20000")

from .classifier import History, ImageClassifier

__all__ = ["History", "ImageClassifier"]
