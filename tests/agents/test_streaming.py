from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jamgym_agents.kv_cache import HEARD
from jamgym_agents.sampling import Sampling, guide, transform
from jamgym_agents.streaming import StreamingDecoder
from jamgym_agents.visibility import attention_masks

from .helpers import tiny_decoder

FRAMES = 23


def clip(low, high):
    return max(low, min(high, FRAMES))


def play(decoder, heard, t_f, k, delays, sampling, late=0.0, seed=0, capacity=4, make=StreamingDecoder):
    """Stream rows that begin `delays` calls later than the first; returns played codes and log-probabilities.

    With `late`, that share of the frames is replaced after it was emitted, and the stream is amended. `make` takes the
    decoder and the capacity.
    """
    rows, generator = len(heard), torch.Generator().manual_seed(seed)
    chance = torch.Generator().manual_seed(seed + 1)
    stream = make(decoder, capacity)  # small, so that it has to grow
    state = stream.initial_state(rows, sampling.guided)
    instrument = torch.arange(rows) % 5
    calls = -(-FRAMES // k)
    length = calls * k
    played = torch.zeros(rows, length, heard.shape[2], dtype=torch.int64)
    scores = torch.zeros(rows, length, heard.shape[2])
    whole = torch.zeros(rows, length, dtype=torch.bool)
    call = torch.zeros(rows, dtype=torch.int64)
    count_before = torch.zeros(rows, dtype=torch.int64)
    latest, emitted = None, torch.full((rows,), k)
    for turn in range(calls + max(delays)):
        begins = torch.tensor([turn == delay for delay in delays])
        state.reset(begins, instrument)
        call[begins], count_before[begins] = 0, 0
        if latest is not None and late:
            stream.amend(state, latest, emitted * (state.played[:rows] > 0), emitted)
        visible = (call * k + t_f).clamp(0, FRAMES)
        fresh = visible - count_before
        block = torch.zeros(rows, max(int(fresh.max()), 1), heard.shape[2], dtype=torch.int64)
        for row in range(rows):
            block[row, : fresh[row]] = heard[row, count_before[row] : visible[row]]
        stream.hear(state, block, fresh)
        count_before = visible
        chunk = stream.generate(state, k, sampling, generator)
        replaced = torch.rand(rows, k, generator=chance) < late
        latest = torch.where(replaced.unsqueeze(2), torch.zeros_like(chunk.codes), chunk.codes)
        for row in range(rows):
            if turn >= delays[row] and call[row] < calls:
                part = slice(int(call[row]) * k, (int(call[row]) + 1) * k)
                played[row, part], scores[row, part] = latest[row], chunk.log_probs[row]
                whole[row, part] = not bool(replaced[row].any())
        call += 1
    return played[:, :FRAMES], scores[:, :FRAMES], whole[:, :FRAMES], instrument


def teacher_forced(decoder, heard, played, instrument, t_f, k, sampling):
    rows = len(heard)
    with torch.no_grad():
        logits = decoder(heard, played, instrument, torch.full((rows,), t_f), torch.full((rows,), k)).logits
        if sampling.guided:
            never = torch.full((rows,), -heard.shape[1])
            deaf = decoder(heard, played, instrument, never, torch.full((rows,), k)).logits
            logits = guide(logits, deaf, sampling.guidance)
    return transform(logits, sampling).gather(-1, played.unsqueeze(-1)).squeeze(-1)


@pytest.mark.parametrize("late", [0.0, 0.2])
@pytest.mark.parametrize("t_f", [-25, -7, 0, 3, 25])
@pytest.mark.parametrize("k", [1, 4, 5, 25])
@pytest.mark.parametrize("aligned, guidance", [(0, 1.0), (3, 1.0), (0, 2.5), (3, 0.0)])
def test_streaming_equals_teacher_forcing(t_f, k, late, aligned, guidance):
    decoder = tiny_decoder(aligned_frames=aligned, aligned_past=aligned)
    torch.manual_seed(2)
    heard = torch.randint(0, 16, (3, FRAMES, 2))
    sampling = Sampling(guidance=guidance)
    played, scores, whole, instrument = play(decoder, heard, t_f, k, [0, 2, 1], sampling, late, seed=t_f + 50)
    expected = teacher_forced(decoder, heard, played, instrument, t_f, k, sampling)
    if late == 0.0:
        assert whole.all()
    difference = (scores - expected).abs()[whole]
    assert difference.numel() == 0 or difference.max() < 1e-4


@settings(max_examples=60, deadline=None)
@given(
    t_f=st.integers(-25, 25),
    k=st.integers(1, 9),
    window=st.one_of(st.none(), st.integers(3, 30)),
    sinks=st.integers(0, 5),
    delays=st.lists(st.integers(0, 4), min_size=1, max_size=4),
    late=st.sampled_from([0.0, 0.3]),
    capacity=st.integers(1, 40),
    seed=st.integers(0, 2**20),
    aligned=st.integers(0, 4),
    aligned_past=st.integers(0, 9),
    guidance=st.sampled_from([1.0, 3.0]),
)
def test_streaming_equals_teacher_forcing_with_any_window(
    t_f, k, window, sinks, delays, late, capacity, seed, aligned, aligned_past, guidance
):
    window = window and max(window, sinks + 1, aligned_past + 1)
    decoder = tiny_decoder(window=window, sinks=sinks, aligned_frames=aligned, aligned_past=aligned_past)
    heard = torch.randint(0, 16, (len(delays), FRAMES, 2), generator=torch.Generator().manual_seed(seed))
    sampling = Sampling(guidance=guidance)
    delays = [delay - min(delays) for delay in delays]
    played, scores, whole, instrument = play(decoder, heard, t_f, k, delays, sampling, late, seed, capacity)
    expected = teacher_forced(decoder, heard, played, instrument, t_f, k, sampling)
    difference = (scores - expected).abs()[whole]
    assert difference.numel() == 0 or difference.max() < 1e-4


@pytest.mark.parametrize(("window", "sinks"), [(12, 0), (12, 3), (6, 2)])
def test_frames_beyond_the_window_are_forgotten_and_sinks_are_not(window, sinks):
    decoder = tiny_decoder(window=window, sinks=sinks, layers=1)
    heard, played = torch.randint(0, 16, (2, 1, FRAMES, 2), generator=torch.Generator().manual_seed(1))
    conditions = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64), torch.ones(1, dtype=torch.int64)
    before = decoder.trunk(heard, played, *conditions)[1]
    for frame in range(FRAMES - 1):
        other = heard.clone()
        other[:, frame] = (other[:, frame] + 5) % 16
        moved = (decoder.trunk(other, played, *conditions)[1] - before).abs().amax((0, 2)) > 1e-6
        n = torch.arange(FRAMES)
        assert torch.equal(moved, (n > frame) & ((n < frame + window) | (frame < sinks)))


def test_memory_stays_flat_once_the_window_is_full():
    decoder = tiny_decoder(window=8, sinks=2)
    stream = StreamingDecoder(decoder, capacity=4)
    state = stream.initial_state(2)
    sizes = []
    for _ in range(60):
        stream.hear(state, torch.zeros(2, 3, 2, dtype=torch.int64), torch.tensor([3, 3]))
        stream.generate(state, 3, Sampling())
        sizes.append(state.capacity)
    assert sizes[-1] == sizes[10] <= 2 + 8 + 3 + 2 * 3 and int(state.played[0]) == 180


def test_the_last_growth_of_the_memory_takes_all_that_the_window_needs():
    stream = StreamingDecoder(tiny_decoder(window=16, sinks=2), capacity=4)
    state = stream.initial_state(1)
    sizes = []
    for _ in range(60):
        stream.generate(state, 1, Sampling())
        stream.hear(state, torch.zeros(1, 1, 2, dtype=torch.int64), torch.ones(1, dtype=torch.int64))
        sizes.append(state.capacity)
    assert list(dict.fromkeys(sizes)) == [4, 8, 2 + 16 + 2 * 1]


def test_a_row_that_hears_further_ahead_later_finds_its_window_again():
    # The ring turns, then has to become longer: what it holds moves to other places.
    decoder = tiny_decoder(window=8, sinks=2)
    heard = torch.randint(0, 16, (2, 40, 2), generator=torch.Generator().manual_seed(3))
    stream = StreamingDecoder(decoder, capacity=4)
    state = stream.initial_state(2)
    generator, counts = torch.Generator().manual_seed(0), [2, 2, 2, 2, 2, 2, 2, 2, [1] * 14, 2, 8]
    codes, scores, visible, sizes = [], [], [], []
    at = 0
    for count in counts:
        for part in count if isinstance(count, list) else [count]:
            stream.hear(state, heard[:, at : at + part], torch.tensor([part, part]))
            at += part
        chunk = stream.generate(state, 2, Sampling(), generator)
        codes.append(chunk.codes)
        scores.append(chunk.log_probs)
        visible += [at, at]
        sizes.append(state.capacity)
    assert sizes[8] > sizes[7]
    played, length = torch.cat(codes, 1), heard.shape[1]
    rest = length - len(visible)
    masks = attention_masks(torch.tensor([visible + [at] * rest] * 2), 8, 2)
    with mock.patch("jamgym_agents.decoder.attention_masks", lambda *_: masks):
        zeros = torch.zeros(2, dtype=torch.int64)
        padded = torch.nn.functional.pad(played, (0, 0, 0, rest))
        hidden = decoder.trunk(heard, padded, zeros, zeros, zeros + 2)[1][:, : len(visible)]
    expected = transform(decoder.depth_logits(hidden, played), Sampling()).gather(-1, played.unsqueeze(-1)).squeeze(-1)
    assert (torch.cat(scores, 1) - expected).abs().max() < 1e-4


def test_late_frames_are_seen_by_later_chunks():
    # The comparison above means something only if the history matters: it has to fail on the emitted codes.
    decoder = tiny_decoder()
    heard = torch.randint(0, 16, (3, FRAMES, 2), generator=torch.Generator().manual_seed(2))
    played, scores, whole, instrument = play(decoder, heard, -7, 1, [0, 0, 0], Sampling(), late=0.3)
    other = played.clone()
    other[~whole] = 7
    expected = teacher_forced(decoder, heard, other, instrument, -7, 1, Sampling())
    assert (scores - expected).abs()[whole].max() > 1e-2


@pytest.mark.parametrize("window", [250, None])
def test_an_amendment_that_changes_nothing_changes_nothing(window):
    decoder = tiny_decoder(window=window)
    stream = StreamingDecoder(decoder)
    heard = torch.randint(0, 16, (2, 6, 2))
    logs = []
    for amend in (False, True):
        state = stream.initial_state(2)
        generator = torch.Generator().manual_seed(0)
        chunk = None
        for call in range(3):
            if amend and chunk is not None:
                stream.amend(state, chunk.codes, torch.tensor([4, 4]), torch.tensor([4, 4]))
            stream.hear(state, heard[:, 2 * call : 2 * call + 2], torch.tensor([2, 2]))
            chunk = stream.generate(state, 4, Sampling(), generator)
        logs.append(chunk.log_probs)
    assert torch.allclose(*logs, atol=1e-5)


def test_an_amendment_leaves_rows_alone_of_which_nothing_was_decided():
    decoder = tiny_decoder()
    stream = StreamingDecoder(decoder)
    logs = []
    for amend in (False, True):
        state = stream.initial_state(2)
        generator = torch.Generator().manual_seed(0)
        stream.generate(state, 4, Sampling(), generator)
        if amend:
            stream.amend(state, torch.full((2, 4, 2), 7), torch.tensor([4, 0]), torch.tensor([4, 4]))
        logs.append(stream.generate(state, 4, Sampling(), generator).log_probs)
    assert torch.equal(logs[0][1], logs[1][1]) and not torch.allclose(logs[0][0], logs[1][0])


def test_generating_nothing_is_an_error():
    stream = StreamingDecoder(tiny_decoder())
    with pytest.raises(ValueError, match="k is 0"):
        stream.generate(stream.initial_state(1), 0, Sampling())


def test_guidance_leaves_no_trace_of_what_is_heard_at_weight_0():
    decoder = tiny_decoder(aligned_frames=2)
    heard = torch.randint(0, 16, (2, 2, FRAMES, 2), generator=torch.Generator().manual_seed(0))
    one, other = (play(decoder, part, 5, 3, [0, 0], Sampling(guidance=0.0))[0] for part in heard)
    assert torch.equal(one, other)
    one, other = (play(decoder, part, 5, 3, [0, 0], Sampling(guidance=2.0))[0] for part in heard)
    assert not torch.equal(one, other)


def test_rows_that_hear_nothing_are_not_given_the_input():
    stream = StreamingDecoder(tiny_decoder(aligned_frames=2))
    state = stream.initial_state(2, guided=True)
    stream.hear(state, torch.randint(1, 16, (2, 3, 2)), torch.tensor([3, 2]))
    assert state.heard.tolist() == [3, 2, 0, 0]
    heard_slots = state.keys[:, :, :, HEARD::2]
    assert heard_slots[:, :2].any() and not heard_slots[:, 2:].any()
    assert state.codes[:2].any() and not state.codes[2:].any()


def test_a_state_without_room_for_guidance_is_refused():
    stream = StreamingDecoder(tiny_decoder())
    with pytest.raises(ValueError, match="guided=False"):
        stream.generate(stream.initial_state(1), 1, Sampling(guidance=2.0))
    with pytest.raises(ValueError, match="guided=True"):
        stream.generate(stream.initial_state(1, guided=True), 1, Sampling())
