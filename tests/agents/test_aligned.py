import pytest
import torch

from jamgym.testing import ToyCodec
from jamgym_agents.aligned import AlignedInput
from jamgym_agents.checkpoint import load_decoder, save_decoder
from jamgym_agents.visibility import visible_frames

from .helpers import tiny_decoder


def loud(frames=3, past=0):
    module = AlignedInput(4, 6, past, frames)
    torch.nn.init.normal_(module.project.weight)
    return module


@pytest.mark.parametrize("past, ahead", [(0, 3), (2, 3), (3, 0), (9, 1)])
def test_each_position_is_given_the_visible_frames_around_it(past, ahead):
    module, frames = loud(ahead, past), 8
    latents = torch.randn(1, frames, 4)
    visible = visible_frames(frames, torch.tensor([2]), torch.tensor([4]))  # 2, 2, 2, 2, 6, 6, 6, 6
    before = module.whole(latents, visible)
    for frame in range(frames):
        other = latents.clone()
        other[:, frame] += 1.0
        moved = (module.whole(other, visible) - before)[0].abs().amax(1) > 1e-6
        expected = [n - past <= frame < n + ahead and frame < visible[0, n] for n in range(frames)]
        assert moved.tolist() == expected


def test_whether_a_frame_is_seen_is_told_apart_from_silence():
    module, latents = loud(1), torch.zeros(1, 2, 4)
    first, second = module.whole(latents, torch.tensor([[1, 1]]))[0]
    assert first.abs().sum() > 0 and (second == 0).all()


def test_what_is_hidden_may_be_anything():
    latents = torch.full((1, 4, 4), torch.nan)
    assert (loud().whole(latents, torch.zeros(1, 4, dtype=torch.int64)) == 0).all()


def test_a_new_network_begins_as_one_without(tmp_path):
    plain, with_it = tiny_decoder(), tiny_decoder(aligned_frames=3)
    torch.nn.init.zeros_(with_it.aligned.project.weight)
    codes, at = torch.randint(0, 16, (1, 9, 2)), torch.tensor([5])
    arguments = codes, codes, torch.tensor([0]), at, at
    assert torch.equal(plain(*arguments).logits, with_it(*arguments).logits)
    save_decoder(tmp_path / "d.safetensors", with_it, ToyCodec().version, {})
    assert load_decoder(tmp_path / "d.safetensors", ToyCodec()).config.aligned_frames == 3
