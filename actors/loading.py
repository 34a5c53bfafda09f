"""Loads a model of diffusers or transformers; a missing weight is an error, never a random tensor.

Both libraries fill what is missing with random numbers and go on.
"""

from typing import Any

import diffusers
import torch
import transformers
from safetensors import SafetensorError

from actors.weights import CheckpointError


def load_whole(model_class: Any, folder: str, **options: Any) -> Any:
    """`from_pretrained` on local safetensors. Raises CheckpointError where a weight would be initialised at random."""
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()  # a bar of each component would bury what a command says
    try:
        model, info = model_class.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True, **options
        )
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, NotImplementedError, SafetensorError) as error:
        line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise CheckpointError(f"{folder}: {model_class.__name__} cannot be loaded ({line:.200})") from error
    lost = [*info["missing_keys"], *(str(key) for key in info["mismatched_keys"])]
    if lost or any(parameter.is_meta for parameter in model.parameters()):
        count, first = len(lost), min(lost, default="a parameter")
        raise CheckpointError(
            f"{folder}: {count} weights of {model_class.__name__} were made up, the first {first}: download it again"
        )
    return model
