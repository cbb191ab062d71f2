"""The clips, the weights and the file of `scripts/make_cocola_golden.py`."""

import runpy
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent
GOLDEN = HERE / "golden" / "cocola.npz"
NUMBERS = runpy.run_path(str(HERE.parents[1] / "scripts" / "make_cocola_golden.py"))


def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN) as file:
        return {name: file[name] for name in file.files}


def fill(network: torch.nn.Module) -> torch.nn.Module:
    """Give `network` the weights that the golden figures belong to."""
    weight = NUMBERS["weight"]
    state = {
        name: torch.from_numpy(weight(name, tuple(tensor.shape))) if tensor.dim() else tensor
        for name, tensor in network.state_dict().items()
    }
    network.load_state_dict(state)
    return network.eval()
