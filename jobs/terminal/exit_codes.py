"""Reports an error and gives its exit code."""

from jobs.job_file.errors import message_of, unforeseen
from jobs.terminal.console import Console

DONE, FAILED, REFUSED, TOO_MANY_FAILED = 0, 1, 2, 3


def report_error(console: Console, error: BaseException) -> int:
    """Prints what is wrong; the exit code: 2 where nothing was started, else 1."""
    message = message_of(error) or unforeseen(error)
    status = "failed" if console.started or message.later or message.began else "refused"
    console.clear()
    for fault in message.faults:
        console.say(f"error: {fault}")
    if console.json:
        errors = [{"where": fault.where or None, "message": fault.message} for fault in message.faults]
        console.result({"status": status, "errors": errors}, "")
    return FAILED if status == "failed" else REFUSED
