"""The error of a command that cannot do what was asked."""


class CommandError(Exception):
    """The message is a sentence for the user; the exit status is 2."""
