from dataclasses import asdict, replace

import pytest
import torch
from torch.nn import functional as F

from jamgym.checkpoint import load_tensors, save_tensors
from jamgym.testing import ToyCodec
from jamgym_agents.checkpoint import load_decoder, new_decoder, save_decoder
from jamgym_agents.lookahead import coming_frames
from jamgym_agents.visibility import visible_frames

from .helpers import TINY, tiny_decoder

FORESEEING = replace(TINY, dropout=0.0, lookahead_frames=4)
FRAMES = 20


def foreseeing(seed=0):
    torch.manual_seed(seed)
    return new_decoder(FORESEEING, ToyCodec()).eval()


def conditions(rows, t_f, k):
    return torch.full((rows,), t_f), torch.full((rows,), k)


def codes(rows=2, seed=0):
    return torch.randint(0, 16, (2, rows, FRAMES, 2), generator=torch.Generator().manual_seed(seed))


def test_what_counts_by_hand():
    # T = 6, t_f = -1, k = 3: frames 0 to 2 have heard nothing, frames 3 to 5 input frames 0 and 1.
    visible = visible_frames(6, *conditions(1, -1, 3))
    assert visible.tolist() == [[0, 0, 0, 2, 2, 2]]
    index, counts = coming_frames(visible, torch.tensor([0, 4]), 3)
    assert index.tolist() == [[0, 1, 2], [4, 5, 5]]
    assert counts.tolist() == [[[True, True, True], [True, True, False]]]
    # t_f = +2, k = 1: frame n has heard n + 1, so only n + 2 on counts.
    _, counts = coming_frames(visible_frames(6, *conditions(1, 2, 1)), torch.tensor([0, 3, 5]), 4)
    assert counts.tolist() == [[[False, False, True, True], [False, False, True, False], [False] * 4]]


@pytest.mark.parametrize(("t_f", "k"), [(-5, 1), (-5, 5), (0, 5), (2, 3)])
def test_hidden_input_changes_no_prediction(t_f, k):
    decoder = foreseeing()
    heard, played = codes()
    frame = 7
    visible = int(visible_frames(FRAMES, *conditions(1, t_f, k))[0, frame])
    changed = heard.clone()
    changed[:, visible:] = (changed[:, visible:] + 5) % 16

    def predict(x):
        states = conditions(2, t_f, k)
        return decoder(
            x, played, torch.arange(2), *states, logit_frames=torch.tensor([frame]), lookahead=True
        ).lookahead

    before, after = predict(heard), predict(changed)
    expected = max(0, min(4, frame + 4 - max(visible, frame)))
    assert len(before.codes) == 2 * expected > 0
    assert torch.equal(before.logits, after.logits)
    # The targets are the changed input, or the test would say nothing.
    first = max(visible, frame)
    assert torch.equal(after.codes.view(2, -1), changed[:, first : frame + 4, 0])


def test_learns_what_can_be_foreseen():
    # Each code is the one before plus 3, so what was heard up to 6 frames ago tells what comes.
    decoder = foreseeing()
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(150):
        start = torch.randint(0, 16, (16, 1), generator=generator)
        heard = ((start + 3 * torch.arange(FRAMES)) % 16).unsqueeze(2).repeat(1, 1, 2)
        played = torch.randint(0, 16, heard.shape, generator=generator)
        at = torch.arange(10, FRAMES)
        output = decoder(heard, played, torch.zeros(16, dtype=torch.long), *conditions(16, -5, 1), None, at, True)
        loss = F.cross_entropy(output.lookahead.logits, output.lookahead.codes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] > 2.4 and losses[-1] < 0.7


def test_the_head_leaves_the_other_weights_and_outputs_as_they_are():
    torch.manual_seed(0)
    plain, decoder = new_decoder(replace(FORESEEING, lookahead_frames=0), ToyCodec()).eval(), foreseeing()
    state = decoder.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in plain.state_dict().items())
    assert not [key for key in plain.state_dict() if key.startswith("lookahead")]
    heard, played = codes()
    one, two = (d(heard, played, torch.arange(2), *conditions(2, 0, 3)) for d in (plain, decoder))
    assert torch.equal(one.logits, two.logits) and two.lookahead is None


def test_checkpoints_with_and_without_the_head(tmp_path):
    save_decoder(tmp_path / "new.safetensors", foreseeing(), ToyCodec().version, {})
    assert asdict(load_decoder(tmp_path / "new.safetensors", ToyCodec()).config)["lookahead_frames"] == 4
    save_decoder(tmp_path / "plain.safetensors", tiny_decoder(), ToyCodec().version, {})
    tensors, metadata = load_tensors(tmp_path / "plain.safetensors")
    assert '"lookahead_frames": 0' in metadata["architecture"]
    metadata["architecture"] = metadata["architecture"].replace(', "lookahead_frames": 0', "")
    save_tensors(tmp_path / "old.safetensors", tensors, metadata)
    assert load_decoder(tmp_path / "old.safetensors", ToyCodec()).lookahead is None
