import numpy as np
import pytest
import torch
from scipy import ndimage

from jamgym_rewards.hpss import hpss_masks, median_filter, merge, ranks, soft_mask


@pytest.mark.parametrize("taps", [1, 3, 5, 7, 9, 11, 13, 17, 21, 31, 33, 63])
@pytest.mark.parametrize("shape", [(2, 7, 9), (1, 40, 33), (3, 1, 4)])
def test_medians_are_exact(taps, shape):
    x = torch.rand(shape, generator=torch.Generator().manual_seed(taps))
    x[0, 0, :2] = 0.5  # equal values
    for dim in (-1, -2):
        # Not scipy's filter: its answer is another one where the window is many times longer than the array.
        pad = [(0, 0), *((taps // 2, taps // 2) if axis == dim else (0, 0) for axis in (-2, -1))]
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(x.numpy(), pad, mode="symmetric"), taps, axis=dim)
        assert np.array_equal(median_filter(x, taps, dim).numpy(), np.median(windows, axis=-1))


def test_medians_equal_scipys():
    x = torch.rand(65, 70, generator=torch.Generator().manual_seed(0))
    for dim, size in ((-1, (1, 31)), (-2, (31, 1))):
        expected = ndimage.median_filter(x.numpy(), size=size, mode="reflect")
        assert np.array_equal(median_filter(x, 31, dim).numpy(), expected)


@pytest.mark.parametrize("sizes", [(1, 1), (2, 1), (4, 3), (5, 2), (8, 7), (16, 15), (3, 0)])
def test_merging_sorts(sizes):
    rows = torch.rand(sum(sizes), 50, generator=torch.Generator().manual_seed(0))
    parts = [list(part.sort(dim=0).values) for part in rows.split(list(sizes))]
    assert torch.equal(torch.stack(merge(*parts)), rows.sort(dim=0).values)


@pytest.mark.parametrize("sizes", [(16, 12), (4, 4), (5, 0), (3, 8)])
def test_ranks_are_those_of_the_merged_list(sizes):
    rows = torch.rand(sum(sizes), 50, generator=torch.Generator().manual_seed(0))
    parts = [list(part.sort(dim=0).values) for part in rows.split(list(sizes))]
    assert torch.equal(torch.stack(ranks(*parts, 1, 5)), rows.sort(dim=0).values[1:5])


def test_a_tone_is_harmonic_and_a_click_is_percussive():
    x = torch.zeros(2, 100, 90)
    x[0, 40] = 1.0
    x[1, :, 50] = 1.0
    harmonic, percussive = hpss_masks(x)
    assert (harmonic[0, 40] == 1.0).all() and (percussive[1, :, 50] == 1.0).all()
    assert (harmonic[0, 60] == 0.5).all()  # nothing there: shared out evenly
    torch.testing.assert_close(harmonic + percussive, torch.ones_like(x))


def test_soft_mask_by_hand():
    mask = soft_mask(torch.tensor([3.0, 0.0, 0.0, 1e-30]), torch.tensor([4.0, 2.0, 0.0, 1e-30]))
    np.testing.assert_allclose(mask.numpy(), [9 / 25, 0.0, 0.5, 0.5], rtol=1e-6)
    assert soft_mask(torch.tensor([2.0]), torch.tensor([1.0]), power=1.0).item() == pytest.approx(2 / 3)


def test_rows_do_not_touch_each_other():
    x = torch.rand(3, 60, 50, generator=torch.Generator().manual_seed(1))
    together = hpss_masks(x)[0]
    assert torch.equal(together[1], hpss_masks(x[1])[0])
    assert hpss_masks(x[None])[0].shape == (1, 3, 60, 50)
    assert torch.equal(hpss_masks(x[None])[1][0], hpss_masks(x)[1])


def test_bad_arguments():
    with pytest.raises(ValueError, match="odd"):
        median_filter(torch.rand(3, 3), 4, -1)
    with pytest.raises(ValueError, match="-2 or -1"):
        median_filter(torch.rand(3, 3, 3), 3, 0)
