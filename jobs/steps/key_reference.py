"""Explains every key of the job file: its default, its kind, what it means, and an example that can be typed."""

import json
import textwrap
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from jobs.job_file.keys import JobConfig, section_of

EXAMPLES = {
    "version": "1",
    "model.device": "cuda:1",
    "input.csv.delimiter": "';'",
    "input.csv.skip_spaces": "true",
    "input.limit": "10",
    "steps.fixed": "20",
    "steps.min": "10",
    "steps.max": "30",
    "sampling.width": "768",
    "sampling.height": "512",
    "sampling.channels_last": "true",
    "train.temperature": "0.05",
    "evaluate.margin": "0.005",
    "input.path": "s3://bucket/prompts/*.parquet",
    "input.columns": "{prompt: headline, brand: null}",
    "input.drop": "[image]",
    "input.encoding": "cp1252",
    "input.storage": "{endpoint_url: https://s3.example.com}",
    "model.path": "s3://bucket/stable-diffusion-v1-5",
    "model.revision": "main",
    "model.variant": "fp16",
    "steps.choices": "[10, 15, 20, 30, 50]",
    "steps.policy": "s3://bucket/runs/table/policy",
    "sampling.guidance_interval": "[0.2, 0.8]",
    "quality": "[{scorer: clip, path: openai/clip-vit-large-patch14}]",
    "tries.bar": "{quantile: 0.4}",
    "tries.scores": "s3://bucket/runs/look",
    "pools.num_gpus": "1",
    "pools.lanes": "32",
    "pools.budgets": "[10, 15]",
    "pools.name": "spot",
    "pools.resources": "{spot: 1}",
    "output.path": "s3://bucket/runs/spring",
    "output.storage": "{endpoint_url: https://s3.example.com}",
    "safety": '{scorer: "my.judge:nudity", max: 0.5}',
    "evaluate.decode_lane_steps": "3.5",
    "provenance.c2pa": "{certificate: chain.pem, private_key: key.pem}",
    "provenance.stamp": "brand:logo",
    "storage.endpoint_url": "https://s3.example.com",
    "storage.region": "eu-central-1",
    "storage.put_options": "{ServerSideEncryption: AES256}",
    "train.table": "s3://bucket/runs/table",
    "train.path": "s3://bucket/policies/spring",
    "train.quality": "{clip: 1, fidelity: 0.2}",
    "train.prices": "[0.1, 1]",
    "evaluate.table": "s3://bucket/runs/held-out",
    "evaluate.judge": "mine",
    "evaluate.prices": "[0.1, 0.3, 1]",
    "evaluate.variants": "[{solver: dpmpp_2m, guidance_scale: 5}]",
}
KINDS = """\
picture keys must stay the same when a run is resumed, execution keys may
change with every command, price changes only by planning again."""


def reference(width: int = 80) -> str:
    """All keys, by section, in so many columns."""
    lines = ["Keys of a job file (YAML). On the command line: -s KEY=VALUE. Kinds:", *KINDS.splitlines()]
    for name, info in JobConfig.model_fields.items():
        lines += ["", *_of(name, info, width)]
    return "\n".join(lines)


def _of(name: str, info: FieldInfo, width: int) -> list[str]:
    if _is_leaf(info):
        return _entry(name, info, width)
    section = section_of(info.annotation)
    listed = get_origin(info.annotation) is list
    head = f"{name}: {'a list; ' if listed else ''}{(section.__doc__ or '').splitlines()[0]}"
    lines = textwrap.wrap(head, width)
    for key, inner in section.model_fields.items():
        lines += _of(f"{name}.{key}", inner, width) if _is_leaf(inner) else _nested(f"{name}.{key}", inner, width)
    return lines


def _nested(name: str, info: FieldInfo, width: int) -> list[str]:
    """A section in a section: storage is explained once."""
    if info.description:
        return [
            f"  {name}",
            *_wrapped(f"{info.description}. Its keys are those of storage", width),
            *_example(name, info),
        ]
    return _of(name, info, width)


def _is_leaf(info: FieldInfo) -> bool:
    return isinstance(info.json_schema_extra, dict)


def _entry(name: str, info: FieldInfo, width: int) -> list[str]:
    extra = info.json_schema_extra
    kind = extra["kind"] if isinstance(extra, dict) else ""
    default = "required" if info.is_required() else f"default {_yaml(info.default)}"
    return [f"  {name}  ({default}; {kind})", *_wrapped(info.description or "", width), *_example(name, info)]


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, initial_indent="      ", subsequent_indent="      ")


def _example(name: str, info: FieldInfo) -> list[str]:
    return [f"      example: {name.replace('pools.', 'pools.0.')}={example(name, info)}"]


def example(name: str, info: FieldInfo) -> str:
    """A value other than the default, as it is typed."""
    return EXAMPLES.get(name) or _other_value(info)


def _other_value(info: FieldInfo) -> str:
    words = [word for each in (info.annotation, *get_args(info.annotation)) for word in _literals(each)]
    if others := [word for word in words if word != info.default]:
        return _yaml(others[-1])
    if isinstance(info.default, bool):
        return _yaml(not info.default)
    if isinstance(info.default, float):
        return f"{info.default / 2:g}" if info.default else "0.5"
    return str(info.default + 1)


def _literals(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def _yaml(value: Any) -> str:
    if isinstance(value, BaseModel | list | dict):
        return json.dumps(value) if not isinstance(value, BaseModel) else "its keys"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
