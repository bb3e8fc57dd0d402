"""Errors that a person can mend: one line, and no traceback in the scripts."""


class UserError(ValueError):
    """Names the file, row, option or leaf, what was expected, and what to do."""
