"""Defines every key of the job file, with its default, unit, bounds and kind.

`jobs.job_file.read` reads one, with places in its errors; `jobs.job_file.settings` turns it into what the rooms take.
"""

import codecs
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

KINDS = ("picture", "execution", "price")
_SECRET = re.compile(r"secret|password|token|access_?key|credential|(^|_)key$|^profile$", re.IGNORECASE)
DEFAULT_POOL = "default"
UNMARKED = {"provenance.iptc": False, "provenance.parameters": False}  # as runs of earlier versions
MAX_STEPS, SIZE_MULTIPLE_PX, MAX_SIZE_PX = 1000, 8, 4096


def _leaf(kind: str, default: Any, description: str, **limits: Any) -> Any:
    return Field(default, description=description, json_schema_extra={"kind": kind}, **limits)


def picture(default: Any, description: str, **limits: Any) -> Any:
    """A key that decides the picture: it must not change when a run is resumed."""
    return _leaf("picture", default, description, **limits)


def execution(default: Any, description: str, **limits: Any) -> Any:
    """A key that decides where and how fast: it may change with every run."""
    return _leaf("execution", default, description, **limits)


def price(default: Any, description: str, **limits: Any) -> Any:
    """A key that changes only by fitting the plan again."""
    return _leaf("price", default, description, **limits)


def _no_password(url: str) -> str:
    user, at, _ = urlsplit(url).netloc.rpartition("@")
    is_container = urlsplit(url).scheme in ("abfs", "abfss", "wasb", "wasbs") and ":" not in user
    if at and not is_container:
        raise ValueError("holds a user name or password; credentials come from the usual chain (environment, profile)")
    return url


def _http(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be a URL like https://s3.example.com")
    return url


def _no_secret(options: dict[str, Any]) -> dict[str, Any]:
    if secret := [name for name in options if is_secret(name) or "customerkey" in name.lower()]:
        raise ValueError(f"holds {', '.join(secret)}: secrets are never in a job file")
    return options


def is_secret(name: str) -> bool:
    """Whether a key of this name would hold credentials."""
    return bool(_SECRET.search(name))


_NO_TEXT = ("idna", "punycode", "unicode_escape", "raw_unicode_escape", "utf_7")  # encodings of other things


def _encoding(name: str) -> str:
    known = name.lower().replace("_", "-").replace(" ", "-")
    if known in ("utf-8", "utf8", "utf-8-sig"):
        return "utf-8"
    try:
        found = codecs.lookup(name)
        text = "prompt".encode(found.name).decode(found.name) == "prompt"
    except (LookupError, ValueError):
        text = False
    if not text or found.name.replace("-", "_") in _NO_TEXT:
        raise ValueError(f"{name!r} is no encoding of text; write utf-8, utf-16, latin-1, cp1252, shift_jis or another")
    return found.name


def _rising(values: list[int]) -> list[int]:
    if values != sorted(set(values)):
        raise ValueError(f"must rise, each once: {sorted(set(values))}")
    return values


def _plain(value: Any) -> Any:
    """A recipe without other keys is its number of steps."""
    return value.num_steps if isinstance(value, RecipeKeys) and value.is_plain else value


def _each_once(values: list[Any]) -> list[Any]:
    """The menu in one order, whatever the file's."""
    menu = [_plain(value) for value in values]
    if twice := [str(value) for at, value in enumerate(menu) if value in menu[:at]]:
        raise ValueError(f"{twice[0]} stands there twice: each recipe once")
    return sorted(menu, key=lambda value: (value if isinstance(value, int) else value.num_steps, repr(value)))


def _scorer_kind(kind: str) -> str:
    if kind not in ("clip", "aesthetic", "fidelity") and not re.fullmatch(r"[\w.]+:\w+", kind):
        raise ValueError("must be clip, aesthetic, fidelity or the import path of a function, module:function")
    return kind


def _own_file(path: str) -> str:
    if "-----BEGIN" in path:
        raise ValueError("holds a certificate or a key itself: write the path of its file here, secrets never")
    if "://" in path:
        raise ValueError("must be the path of a file on each machine")
    return path


def _stamp(name: str) -> str:
    if not re.fullmatch(r"[\w.]+:\w+", name):
        raise ValueError("must be the import path of a function, module:function")
    return name


def _safety_kind(kind: str) -> str:
    if kind != "aesthetic" and ":" not in kind:
        raise ValueError(
            "must be the import path of a function, module:function, or aesthetic: a linear head on a CLIP"
        )
    return _scorer_kind(kind)


def _interval(values: list[float]) -> list[float]:
    if len(values) == 2 and values[0] >= values[1]:
        raise ValueError("the start must lie before the end")
    return values


Place = Annotated[str, StringConstraints(min_length=1), AfterValidator(_no_password)]
Steps = Annotated[int, Field(ge=1, le=MAX_STEPS)]
PoolSteps = Annotated[list[Steps], Field(min_length=1), AfterValidator(_rising)]
SizePx = Annotated[int, Field(ge=SIZE_MULTIPLE_PX, le=MAX_SIZE_PX, multiple_of=SIZE_MULTIPLE_PX)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """Unknown keys are errors, types are strict, a read job file does not change."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Storage(Section):
    """How to reach an object store. Credentials: by the usual chain only, never here."""

    endpoint_url: Annotated[str, AfterValidator(_no_password), AfterValidator(_http)] | None = execution(
        None, "URL of an S3-compatible server; null: AWS"
    )
    region: str | None = execution(None, "region of the bucket; null: the environment's")
    addressing_style: Literal["path", "virtual"] | None = execution(
        None,
        "path: host/bucket; virtual: bucket.host; null: as the AWS configuration says, else path at an endpoint_url",
    )
    anonymous: bool = execution(False, "true: read a public bucket without credentials; false: by the usual chain")
    put_options: Annotated[dict[str, Any], AfterValidator(_no_secret)] = execution(
        {}, "added to every PUT, for example {ServerSideEncryption: AES256}; a ContentType is given to pictures alone"
    )


class Model(Section):
    """The diffusion checkpoint; it is never trained."""

    path: Place | None = picture(None, "diffusers folder, hub id or s3:// folder; null: the embedded model")
    revision: str | None = picture(None, "branch, tag or commit of a hub id; null: its main branch")
    variant: str | None = picture(None, "variant of the weight files, for example fp16; null: the plain ones")
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = picture(
        "auto", "number format of UNet and text encoder; auto: float16 on a GPU, float32 on a CPU"
    )
    device: Annotated[str, StringConstraints(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = execution(
        "auto", "auto, cpu, cuda or cuda:<n>; auto: the GPU where there is one"
    )


class Csv(Section):
    """How CSV files are written, where not with commas, doubled quotes and no spaces between."""

    delimiter: Literal[",", ";", "|", "\t"] = picture(",", "what stands between columns: a comma, ;, | or a tab")
    quotes: Literal["doubled", "backslash"] | None = picture(
        None, 'quotes inside a quoted field: doubled as "a ""b""", or backslash; null: doubled, backslashes are refused'
    )
    skip_spaces: bool | None = picture(
        None, "true: spaces after a delimiter are no text; false: they are; null: they are, refused before a quote"
    )


class Input(Section):
    """The prompts."""

    path: Place = picture(
        ...,
        "file, folder or glob of Parquet, CSV, TSV or JSONL, or one .txt with a prompt a line; local, s3://, or one "
        "file at https://",
    )
    columns: dict[str, str | None] = picture(
        {},
        "our name: the column's name, for example {prompt: headline}; wins over guessing. A column's name: null leaves "
        "that column out, for example {brand: null}",
    )
    drop: list[str] = picture([], "columns that are not carried along, for example [image]")
    encoding: Annotated[str, AfterValidator(_encoding)] = picture(
        "utf-8", "of CSV, TSV and JSONL, by its usual name: utf-8, utf-16, latin-1, cp1252, shift_jis, ..."
    )
    csv: Csv = Csv()
    images_per_prompt: Annotated[int, Field(ge=1, le=10_000)] = picture(
        1, "images of every prompt, 1 to 10,000, each with its own seed"
    )
    limit: Count | None = execution(None, "only the first n prompts; null: all. A later run without it adds the rest")
    strict: bool = execution(False, "true: one bad row stops the job before it starts; false: it is a failed row")
    changed: Literal["refuse", "keep"] = execution(
        "refuse",
        "rows that changed under an id that is planned already. refuse: the run does not start; keep: their old "
        "pictures stay, and the plan says so",
    )
    storage: Storage | None = Field(default=None, description="where the input's store differs from `storage`")


Solver = Literal["ddim", "dpmpp_2m"]
GuidanceInterval = Annotated[
    list[Annotated[float, Field(ge=0, le=1)]], Field(min_length=2, max_length=2), AfterValidator(_interval)
]


class RecipeKeys(Section):
    """One way to denoise a picture; what it leaves out is `sampling`'s. Not a leaf: the menu is one."""

    num_steps: Steps
    solver: Solver | None = None
    guidance_scale: Amount | None = None
    guidance_interval: GuidanceInterval | None = None

    @property
    def is_plain(self) -> bool:
        """Whether it says the number of steps alone."""
        return (self.solver, self.guidance_scale, self.guidance_interval) == (None, None, None)

    def __str__(self) -> str:
        said = self.model_dump(exclude_none=True)
        return "{" + ", ".join(f"{name}: {value}" for name, value in said.items()) + "}"


def step_count(recipe: "int | RecipeKeys") -> int:
    """Of an entry of the menu."""
    return recipe if isinstance(recipe, int) else recipe.num_steps


Menu = Annotated[list[Steps | RecipeKeys], Field(min_length=1), AfterValidator(_each_once)]


class StepBudgets(Section):
    """How a row is denoised: its recipe, mostly the number of steps."""

    choices: Menu | None = picture(
        None,
        "the menu: numbers of steps, or recipes such as {num_steps: 4, guidance_scale: 3, guidance_interval: [0.2, "
        "0.8]}, in any order; null: the policy's own, else 5, 10, ..., 50",
    )
    selector: Literal["fixed", "words", "policy"] = picture(
        "policy", "fixed: one recipe for all; words: by the number of words; policy: by the trained network"
    )
    fixed: Annotated[Steps | RecipeKeys, AfterValidator(_plain)] | None = picture(
        None, "steps of every row under `selector: fixed`, 1 to 1000, or a recipe"
    )
    policy: Place | None = picture(None, "policy file or folder; null: the embedded one")
    price: Amount = price(
        0.3,
        "what steps cost the policy, in the rise of mean quality over its menu; 0: quality at any cost, 1: few steps",
    )
    min: Steps | None = picture(None, "no row gets fewer steps, 1 to 1000; null: no bound")
    max: Steps | None = picture(None, "no row gets more steps, 1 to 1000; null: no bound")
    decision: Literal["argmax", "sample"] = picture(
        "argmax", "argmax: the best budget; sample: drawn from the policy, by the row's id"
    )
    actors: Count = execution(1, "processes that score prompts")
    num_gpus: Amount = execution(0, "GPUs of each of them; 0: they run on CPUs")


class Sampling(Section):
    """How a picture is denoised."""

    solver: Solver = picture("ddim", "ddim, or dpmpp_2m: DPM-Solver++ of second order")
    guidance_scale: Amount = picture(7.5, "classifier-free guidance; 1: none, at half the cost; a row's own wins")
    guidance_interval: GuidanceInterval | None = picture(
        None, "[start, end] of guidance as fractions of the schedule, 0: pure noise, 1: done; null: throughout"
    )
    width: SizePx | None = picture(None, "px, a multiple of 8 up to 4096; null: the checkpoint's; a row's own wins")
    height: SizePx | None = picture(None, "px, a multiple of 8 up to 4096; null: the checkpoint's; a row's own wins")
    timestep_spacing: Literal["leading", "trailing", "linspace"] | None = picture(
        None, "how a budget's steps are spread over the schedule; null: the checkpoint's own"
    )
    compile: bool = picture(
        False, "true: torch.compile the UNet for its one shape; minutes at the start of each actor, then faster calls"
    )
    channels_last: bool | None = picture(None, "memory layout of UNet and VAE; null: channels last on a GPU only")


class Pool(Section):
    """Actors of one kind, which render some or all of the budgets."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=80)] = execution(..., "unique name of the pool")
    budgets: Literal["all"] | PoolSteps = execution("all", "all, or the budgets it serves, in steps")
    actors: Count = execution(1, "actors at most; work starts with the first, and one with nothing left to do is ended")
    num_gpus: Literal["auto"] | Amount = execution(
        "auto",
        "GPUs an actor; auto: 1 where the cluster has GPUs or can start a node with one, 0 on a machine without; "
        "0: no GPU is touched",
    )
    num_cpus: Amount = execution(1, "CPUs an actor; on CPUs also its threads")
    lanes: Literal["auto"] | Annotated[int, Field(ge=2, le=4096)] = execution(
        "auto", "rows of a UNet call; a guided row takes two; auto: by device and size"
    )
    resources: dict[str, Amount] = execution({}, "custom Ray resources an actor, for example {spot: 1}")


class Output(Section):
    """The run folder."""

    path: Place | None = execution(None, "run folder, local or a URL; null: runs/<name of the job file>")
    layout: Literal["files", "webdataset", "parquet", "none"] = picture(
        "files", "files: one object an image; webdataset, parquet: one a shard; none: no images, scores only"
    )
    format: Literal["png", "jpeg", "webp"] = picture("png", "png and webp keep every pixel, jpeg is smallest")
    storage: Storage | None = Field(default=None, description="where the output's store differs from `storage`")


OwnFile = Annotated[str, StringConstraints(min_length=1), AfterValidator(_own_file)]


class Signing(Section):
    """Who signs. Not a leaf: `provenance.c2pa` is one, and a renewed certificate changes no picture."""

    certificate: OwnFile | None = None
    private_key: OwnFile | None = None
    timestamps: Annotated[str, AfterValidator(_no_password), AfterValidator(_http)] | None = None


class Provenance(Section):
    """What a picture's file says of its making; docs/marks.md says who reads it."""

    iptc: bool = picture(True, "true: marked as made by an AI, in IPTC's XMP, with this software and its version")
    parameters: bool = picture(
        True, "true: prompts, steps, sampler, guidance, seed, size and model, as other image tools read them"
    )
    c2pa: Signing | None = picture(
        None,
        "signed Content Credentials: {certificate, private_key, timestamps}: the paths of two PEM files, null: from "
        "STEPTHRIFT_C2PA_CERTIFICATE and STEPTHRIFT_C2PA_PRIVATE_KEY; the URL of a time stamp server, null: none",
    )
    stamp: Annotated[str, AfterValidator(_stamp)] | None = picture(
        None, "module:function that changes each picture's pixels, always alike: a logo, a watermark"
    )


class Scorer(Section):
    """One view of a picture's quality. Not a leaf: the list of them is one."""

    scorer: Annotated[str, AfterValidator(_scorer_kind)]
    name: str | None = None
    path: Place | None = None
    head: Place | None = None
    weight: Annotated[float, Field(allow_inf_nan=False)] = 1.0


class Safety(Section):
    """What a picture must not be, and how much of it is too much. Not a leaf: `safety` is one."""

    scorer: Annotated[str, AfterValidator(_safety_kind)]
    name: str = "safety"
    path: Place | None = None
    head: Place | None = None
    max: Annotated[float, Field(allow_inf_nan=False)]


class ScoreQuantile(Section):
    """A bar by the share of known scores that lie below it. Not a leaf: `tries.bar` is one."""

    quantile: Annotated[float, Field(gt=0, lt=1)]


class Tries(Section):
    """Another try where the picture is poor: the same row with another seed, and the best one is kept."""

    max: Annotated[int, Field(ge=1, le=16)] = picture(
        1, "pictures of a row at most; 1: no second try. A row that gives its seed has one try"
    )
    bar: Literal["auto"] | Annotated[float, Field(allow_inf_nan=False)] | ScoreQuantile = picture(
        "auto",
        "a picture whose quality is below it is tried again. A number, in the units of `quality`; {quantile: 0.4}: the "
        "quality that 40 % of the pictures of `tries.scores` fall below; auto: by the policy",
    )
    scores: Place | None = picture(None, "run folder with scores of one try a row, which a quantile is taken of")
    keep: bool = picture(
        False,
        "true: the pictures that were not chosen are stored, too (layout files); their seeds and scores always are",
    )


Prices = Annotated[
    list[Annotated[float, Field(gt=0, allow_inf_nan=False)]],
    Field(min_length=2, max_length=2),
    AfterValidator(_interval),
]


class Train(Section):
    """How a policy is learned from a rollout's table. Nothing here decides a picture."""

    table: Place | None = execution(None, "run folder of the rollout to learn from; null: output.path")
    path: Place | None = execution(None, "the policy goes to policy/ in this folder; null: the table's run folder")
    quality: dict[str, Annotated[float, Field(allow_inf_nan=False)]] = execution(
        {}, "weights of the table's scorers, for example {clip: 1, fidelity: 0.2}; {}: as they were rolled out"
    )
    recipe: Literal["stepthrift", "adadiff"] = execution(
        "stepthrift", "adadiff: the paper's own reward, plain gradient and optimizer; keys given below still win"
    )
    reward: Literal["priced", "paper"] = execution("priced", "priced: quality - price * cost; paper: AdaDiff's top 3")
    gradient: Literal["sampled", "expected"] = execution("sampled", "sampled: REINFORCE; expected: over all budgets")
    baseline: Literal["leave_one_out", "batch_mean", "none"] = execution(
        "leave_one_out",
        "what a drawn budget's reward is compared with: the row's other draws, the batch's mean, nothing",
    )
    samples: Annotated[int, Field(ge=1, le=1024)] = execution(4, "budgets drawn a row and step")
    entropy: Amount = execution(4.0, "weight of the entropy bonus at the start, in temperatures; 0: no exploration")
    entropy_end: Amount = execution(1.0, "and at the end; 1: scores become the expected quality")
    prices: Prices | None = execution(
        None, "[low, high] that it learns for, in rises of the table's mean quality; null: where prices change budgets"
    )
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = execution(
        None, "softness of the policy, in rises; null: half the spread of the budgets"
    )
    epochs: Count = execution(60, "passes over the prompts")
    batch_size: Count = execution(256, "prompts a step, of all workers together")
    learning_rate: Annotated[float, Field(gt=0, le=1)] = execution(1e-3, "learning rate of AdamW, at its highest")
    seed: Annotated[int, Field(ge=0, lt=2**32)] = execution(0, "of the weights and the draws")
    width: Annotated[int, Field(ge=4, le=4096)] = execution(256, "of the network, a multiple of heads")
    layers: Annotated[int, Field(ge=1, le=24)] = execution(3, "self-attention layers of the network")
    heads: Annotated[int, Field(ge=1, le=64)] = execution(4, "attention heads a layer")
    held_out: Annotated[float, Field(gt=0, lt=1)] = execution(
        0.1, "share of the prompts by which the best weights are kept"
    )
    workers: Count = execution(1, "Ray Train workers; their number does not change the result")
    gpu: bool = execution(False, "true: one GPU a worker")
    max_failures: Annotated[int, Field(ge=0)] = execution(3, "times that killed workers are replaced")


class Variant(Section):
    """Another way to render the held-out prompts. Not a leaf: the list of them is one."""

    solver: Literal["ddim", "dpmpp_2m"] = "ddim"
    guidance_scale: Amount


class Evaluate(Section):
    """How a policy is judged. Nothing here decides a picture."""

    table: Place | None = execution(
        None, "run folder of a rollout of other prompts to judge on; null: the share of the table kept from training"
    )
    share: Annotated[float, Field(gt=0, lt=1)] = execution(
        0.25, "share of the table's prompts kept from training for that; unused where evaluate.table is set"
    )
    judge: str | None = execution(
        None, "name of a scorer that training does not count; null: the first of weight 0 that is none of ours, if any"
    )
    margin: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = execution(
        None, "quality one may lose and call it not worse, in the judge's units; null: 1 % of its range"
    )
    prices: Annotated[list[Amount], Field(min_length=1)] | None = execution(
        None, "prices to judge at; null: those of the policy's calibration"
    )
    decode_lane_steps: Amount | None = execution(
        None,
        "judge as if decode and score of a picture cost so many lane-steps, as on another model; null: as measured",
    )
    variants: list[Variant] = execution(
        [],
        "what a user could do instead: each {solver, guidance_scale} is rolled out on the held-out prompts, into "
        "variants/ of the run folder",
    )


class Failures(Section):
    """When a job with failed rows counts as done, and how long nothing may happen."""

    max_fraction: Annotated[float, Field(ge=0, le=1)] = execution(
        0.01, "share of rows that may fail, 0: none, 1: all; above it the exit code is 3"
    )
    stop_early: bool = execution(
        True,
        "true: the run ends with exit code 1 where more than ten times that share of the rows that reached an engine "
        "failed, looked at from two shards and 50 such rows on; false: it goes on to its end",
    )
    row_timeout_s: Annotated[float, Field(ge=1)] = execution(
        900.0,
        "seconds that an engine with rows in hand may take without a UNet call or a picture; then its process ends, "
        "and after three times each row is tried alone and the one at fault fails",
    )
    no_progress_s: Annotated[float, Field(ge=1)] = execution(
        3600.0, "seconds without any progress until the run ends with exit code 1; waiting for actors does not count"
    )


class JobConfig(Section):
    """A batch image generation job: prompts in, pictures out, with the steps that pay."""

    version: Literal[1] = execution(1, "version of this file's format")
    model: Model = Model()
    input: Input
    steps: StepBudgets = StepBudgets()
    sampling: Sampling = Sampling()
    quality: list[Scorer] = picture(
        [],
        "what is scored and how it counts, each {scorer, name, path, head, weight}. scorer: clip (path: a CLIPModel's "
        "folder, hub id or URL), aesthetic (head: a linear head in safetensors, too), fidelity (in a rollout: to the "
        "same seed at the largest budget), or module:function of images and prompts; weight 0: scored, not counted",
    )
    safety: Safety | None = picture(
        None,
        "{scorer, name, path, head, max}: a picture that scores above max is not delivered. It is tried again where "
        "`tries` allows; then its row is `filtered`. scorer: module:function, or aesthetic (path, head): a linear head "
        "on a CLIPModel; null: pictures are not looked at",
    )
    tries: Tries = Tries()
    pools: Annotated[list[Pool], Field(min_length=1)] = [Pool(name=DEFAULT_POOL)]
    output: Output = Output()
    provenance: Provenance = Provenance()
    storage: Storage = Storage()
    failures: Failures = Failures()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()

    def fingerprint(self) -> dict[str, Any]:
        """Every picture key, dotted, with its value: equal in all runs that share a run folder.

        Of `provenance.c2pa` only whether pictures are signed.
        """
        data = self.model_dump(mode="json", exclude={"provenance": {"c2pa": set(Signing.model_fields)}})
        return {name: _value_at(data, name) for name, kind in leaf_kinds().items() if kind == "picture"}

    @property
    def counts_quality(self) -> bool:
        """Whether a picture's quality is known, so that it may lie below a bar."""
        return any(scorer.weight for scorer in self.quality)

    def dump(self) -> str:
        """The resolved job file: reading it gives this very config."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


def leaf_kinds() -> dict[str, str]:
    """Dotted name of every leaf of the job file, lists without index (`pools.actors`), and its kind."""
    return dict(_leaves(JobConfig, ""))


def changed_picture_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Picture keys that differ, each with its old and new value.

    A key that one side lacks has its default there, and marks that the old one lacks were not made.
    """
    defaults = JobConfig(input=Input(path="?")).fingerprint()
    old, new = defaults | UNMARKED | dict(old), defaults | dict(new)
    return {key: (old[key], new[key]) for key in new if key in old and old[key] != new[key]}


def _leaves(section: type[BaseModel], prefix: str) -> Iterator[tuple[str, str]]:
    for name, info in section.model_fields.items():
        extra = info.json_schema_extra
        if isinstance(extra, dict):
            yield prefix + name, str(extra["kind"])
        else:
            yield from _leaves(section_of(info.annotation), f"{prefix}{name}.")


def section_of(annotation: Any) -> type[BaseModel]:
    """The section that a key holds, or a list of which."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    (inner,) = (found for found in get_args(annotation) if found is not type(None))
    return section_of(inner)


def _value_at(data: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        data = data[part]
    return data
