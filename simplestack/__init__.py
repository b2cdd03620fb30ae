"""What the scripts of the Simple Stack share: one job a module."""


class StackError(Exception):
    """A mistake that a user can make. Its message is one line: what is wrong, and what to do."""
