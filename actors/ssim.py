"""Computes the structural similarity of two pictures, after Wang et al. 2004. Pure torch.

Shapes: N pictures, H x W px.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

WINDOW_PX, SIGMA_PX = 11, 1.5
C1, C2 = 0.01**2, 0.03**2  # of a range of 1


def ssim(images: Tensor, references: Tensor) -> Tensor:
    """(N,) in [-1, 1], 1 for equal pictures; images and references (N, H, W, 3) uint8.

    A Gaussian window of 11 px (less in a smaller picture) at every place where it fits whole, the mean over places and
    colours. ValueError where shapes differ.
    """
    if images.shape != references.shape:
        raise ValueError(f"a picture of {tuple(images.shape[1:])} has a reference of {tuple(references.shape[1:])}")
    x, y = (pixels.permute(0, 3, 1, 2).float() / 255 for pixels in (images, references))  # (N, 3, H, W)
    mean_x, mean_y = _smoothed(x), _smoothed(y)
    var_x, var_y = _smoothed(x * x) - mean_x**2, _smoothed(y * y) - mean_y**2
    covariance = _smoothed(x * y) - mean_x * mean_y
    likeness = (2 * mean_x * mean_y + C1) * (2 * covariance + C2)
    return (likeness / ((mean_x**2 + mean_y**2 + C1) * (var_x + var_y + C2))).mean(dim=(1, 2, 3))


def _smoothed(x: Tensor) -> Tensor:
    """Gaussian means (N, 3, H', W') at the places where the window fits."""
    window = min(WINDOW_PX, *((side - 1) // 2 * 2 + 1 for side in x.shape[2:]))
    at = torch.arange(window, dtype=x.dtype, device=x.device) - window // 2
    weights = torch.exp(-(at**2) / (2 * SIGMA_PX**2))
    weights = (weights / weights.sum()).expand(x.shape[1], 1, 1, -1)  # (3, 1, 1, window)
    x = F.conv2d(x, weights, groups=x.shape[1])
    return F.conv2d(x, weights.transpose(2, 3), groups=x.shape[1])
