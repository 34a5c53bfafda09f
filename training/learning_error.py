"""Defines the base class of the errors of `training/`; each message says place, reason and remedy to a person."""


class LearningError(Exception):
    """The message is the text. retryable: the same command may work later. began: work had begun, and goes on later."""

    retryable = began = False


class Unlearnable(LearningError, ValueError):
    """Tables, prices or labels that do not fit together, or from which nothing can be learned."""
