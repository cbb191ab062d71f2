"""The input around an output frame, given to its position directly.

Attention finds it too, but has to learn where to look among inputs of which another part is visible for every (t_f, k).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class AlignedInput(nn.Module):
    """Embeds, for each output frame n, the input frames n - P to n + A - 1, as far as its call may use them.

    It starts at 0, so that a network begins as it would without.

    Args:
        latent_dim: D, of the codec.
        dim: Width C.
        past: P.
        frames: A.
    """

    def __init__(self, latent_dim: int, dim: int, past: int, frames: int) -> None:
        super().__init__()
        self.past, self.frames = past, frames
        self.project = nn.Linear((past + frames) * (latent_dim + 1), dim, bias=False)
        nn.init.zeros_(self.project.weight)

    def places(self, positions: Tensor) -> Tensor:
        """Return the input frames `(..., P + A)` around output frames at `positions` `(...)`; some may not exist."""
        return positions.unsqueeze(-1) + torch.arange(-self.past, self.frames, device=positions.device)

    def forward(self, latents: Tensor, places: Tensor, visible: Tensor) -> Tensor:
        """Embed what may be used of the input around M output frames.

        Args:
            latents: `(B, M, P + A, D)` of the input frames at `places`; of those that do not exist, any.
            places: `(B, M, P + A)` of `places`; without B for all sequences alike.
            visible: `(B, M)` input frames that each output frame may use, or `(B, 1)`.

        Returns:
            `(B, M, C)`.
        """
        seen = ((places >= 0) & (places < visible.unsqueeze(-1))).unsqueeze(-1)
        # where, not a product: what is hidden must not be seen even if it is not finite.
        shown = torch.where(seen, latents, 0.0)
        return self.project(torch.cat([shown, seen.to(latents.dtype)], dim=-1).flatten(2))

    def whole(self, latents: Tensor, visible: Tensor) -> Tensor:
        """Return `(B, T, C)` for all T frames of `latents` `(B, T, D)`, given `visible_frames` `(B, T)`."""
        places = self.places(torch.arange(latents.shape[1], device=latents.device))
        padded = F.pad(latents, (0, 0, self.past, max(self.frames - 1, 0)))
        windows = padded.unfold(1, self.past + self.frames, 1).transpose(2, 3)[:, : latents.shape[1]]
        return self(windows, places, visible)
