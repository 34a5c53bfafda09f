"""The base of this room's own errors: each is a message to a person, with place, reason and remedy.

What ends a loop or belongs to one row alone (`EndOfRows`) is no such error.
"""


class ActorError(Exception):
    """The message is the text. retryable: the same command may work later. began: work had begun, and goes on later."""

    retryable = began = False
