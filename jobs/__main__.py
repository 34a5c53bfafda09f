"""`python -m jobs VERB`: finds the verb's file, runs it, turns its outcome into an exit code."""

import importlib
import sys
from importlib.util import find_spec
from typing import Any

if missing := [name for name in ("click", "pyarrow", "ray", "torch") if find_spec(name) is None]:
    print(f"error: no {missing[0]}: is the environment active? In this folder: . .venv/bin/activate", file=sys.stderr)
    print("`make demo` makes it and shows pictures", file=sys.stderr)
    sys.exit(2)

import click

from jobs.terminal.console import Console, hold_streams
from jobs.terminal.exit_codes import FAILED, REFUSED, report_error
from jobs.terminal.interrupts import Interrupted, leave_on_signals

VERBS = {
    "demo": "Render the shipped prompts with the embedded model; look at the pictures.",
    "init": "Write a job file to begin with.",
    "convert": "Write the diffusers folder of a checkpoint that is one file.",
    "validate": "Check a job file, its model, its input and its output; render nothing.",
    "calibrate": "Measure how many lanes this machine's device wants, and what a step and a picture cost.",
    "plan": "Choose the steps of every prompt; show the budgets and the cost.",
    "render": "Render what is planned and not yet done.",
    "run": "Plan, then render: the whole job.",
    "status": "Say who renders a run, how far it is and what it waits for.",
    "verify": "Hold a run's plan, manifests and images against each other.",
    "repair": "Render again what a run has lost or damaged; delete what belongs to no row.",
    "rollout": "Render every prompt at every budget, scored: the table to train a policy on.",
    "train": "Train the policy that chooses steps, from that table.",
    "evaluate": "Judge a policy on held-out prompts against all that could be done instead.",
    "pilot": "Say whether adaptive steps pay on a sample of your own prompts.",
    "schema": "Explain every key of the job file, or every column of the manifest.",
}

EXIT_CODES = """\b
Exit codes: 0 done; 1 failed; 2 refused, nothing was started; 3 done, but more
rows failed than failures.max_fraction allows; 129, 130, 143 interrupted,
resumable. Words: docs/glossary.md

\b
A first job:
  python -m jobs demo
  python -m jobs init spring.yaml
  python -m jobs run spring.yaml --limit 10
  python -m jobs run spring.yaml"""


class Verbs(click.Group):
    """Imports a verb's file when it is called, so that `--help` costs nothing."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which one meets them."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command `verb` of jobs/<verb>.py."""
        return importlib.import_module(f"jobs.{cmd_name}").verb if cmd_name in VERBS else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The table above, without importing a verb."""
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """With a guess at what was meant."""
        import difflib

        if args[0] not in VERBS and (close := difflib.get_close_matches(args[0], VERBS, 1)):
            ctx.fail(f"No such verb {args[0]!r}. Did you mean {close[0]!r}?")
        return super().resolve_command(ctx, args)


@click.group(cls=Verbs, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Batch image generation that spends only the denoising steps that pay.

    A job file says which prompts, which model, how steps are chosen and where
    the pictures go. The same command typed again goes on where it stopped.
    """


def main(arguments: list[str] | None = None) -> int:
    """Run a verb; the exit code."""
    from pipelines.boundary import raised_by

    console, codes = Console(), list[int]()
    options: dict[str, Any] = {"prog_name": "python -m jobs", "standalone_mode": False, "obj": console}
    try:
        error = raised_by(lambda: codes.append(cli.main(arguments, **options) or 0))
    except KeyboardInterrupt:
        return 130
    except Interrupted as interrupted:
        return interrupted.exit_code
    if error is None:
        return codes[0]
    if isinstance(error, click.Abort):
        return 130
    if isinstance(error, click.ClickException):
        return misused(console, error, sys.argv[1:] if arguments is None else arguments)
    if console.debug:
        raise error
    return report_error(console, error)


def misused(console: Console, error: click.ClickException, arguments: list[str]) -> int:
    """A verb or an option that there is not; under --json as a document, too."""
    error.show()
    if "--json" in arguments:
        console.json = True
        console.result({"status": "refused", "errors": [{"where": None, "message": error.format_message()}]}, "")
    return REFUSED


if __name__ == "__main__":
    out = hold_streams()
    leave_on_signals()
    code = main()
    out.flush()
    if out.lost and "--json" in sys.argv:
        code = code or FAILED  # the document is what was asked for
    sys.stdout = sys.stderr  # as it ends, Ray tells of workers that died, and a document may be on stdout
    sys.exit(code)
