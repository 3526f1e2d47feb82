"""Errors of this package, as a tree, and its warning; a message is one sentence with its fix.

TrainingError
├── DataError      the images or the labels cannot be used as they are
├── RunError       there is no such run, or it is not good enough
└── ExportError    the exported module does not answer as the trained one
"""

from __future__ import annotations


class TrainingError(Exception):
    """Whatever this package raises on purpose."""


class DataError(TrainingError, ValueError):
    """The images or the labels cannot be used as they are."""


class RunError(TrainingError):
    """There is no such run, or it is not good enough."""


class ExportError(TrainingError):
    """The exported module does not answer as the trained one."""


class TrainingWarning(UserWarning):
    """It goes on, but not as somebody may expect; the command line prints it on stderr."""
