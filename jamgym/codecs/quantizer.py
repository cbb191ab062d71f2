"""Residual vector quantization with EMA codebooks and dead-code restart.

After van den Oord et al. 2017 and Zeghidour et al. 2021.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ResidualVectorQuantizer(nn.Module):
    """Q codebooks of V entries in D dimensions; each quantizes what the ones before it left over.

    Args:
        num_codebooks: Q.
        cardinality: V.
        dim: D.
        decay: EMA decay of cluster sizes and sums.
        restart_below: A code used less often than this per batch (EMA) is moved onto a random input.
    """

    codebooks: Tensor
    cluster_size: Tensor
    cluster_sum: Tensor

    def __init__(
        self, num_codebooks: int, cardinality: int, dim: int, decay: float = 0.98, restart_below: float = 0.25
    ) -> None:
        super().__init__()
        self.num_codebooks, self.cardinality, self.dim = num_codebooks, cardinality, dim
        self.decay, self.restart_below = decay, restart_below
        self.register_buffer("codebooks", torch.randn(num_codebooks, cardinality, dim) * 0.1)
        self.register_buffer("cluster_size", torch.zeros(num_codebooks, cardinality))
        self.register_buffer("cluster_sum", torch.zeros(num_codebooks, cardinality, dim))

    def encode(self, latents: Tensor) -> Tensor:
        """Quantize `(..., D)` into codes `(..., Q)` int64."""
        residual = latents.reshape(-1, self.dim)
        codes = []
        for q in range(self.num_codebooks):
            index = self._nearest(residual, q)
            codes.append(index)
            residual = residual - self.codebooks[q][index]
        return torch.stack(codes, dim=-1).reshape(*latents.shape[:-1], self.num_codebooks)

    def decode(self, codes: Tensor) -> Tensor:
        """Sum the entries of `(..., Q)` codes into latents `(..., D)`."""
        out = self.codebooks[0][codes[..., 0]]
        for q in range(1, codes.shape[-1]):
            out = out + self.codebooks[q][codes[..., q]]
        return out

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantize `(B, T, D)` with straight-through gradients.

        Returns:
            Quantized latents `(B, T, D)`, commitment loss, share of live codes `(Q,)`. In training mode
            the codebooks follow the inputs.
        """
        flat = latents.reshape(-1, self.dim).float()
        residual, total = flat, torch.zeros_like(flat)
        commitment = flat.new_zeros(())
        live = []
        for q in range(self.num_codebooks):
            index = self._nearest(residual.detach(), q)
            chosen = self.codebooks[q][index]
            commitment = commitment + F.mse_loss(residual, chosen)
            if self.training:
                self._follow(residual.detach(), index, q)
            total = total + chosen
            residual = residual - chosen
            live.append((self.cluster_size[q] >= self.restart_below).float().mean())
        quantized = flat + (total - flat).detach()
        return quantized.reshape(latents.shape), commitment, torch.stack(live)

    def _nearest(self, vectors: Tensor, q: int) -> Tensor:
        table = self.codebooks[q]
        return (table.square().sum(1) - 2.0 * vectors @ table.T).argmin(dim=1)

    @torch.no_grad()
    def _follow(self, vectors: Tensor, index: Tensor, q: int) -> None:
        count = torch.zeros(self.cardinality).index_add_(0, index, torch.ones(len(index)))
        sums = torch.zeros(self.cardinality, self.dim).index_add_(0, index, vectors)
        self.cluster_size[q].mul_(self.decay).add_(count, alpha=1 - self.decay)
        self.cluster_sum[q].mul_(self.decay).add_(sums, alpha=1 - self.decay)
        size = self.cluster_size[q].clamp_min(1e-5).unsqueeze(1)
        self.codebooks[q] = self.cluster_sum[q] / size
        dead = self.cluster_size[q] < self.restart_below
        if bool(dead.any()):
            picks = vectors[torch.randint(len(vectors), (int(dead.sum()),))]
            self.codebooks[q][dead] = picks
            self.cluster_sum[q][dead] = picks
            self.cluster_size[q][dead] = 1.0
