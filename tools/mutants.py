"""The old name of `tests.mutants`."""

from tools.moved import exit_with_new_name

exit_with_new_name("tools.mutants")
