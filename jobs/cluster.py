"""How a verb gets its Ray: a local one of its own, or the cluster at an address."""

import logging
import os
from pathlib import Path
from typing import Any

from jobs.source import ConfigError, Fault

ROOT = Path(__file__).resolve().parent.parent
START_REMEDY = (
    "is the cluster up, and is its token at hand (RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or ~/.ray/auth_token)?"
)


def start_ray(address: str | None, debug: bool = False) -> None:
    """Connect to `address`, else to the cluster this process was submitted to, else start a local Ray.

    Raises ConfigError where the address does not answer.
    """
    import ray
    from ray.data import DataContext

    if ray.is_initialized():
        return
    options: dict[str, Any] = {"log_to_driver": debug, "logging_level": logging.INFO if debug else logging.ERROR}
    address = address or ("auto" if os.environ.get("RAY_ADDRESS") else "local")
    if address == "local":
        options |= {"include_dashboard": False}
    elif "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:  # a submitted job has its working directory already
        options |= {"runtime_env": {"working_dir": str(ROOT)}}
    try:
        ray.init(address=address, **options)
    except (ConnectionError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            [Fault(f"--address {address}", f"no Ray cluster answers: {reason} ({START_REMEDY})")]
        ) from None
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    if not debug:  # what ends a dataset comes as an exception, too
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
