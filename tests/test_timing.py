import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jamgym.errors import ConfigError, LookaheadError
from jamgym.testing import ToyCodec
from jamgym.timing import Timing

timings = st.builds(
    Timing,
    t_f=st.integers(-30, 30),
    k=st.integers(1, 12),
    hop_samples=st.integers(1, 900),
    sample_rate=st.just(16_000),
    frames=st.integers(1, 120),
    d_in=st.integers(0, 2000),
    d_out=st.integers(0, 2000),
    allow_lookahead=st.just(True),
)


def test_numbers_by_hand():
    timing = Timing(t_f=-25, k=5, hop_samples=640, sample_rate=16_000, frames=302, d_in=100, d_out=60)
    assert timing.num_calls == 61
    assert timing.chunk(60) == (300, 302)
    assert [timing.visible(i) for i in (0, 4, 5, 6, 60)] == [0, 0, 0, 5, 275]
    assert timing.release(6) == 5 * 640 + 100
    assert timing.deadline(30) == 30 * 640 - 60
    assert timing.budget == timing.deadline(30) - timing.release(6) == 25 * 640 - 160
    assert [timing.recency_gap(n) for n in (0, 4, 5)] == [25, 29, 25]


@given(timings)
def test_chunks_tile_the_episode_once(timing):
    frames = [n for call in range(timing.num_calls) for n in range(*timing.chunk(call))]
    assert frames == list(range(timing.frames))
    assert all(start < end for start, end in map(timing.chunk, range(timing.num_calls)))


@given(timings)
def test_visible_is_clipped_and_monotone_and_equals_its_vector_form(timing):
    calls = np.arange(timing.num_calls + 1)
    visible = timing.visible(calls)
    assert (np.diff(visible) >= 0).all() and visible.min() >= 0 and visible.max() <= timing.frames
    assert visible.tolist() == [timing.visible(int(call)) for call in calls]
    for call in calls.tolist():
        assert timing.visible(call) == min(max(call * timing.k + timing.t_f, 0), timing.frames)


@given(timings)
def test_budget_is_derived_from_release_and_deadline(timing):
    for call in range(timing.num_calls):
        gap = timing.deadline(call * timing.k) - timing.release(call)
        assert gap == max(timing.budget, 0)
        if timing.playable_live:
            # The newest visible frame is complete, captured and encoded at the release.
            assert timing.release(call) == (call * timing.k + timing.t_f) * timing.hop_samples + timing.d_in


@given(timings, st.data())
def test_schedule_equals_the_recursion(timing, data):
    latency = data.draw(st.lists(st.integers(0, 5000), min_size=timing.num_calls, max_size=timing.num_calls))
    starts, finishes = timing.schedule(np.array([latency, latency[::-1]]))
    for row, values in enumerate((latency, latency[::-1])):
        before = -(10**12)
        for call, ticks in enumerate(values):
            start = max(timing.release(call), before)
            before = start + ticks
            assert (starts[row, call], finishes[row, call]) == (start, before)


def test_lookahead_must_be_allowed_and_the_message_tells_the_limit():
    with pytest.raises(LookaheadError, match=r"largest t_f that can be played live is -1.*: --allow_lookahead true\)"):
        Timing(t_f=0, k=1, hop_samples=640, sample_rate=16_000, frames=10, d_out=1)
    assert Timing(t_f=-1, k=1, hop_samples=640, sample_rate=16_000, frames=10, d_out=640).budget == 0
    assert Timing(t_f=0, k=1, hop_samples=640, sample_rate=16_000, frames=10).playable_live
    oracle = Timing(t_f=25, k=1, hop_samples=640, sample_rate=16_000, frames=10, allow_lookahead=True)
    assert not oracle.playable_live and oracle.budget == -25 * 640


def test_codec_lookahead_and_buffers_are_charged():
    codec = ToyCodec()
    codec.lookahead_samples, codec.decoder_lookahead_samples = 300, 200
    timing = Timing.of(codec, -5, 5, 50, capture_samples=30, output_samples=20)
    assert (timing.d_in, timing.d_out) == (330, 220)
    assert timing.budget == 5 * 640 - 550


@pytest.mark.parametrize("change", [{"k": 0}, {"frames": 0}, {"d_in": -1}, {"hop_samples": 0}])
def test_impossible_values(change):
    values = {"t_f": -5, "k": 1, "hop_samples": 640, "sample_rate": 16_000, "frames": 10}
    with pytest.raises(ConfigError, match=next(iter(change))):
        Timing(**{**values, **change})
