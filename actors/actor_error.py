"""Defines the base class of the errors of `actors/`; each message says place, reason and remedy to a person."""


class ActorError(Exception):
    """The message is the text. retryable: the same command may work later. began: work had begun, and goes on later."""

    retryable = began = False
