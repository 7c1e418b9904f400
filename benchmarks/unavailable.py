"""What a benchmark compares with, and this environment does not have."""


class Unavailable(Exception):
    """A contender that cannot be run here; the message says what to install."""
