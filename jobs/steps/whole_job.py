"""Plan, then render: the whole job."""

from jobs.job_file.read import Job
from jobs.steps.planning import make, plan_text, planned, prepare
from jobs.steps.rendering import render_job
from jobs.steps.sole_driver import ready, sole_driver
from jobs.terminal.console import Console
from pipelines.integrity.repair import Repairs
from pipelines.render.driver import Repair
from pipelines.run.layout import RunFolder


def failed_rows(run: RunFolder) -> Repair:
    """All rows that failed while they were rendered; those that were bad in the input stay as they are."""
    repairs = Repairs(run)
    failed = [
        table["shard"][0].as_py() for table in run.manifests() if "failed" in table["status"].unique().to_pylist()
    ]
    orders = {shard: order for shard in failed if (order := repairs.order(shard, retry_failed=True))}
    return Repair(orders, alone=False)


def run_job(
    console: Console, job: Job, address: str | None, take_over: bool = False, retry_failed: bool = False
) -> int:
    """The whole job; the exit code."""
    run, info, warnings = prepare(job)
    with (
        sole_driver(console, job, run, take_over) as epoch,
        ready(console, job, run, epoch, address, with_input=True) as (placed, stop),
    ):
        make(console, job, run, info, warnings)
        console.say(plan_text(str(job.config.output.path), planned(run)))
        again = failed_rows(run) if retry_failed else None
        return render_job(console, placed, run, info, stop, again)
