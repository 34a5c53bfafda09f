"""Writes a first job file: for the embedded model, or for a checkpoint what fits it, read from its headers."""

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from actors.checkpoint import CheckpointInfo
from actors.solver import allowed_steps, noise_schedule
from actors.weights import read_header
from jobs.job_file.positions import ConfigError, Fault
from jobs.job_file.read import read_job
from jobs.job_file.settings import read_checkpoint

CLIP = "openai/clip-vit-large-patch14"
EMBEDDED = """\
# Check it: python -m jobs validate {name}    run it: python -m jobs run {name}    every key: python -m jobs schema
input:
  path: training/scenes/prompts.csv   # Parquet, CSV, TSV, JSONL with a column `prompt`: file, folder, glob, s3://...
  images_per_prompt: 1
# model: {{path: s3://bucket/stable-diffusion-v1-5}}   # init --model PATH writes what fits that checkpoint
steps:
  selector: policy           # the shipped one is for the embedded model; or words, or fixed (with fixed: 20)
  price: 0.3                 # 0: quality at any cost; higher: fewer steps
sampling:
  guidance_scale: 1.5        # 1: none; left out: 7.5, which suits Stable Diffusion
output:
  path: runs/{stem}          # or s3://bucket/runs/{stem}
  format: png                # or jpeg, webp
pools:
  - {{name: default, actors: 1}}   # processes that render; on a cluster as many as it has GPUs
"""
FITTED = """\
# Check it: python -m jobs validate {name}    run it: python -m jobs run {name}    every key: python -m jobs schema
input:
  path: training/scenes/prompts.csv   # yours: Parquet, CSV, TSV, JSONL with a column `prompt`, or .txt, a prompt a line
  images_per_prompt: 1
model:
  path: {path}
{variant}  dtype: auto                # float16 on a GPU, float32 on a CPU; the weights are stored as {stored}
steps:
  selector: words            # by the number of words; a policy of your own: python -m jobs rollout, then train
  choices: {choices}{few}
sampling:
  solver: {solver}
  guidance_scale: {guidance}
  width: {width}                 # the checkpoint's own size, px
  height: {height}
{quality}output:
  path: runs/{stem}          # or s3://bucket/runs/{stem}
  format: png                # or jpeg, webp
pools:
  - {{name: default, actors: 1}}   # processes that render; on a cluster as many as it has GPUs
"""
NO_GUIDANCE = "          # none: such checkpoints were trained without"


@dataclass(frozen=True)
class Fit:
    """What suits a checkpoint. few: it was distilled for a handful of steps, without guidance."""

    solver: str
    guidance: float
    choices: tuple[int, ...]
    few: bool


def first_job(path: str, model: str | None, variant: str | None = None) -> str:
    """The text of the job file. Raises ConfigError where the checkpoint cannot be rendered with."""
    stem = Path(path).stem
    if model is None:
        return EMBEDDED.format(name=path, stem=stem)
    sets = [f"model.path={_quoted(model)}", *([f"model.variant={variant}"] if variant else [])]
    try:
        info = read_checkpoint(read_job("input: {path: '?'}", "--model", sets))
    except ConfigError as error:  # its place is a key of a file that is not written yet
        raise ConfigError([Fault("--model", fault.message) for fault in error.faults]) from error
    fit = fit_of(info)
    return FITTED.format(
        name=path,
        stem=stem,
        path=_quoted(model),
        variant=f"  variant: {variant}\n" if variant else "",
        stored=_stored(info),
        choices=list(fit.choices),
        few="   # it was distilled for few steps" if fit.few else "",
        solver=fit.solver,
        guidance=f"{fit.guidance:g}{NO_GUIDANCE if fit.few else ''}",
        width=info.width,
        height=info.height,
        quality=_quality(),
    )


def fit_of(info: CheckpointInfo) -> Fit:
    """Solver, guidance and menu, by the scheduler that the checkpoint comes with, and by its family."""
    scheduler = info.scheduler_config
    few = info.scheduler_class == "EulerAncestralDiscreteScheduler" and scheduler.get("timestep_spacing") == "trailing"
    fast = info.scheduler_class.startswith("DPMSolver")
    solver = "dpmpp_2m" if fast else "ddim"
    wanted = range(1, 5) if few else (8, 10, 15, 20, 25) if fast else (10, 15, 20, 30, 50)
    allowed = allowed_steps(noise_schedule(scheduler, None), solver)
    guidance = 1.0 if few else 5.0 if info.family == "sdxl" else 7.5
    return Fit(solver, guidance, tuple(count for count in wanted if count in allowed), few)


def _stored(info: CheckpointInfo) -> str:
    """The number format of the UNet's first tensor."""
    formats = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    files = sorted(Path(info.path, "unet").glob("*.safetensors"))
    named = [file for file in files if info.variant and f".{info.variant}" in file.name]
    kinds = {tensor.dtype for tensor in read_header((named or files)[0]).values()}
    return " and ".join(sorted(formats.get(kind, kind) for kind in kinds))


def _quality() -> str:
    """Scorers that this machine has; else what is to be had, as a comment."""
    line = f"quality: [{{scorer: clip, path: {CLIP}}}]"
    why = "scores each picture, for tries, pilot and train"
    return f"{line}   # {why}\n" if _is_cached(CLIP) else f"# {line}   # {why}; it is not on this machine yet\n"


def _is_cached(repo: str) -> bool:
    return all(isinstance(try_to_load_from_cache(repo, name), str) for name in ("config.json", "model.safetensors"))


def _quoted(path: str) -> str:
    plain = path.replace("/", "").replace("-", "").replace("_", "").replace(".", "").replace(":", "")
    return path if plain.isalnum() and ": " not in path else "'" + path.replace("'", "''") + "'"
