"""What the tests of compiled loops share."""

import torch

from jamgym_agents.eight_bit import round_to_eight_bits
from jamgym_agents.sampling import Sampling

from .test_streaming import FRAMES


def heard_by(rows, seed=2, frames=FRAMES):
    return torch.randint(0, 16, (rows, frames, 2), generator=torch.Generator().manual_seed(seed))


def first_chunk(stream, k=4):
    state = stream.initial_state(2)
    stream.hear(state, heard_by(2)[:, :5], torch.tensor([5, 5]))
    return stream.generate(state, k, Sampling(), torch.Generator().manual_seed(3))


def rounded(module):
    """Give `module` weights that a file has rounded to eight bits; they no longer learn."""
    round_to_eight_bits(module)
    return module.requires_grad_(False)
