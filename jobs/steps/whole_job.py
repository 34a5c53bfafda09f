"""Plans, then renders: the whole job."""

from jobs.job_file.read import Job
from jobs.steps.checking import open_input
from jobs.steps.limited import within_limit
from jobs.steps.planning import estimated, make, plan_text, prepare
from jobs.steps.rendering import render_job
from jobs.steps.sole_driver import ready, sole_driver
from jobs.terminal.console import Console
from pipelines.integrity.repair_orders import RepairPlanner
from pipelines.render.driver import RenderOrders
from pipelines.render.early_worker import EarlyWorker
from pipelines.run.plan import Plan


def failed_rows(plan: Plan) -> RenderOrders:
    """All rows that failed while they were rendered; those that were bad in the input stay as they are."""
    repairs = RepairPlanner(plan)
    failed = [
        table["shard"][0].as_py() for table in plan.run.manifests() if "failed" in table["status"].unique().to_pylist()
    ]
    orders = {shard: order for shard in failed if (order := repairs.order(shard, retry_failed=True))}
    return RenderOrders(orders, alone=False)


def run_job(
    console: Console, job: Job, address: str | None, take_over: bool = False, retry_failed: bool = False
) -> int:
    """The whole job; the exit code."""
    settings, warnings = prepare(job)
    with sole_driver(console, job, settings.run, take_over) as epoch:
        opened = open_input(job, settings.source)
        with ready(console, settings, epoch, address, with_input=True) as (settings, stop), EarlyWorker() as early:
            plan = make(console, settings, warnings, epoch.id, opened, early)
            console.say(plan_text(str(job.config.output.path), estimated(settings, plan)))
            again = failed_rows(plan) if retry_failed else None
            return render_job(console, settings, plan, stop, within_limit(settings, plan, again), early)
