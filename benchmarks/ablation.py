"""The same reward table learned in several ways, several training seeds each: which part of the method earns its keep.

    python -m benchmarks.ablation JOB [--seeds 5] [--only "no baseline"]

JOB is the job file of a rollout, with evaluate.table a rollout of held-out prompts. What is measured is the mean gain
over the fixed curve at equal cost on the held-out prompts, mean over prices, by the job's own scorer and by a judge
that training never saw; every way is trained to its end, no weights are picked by what they do.
"""

import argparse
import sys
import time

from actors.policy import Network
from actors.prompt_encoder import PromptEncoder
from jobs.job_file import settings
from jobs.job_file.read import load_job
from jobs.steps.judging import unseen_judge
from jobs.steps.learning import learning_of, rollout_run, table_run, whole_table
from training.ablation import Way, ablate, outcome_table, ways
from training.learn.batches import Rows
from training.learn.embeddings import embed
from training.reward_table import RewardTable


def main() -> int:
    """-> the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", metavar="JOB")
    parser.add_argument("--seeds", type=int, default=5, help="training seeds of each way")
    parser.add_argument("--only", action="append", default=[], metavar="WAY", help="only this way; as often as wanted")
    parser.add_argument("--fidelity", type=float, default=0.5, help="its weight where several scorers count")
    options = parser.parse_args()
    job = load_job(options.job)
    table = whole_table(job, "output.path", table_run(job))
    judged = whole_table(job, "evaluate.table", rollout_run(job, "evaluate.table"))
    encoder = PromptEncoder(settings.model_source(job).local())
    given = job.config.train
    network = Network(encoder.hidden_size, len(table.choices), given.width, given.layers, given.heads)
    learning = learning_of(given, table)
    judge = job.config.evaluate.judge or unseen_judge(job, judged)
    judges = ({judge: judged.judged_by(judge)} if judge else {}) | {"own scorer": judged}
    held_out = judges, rows_of(encoder, judged)
    embeds = embed(encoder, table.prompts)
    wanted = [(name, way, table) for name, way in ways(learning, network).items()]
    if "fidelity" in table.scores:
        both = table.weighed({"clip": 1.0, "fidelity": options.fidelity})
        wanted.append(("two scorers", Way(learning_of(given, both), network), both))
    outcomes = []
    for name, way, learned in wanted:
        if options.only and name not in options.only:
            continue
        started = time.perf_counter()
        rows = Rows(dict(enumerate(embeds)), dict(enumerate(learned.quality)))
        outcomes += ablate((learned, rows), held_out, {name: way}, range(options.seeds))
        print(f"{name}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    print(outcome_table(outcomes))
    return 0


def rows_of(encoder: PromptEncoder, table: RewardTable) -> Rows:
    """All prompts of a table, read by the encoder."""
    return Rows(dict(enumerate(embed(encoder, table.prompts))), dict(enumerate(table.quality)))


if __name__ == "__main__":
    sys.exit(main())
