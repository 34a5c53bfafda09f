"""Turns the `provenance` section into what workers do to each picture, and checks key, certificate and stamp."""

import logging

from actors.checkpoint import CheckpointInfo
from jobs.job_file.errors import blaming
from jobs.job_file.keys import UNMARKED, Provenance
from jobs.job_file.places import place
from jobs.job_file.read import Job
from jobs.job_file.user_code import imported_function
from pipelines.render.marks import Marks, public_name
from pipelines.render.provenance import ProvenanceConfig
from pipelines.render.signing import SigningConfig, check_signing
from pipelines.render.stamp import PROBE, Stamp, StampConfig, StampError, StampFailed
from pipelines.run.plan import Plan

log = logging.getLogger(__name__)


def provenance_config(job: Job, info: CheckpointInfo, model: str) -> ProvenanceConfig:
    """What workers need. model: the checkpoint's folder, hub id or URL. Raises ConfigError for a wrong stamp."""
    given, sampling = job.config.provenance, job.config.sampling
    interval = sampling.guidance_interval
    marks = Marks(
        iptc=given.iptc,
        parameters=given.parameters,
        model=public_name(model),
        model_hash=info.fingerprint,
        solver=sampling.solver,
        guidance_interval=(interval[0], interval[1]) if interval else None,
    )
    return ProvenanceConfig(marks, _signing(job), _stamp(job))


def check_provenance(job: Job) -> None:
    """Raises ConfigError where pictures cannot be signed or stamped as the job says, on this machine."""
    if job.config.output.layout == "none":
        return
    if signing := _signing(job):
        with blaming(job, "provenance.c2pa", "provenance.c2pa: "):
            check_signing(signing)
    if stamp := _stamp(job):
        try:
            Stamp(stamp)(PROBE)
        except (StampError, StampFailed) as error:
            raise job.fault("provenance.stamp", f"provenance.stamp: {error}") from error


def as_planned(job: Job, plan: Plan) -> Job:
    """The job with no marks by default where its run was planned by a version without: its pictures stay alike."""
    if not plan or plan.generations[0].fingerprint.keys() & UNMARKED.keys():
        return job
    given = job.config.provenance
    asked = {name: getattr(given, name) for name in given.model_fields_set}
    log.warning("%s was planned by a version without marks: its pictures stay unmarked", plan.run.url)
    return job.changed(provenance=Provenance(iptc=False, parameters=False).model_copy(update=asked))


def _signing(job: Job) -> SigningConfig | None:
    given = job.config.provenance.c2pa
    return SigningConfig(place(given.certificate), place(given.private_key), given.timestamps) if given else None


def _stamp(job: Job) -> StampConfig | None:
    name = job.config.provenance.stamp
    return StampConfig(name, imported_function(job, "provenance.stamp", name)) if name else None
