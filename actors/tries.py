"""The tries of one row: their seeds, whether there is another, which picture is kept, and bars without a policy.

Bars that know the prompt are `actors.offers`.
"""

import math
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

SEED_BITS = 32  # torch's noise on a CPU reads the lowest 32 bits of a seed alone


def try_seed(seed: int, number: int) -> int:
    """The seed of a row's try: its own for try 0, then 32 bits of a keyed hash of (row seed, try).

    A row's tries never share a seed, counted in the 32 bits that noise depends on. Two of n rows and tries share one
    with a chance of n^2 / 2^33, as the seeds of rows without one do. ValueError: a negative number.
    """
    if number < 0:
        raise ValueError(f"a try's number is 0 or more, not {number}")
    seeds, salt = [seed], 0
    while len(seeds) <= number:
        digest = blake2b(f"{seed}|{salt}".encode(), digest_size=SEED_BITS // 8, person=b"try").digest()
        drawn, salt = int.from_bytes(digest, "big"), salt + 1
        if drawn not in (seeds[0] % 2**SEED_BITS, *seeds[1:]):
            seeds.append(drawn)
    return seeds[number]


def tries_again(scores: Sequence[float], bar: float, max_tries: int) -> bool:
    """Whether a row with these tries gets another: none passes and there is one left. NaN, a failed try, never passes.

    A bar of -inf asks for one picture that scores anything; a failed try may be repeated there, too.
    """
    return len(scores) < max_tries and not any(score >= bar for score in scores)


def kept_try(scores: Sequence[float]) -> int | None:
    """The number of the try that is kept: the best, the first of equals; None where all failed (NaN)."""
    sound = [(-score, number) for number, score in enumerate(scores) if not math.isnan(score)]
    return min(sound)[1] if sound else None


def quantile_bar(scores: np.ndarray, quantile: float) -> float:
    """The bar that a share `quantile` of calibration scores falls below, in their units.

    The same for every prompt: what a job without a policy has. ValueError: outside [0, 1), no score, not finite.
    """
    values = np.asarray(scores, np.float64).ravel()
    if not len(values) or not np.isfinite(values).all():
        raise ValueError("a bar needs finite calibration scores, one at least")
    if not 0 <= quantile < 1:
        raise ValueError(f"quantile {quantile} must lie in [0, 1)")
    return float(np.quantile(values, quantile))
