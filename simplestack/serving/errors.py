"""What a user is told when something can't be done."""


class StackError(Exception):
    """A mistake that a user can make. Its message is one line: what is wrong, and what to do."""
