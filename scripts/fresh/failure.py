"""What went wrong."""


class FreshError(Exception):
    """A step failed; the message says which and how, with the log where there is one."""
