"""The base of this room's own errors: each is a message to a person, with place, reason and remedy.

What ends a loop or belongs to one row alone (`Dropped`) is no such error.
"""


class PipelineError(Exception):
    """The message is the text. retryable: the same command may work later. began: work had begun, and goes on later."""

    retryable = began = False


def one_line(text: str) -> str:
    """The text with line ends, control characters and halves of characters, as names of files may hold, as escapes."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
