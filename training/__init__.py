"""Images with labels -> a classifier, and the files that a server needs of it."""

import os

# torch's threads wait for each other many times a batch, by spinning. Beside other busy processes
# every spin costs a slice of somebody's time: 3 images/s instead of 400, seen with ten processes
# on two cores. The policy is read once, when torch is loaded; whoever set it knows better.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from .classifier import History, ImageClassifier

__all__ = ["History", "ImageClassifier"]
