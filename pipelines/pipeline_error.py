"""Defines the base class of the errors of `pipelines/`; each message says place, reason and remedy to a person.

`Dropped`, which only ends an attempt, and errors of one row have other classes.
"""


class PipelineError(Exception):
    """The message is the text. retryable: the same command may work later. began: work had begun, and goes on later."""

    retryable = began = False


def one_line(text: str) -> str:
    """The text with line ends, control characters and lone surrogates as escapes; names of files may hold them."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
