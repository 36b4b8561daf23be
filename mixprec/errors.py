"""The one exception that is the user's to mend. Everything else that escapes is our bug (exit code 1)."""


class UserError(Exception):
    """Bad input: the message names the file, the key, the value and the remedy. Exit code 2, no stack trace."""
