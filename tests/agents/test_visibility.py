import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jamgym.testing import ToyCodec
from jamgym.timing import Timing
from jamgym_agents.visibility import attention_masks, visible_frames


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.integers(-35, 35), st.integers(1, 12))
def test_what_is_visible_is_what_the_environment_releases(frames, t_f, k):
    import numpy as np

    visible = visible_frames(frames, torch.tensor([t_f]), torch.tensor([k]))[0].numpy()
    timing = Timing.of(ToyCodec(), t_f, k, frames, allow_lookahead=True)
    calls = np.arange(frames) // k
    assert (visible == timing.visible(calls, np.full(frames, frames))).all()


def test_mask_by_hand():
    # T = 3, t_f = -1, k = 2: V = 0, 0, 1.
    masks = attention_masks(visible_frames(3, torch.tensor([-1]), torch.tensor([2])))
    assert all(set(mask.unique().tolist()) <= {0.0, -torch.inf} for mask in masks)
    heard, both = ((mask == 0).int().tolist() for mask in (masks[0], masks[1][0, 0]))
    assert heard == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert both == [[0, 0, 0, 1, 0, 0], [0, 0, 0, 1, 1, 0], [1, 0, 0, 1, 1, 1]]


def test_window_and_sinks_by_hand():
    # T = 5, everything heard, a window of 2 frames and one sink: n sees n - 1, n and 0.
    masks = attention_masks(torch.full((1, 5), 5), window=2, sinks=1)
    heard, both = ((mask == 0).int().tolist() for mask in (masks[0], masks[1][0, 0]))
    own = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 0, 1, 1, 0], [1, 0, 0, 1, 1]]
    assert heard == own
    # Input ahead of the output is within the window however far ahead it is.
    ahead = [[1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [1, 0, 1, 1, 1], [1, 0, 0, 1, 1]]
    assert both == [first + second for first, second in zip(ahead, own, strict=True)]


def test_rows_have_their_own_conditions():
    visible = visible_frames(4, torch.tensor([0, 2]), torch.tensor([1, 4]))
    assert visible.tolist() == [[0, 1, 2, 3], [2, 2, 2, 2]]
