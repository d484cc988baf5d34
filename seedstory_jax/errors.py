"""Errors that a user can mend: shown as one line, with the way out, and exit code 2."""


class UserError(ValueError):
    """Something that was typed or given is wrong; the message names the value, the limit and the way out."""
