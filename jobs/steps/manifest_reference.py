"""Explains every column of the manifest: its type, what it means, and its unit."""

import textwrap
from typing import Any

from pipelines.run.schema import MANIFEST_FIELDS

MEANINGS = {
    "id": "the row's own id: that of the input, else a hash of what the row says",
    "prompt_id": "id of the prompt; the images of one prompt share it",
    "sample": "number of the image among those of its prompt, from 0",
    "shard": "shard that the row was rendered in",
    "prompt": "the prompt, as given",
    "negative_prompt": "the negative prompt, as given; null: none",
    "category": "the category, as given",
    "seed": "seed of the picture that was kept",
    "seed_planned": "seed of the first try",
    "seed_pinned": "whether the input gave the seed",
    "width": "of the picture, px",
    "height": "of the picture, px",
    "guidance_scale": "classifier-free guidance; 1: none",
    "num_steps": "denoising steps of the picture",
    "action_probability": "with which the policy chose these steps; null: no policy, or pinned by the row",
    "policy_version": "the policy that chose the steps",
    "price": "price of steps that the policy was asked with (steps.price); no money",
    "status": "ok, failed or filtered",
    "error_type": "of a failed row: the kind of its fault",
    "error_message": "of a failed row: its fault in words",
    "attempts": "attempts to render its shard, up to the one that counts",
    "tries": "each picture that was made for the row: seed, steps, scores, and its uri where it was kept",
    "uri": "the picture, relative to the run folder; <file>#<name> in packed layouts",
    "offset": "of the picture in its tar, bytes; null elsewhere",
    "media_type": "of the picture, for example image/png",
    "format": "png, jpeg or webp",
    "bytes": "length of the picture's file before it is signed, bytes",
    "sha256": "of the picture's file before it is signed, hexadecimal",
    "scores": "of the picture, one a scorer, in the scorer's own unit",
    "quality": "weighted sum of the scores, by the weights of `quality`",
    "lane_steps": "rows of UNet calls that all tries took; a guided step takes two",
    "seconds": "share of the device's time that all tries took, s",
    "render_class": "model, device, precision, size, lanes, solver, torch, encoder: within one class bytes are equal",
    "render_key": "hash of all that decides the picture",
    "plan_version": "generation of the plan, and its fitting",
    "revision": "how often the row's manifest was replaced by repairs",
    "created_at": "when the row ended, UTC",
    "truncated": "whether the prompt is longer than the text encoder reads",
    "negative_truncated": "whether the negative prompt is",
    "score_error": "which scorer gave no number, and why",
    "bar": "quality below which another seed was tried; null: never",
    "recipe_name": "recipe of the menu; null: the row pins steps that are not in it",
    "solver": "solver of the picture",
    "guidance_interval": "[start, end] of guidance, fractions of the schedule; null: throughout",
    "plan_key": "hash of all that was to decide the row, known when it was planned",
    "signed_bytes": "length of the signed file that is stored, bytes; null: not signed",
    "signed_sha256": "of the signed file that is stored, hexadecimal; null: not signed",
}


def manifest_columns() -> dict[str, Any]:
    """Name, Arrow type and meaning of every column, in order; the input's own columns follow them."""
    return {
        "columns": [
            {"name": field.name, "type": str(field.type), "meaning": MEANINGS[field.name]} for field in MANIFEST_FIELDS
        ]
    }


def manifest_text(width: int = 80) -> str:
    """The same for people, in so many columns."""
    lines = ["Columns of manifest/*.parquet; the input's own columns follow them:"]
    for column in manifest_columns()["columns"]:
        kind = column["type"] if len(column["type"]) <= 40 else column["type"].partition("<")[0]
        lines.append(f"  {column['name']}  ({kind})")
        lines += textwrap.wrap(column["meaning"], width, initial_indent="      ", subsequent_indent="      ")
    return "\n".join(lines)
