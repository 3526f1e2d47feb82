"""The old name of `tests.chaos`."""

from tools.moved import exit_with_new_name

exit_with_new_name("tools.chaos")
