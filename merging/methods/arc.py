"""Interpolation along the great circle through two vectors."""

import torch


def arc_coefficients(cosine: torch.Tensor, t: float, straight: torch.Tensor) -> torch.Tensor:
    """What `t` of the way along the arc from a to b is in a and b: float64 [..., 2].

    `sin((1 - t) theta) / sin theta` and `sin(t theta) / sin theta` (Shoemake 1985),
    or `1 - t` and `t` where `straight`. `cosine`: float64 [...], of the angle theta.
    """
    theta = torch.acos(torch.where(straight, 0.0, cosine.clamp(-1, 1)))
    arc = torch.stack([torch.sin((1 - t) * theta), torch.sin(t * theta)], dim=-1)
    line = torch.tensor([1 - t, t], dtype=torch.float64)
    return torch.where(straight[..., None], line, arc / torch.sin(theta)[..., None])
