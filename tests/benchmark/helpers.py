"""A toy metric for the benchmark's tests."""

import numpy as np

from jamgym.testing import ToyCodec, ToyReward


class Match(ToyReward):
    """Share of frames in which played and target, encoded, have the same tone; `bonus` is added."""

    name = "match"

    def __init__(self, bonus: float = 0.0):
        super().__init__(needs=("target",))
        self.codec, self.bonus = ToyCodec(), bonus

    def score(self, windows):
        played, target = self.codec.encode(windows.played), self.codec.encode(windows.target)
        return (self.bonus + (played[:, :, 1] == target[:, :, 1]).mean(axis=1)).astype(np.float32)
