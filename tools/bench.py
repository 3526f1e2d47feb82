"""The old name of `tests.bench`."""

from tools.moved import exit_with_new_name

exit_with_new_name("tools.bench")
