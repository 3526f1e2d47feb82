"""The old name of `tests.photos`."""

from tools.moved import exit_with_new_name

exit_with_new_name("tools.photos")
