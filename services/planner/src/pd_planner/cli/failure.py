"""How a command ends that cannot do what it was asked for."""


class CommandError(Exception):
    """The message is a sentence for the user; the exit status is 2."""
