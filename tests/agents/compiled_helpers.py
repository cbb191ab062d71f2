"""What the tests of compiled loops share."""

import numpy as np
import pytest
import torch

from jamgym_agents.compiled.compiling import converts_halves
from jamgym_agents.eight_bit import round_to_eight_bits
from jamgym_agents.sampling import Sampling

from .test_streaming import FRAMES

#: Without it, a processor would call a function that is not there.
needs_halves = pytest.mark.skipif(not converts_halves(), reason="the processor does not convert half precision")
#: Ways in which compiled loops read matrices.
KINDS = [np.float32, pytest.param(np.int16, marks=needs_halves), np.int8]


def heard_by(rows, seed=2, frames=FRAMES):
    return torch.randint(0, 16, (rows, frames, 2), generator=torch.Generator().manual_seed(seed))


def first_chunk(stream, k=4):
    state = stream.initial_state(2)
    stream.hear(state, heard_by(2)[:, :5], torch.tensor([5, 5]))
    return stream.generate(state, k, Sampling(), torch.Generator().manual_seed(3))


def rounded(module, kind=np.int8):
    """Give `module` weights that compiled loops read as `kind`, as a file would; they no longer learn."""
    if kind == np.int8:
        round_to_eight_bits(module)
    if kind == np.int16:
        module.load_state_dict({name: value.half().float() for name, value in module.state_dict().items()})
    return module.requires_grad_(False)
