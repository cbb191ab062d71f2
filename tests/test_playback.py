import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jamgym.errors import ConfigError
from jamgym.playback import GAP, NOTHING, ON_TIME, REPEATED, EventLogBook, check_late_policy, resolve_slots
from jamgym.timing import Timing

TIMING = Timing(t_f=-2, k=4, hop_samples=10, sample_rate=1000, frames=10)
SILENCE = np.array([0, 0], dtype=np.int16)


def resolve(finish, first=4, frames=10, policy="silence", last=(-1, (0, 0)), timing=TIMING):
    emitted = (100 + np.arange(timing.k * 2)).reshape(1, timing.k, 2)
    slots = resolve_slots(
        np.array([finish]),
        np.array([first]),
        emitted,
        np.array([frames]),
        timing,
        policy,
        SILENCE,
        np.array([last[1]], dtype=np.int16),
        np.array([last[0]]),
    )
    return emitted[0], slots


def test_finishing_exactly_at_the_deadline_is_on_time():
    emitted, slots = resolve(40)
    assert slots.status.tolist() == [[ON_TIME] * 4] and slots.lateness.tolist() == [[0] * 4]
    assert slots.source.tolist() == [[4, 5, 6, 7]] and np.array_equal(slots.codes[0], emitted)


def test_on_time_frames_of_a_late_chunk_are_played_and_late_ones_are_not():
    emitted, slots = resolve(55)
    assert slots.status.tolist() == [[GAP, GAP, ON_TIME, ON_TIME]]
    assert slots.lateness.tolist() == [[15, 5, 0, 0]] and slots.source.tolist() == [[-1, -1, 6, 7]]
    assert np.array_equal(slots.codes[0, 2:], emitted[2:]) and (slots.codes[0, :2] == 0).all()


def test_repeat_plays_the_last_frame_again_and_is_a_gap_when_there_is_none():
    emitted, slots = resolve(55, policy="repeat", last=(3, (7, 8)))
    assert slots.status.tolist() == [[REPEATED, REPEATED, ON_TIME, ON_TIME]]
    assert slots.source.tolist() == [[3, 3, 6, 7]] and slots.codes[0, :2].tolist() == [[7, 8], [7, 8]]
    assert slots.lateness.tolist() == [[15, 5, 0, 0]]
    _, slots = resolve(55, policy="repeat")
    assert slots.status.tolist() == [[GAP, GAP, ON_TIME, ON_TIME]] and slots.source.tolist() == [[-1, -1, 6, 7]]


@pytest.mark.parametrize("finish", [0, 10_000])
def test_frames_beyond_the_episode_are_nothing(finish):
    _, slots = resolve(finish, first=8)
    assert (slots.status[0, :2] != NOTHING).all() and slots.status[0, 2:].tolist() == [NOTHING, NOTHING]
    assert slots.source[0, 2:].tolist() == [-1, -1] and slots.lateness[0, 2:].tolist() == [0, 0]
    assert (slots.codes[0, 2:] == 0).all()


@given(st.integers(-100, 200), st.integers(0, 100), st.sampled_from(["silence", "repeat"]))
def test_later_finish_gives_a_superset_of_late_frames(finish, more, policy):
    _, early = resolve(finish, policy=policy, last=(3, (7, 8)))
    _, late = resolve(finish + more, policy=policy, last=(3, (7, 8)))
    assert ((early.lateness > 0) <= (late.lateness > 0)).all()
    assert np.array_equal(late.status == ON_TIME, late.lateness == 0)


def test_event_log_keeps_calls_in_order_and_rows_apart():
    book = EventLogBook(2, 3, 4)
    for call, finish in enumerate((0, 55, 200)):
        _, one = resolve(finish, first=4 * call)
        pair = type(one)(*(np.concatenate([getattr(one, f)] * 2) for f in ("codes", "source", "status", "lateness")))
        two = np.array([finish, finish])
        book.append(two - 3, two - 2, two, np.array([2, 2]), pair)
    book.clear(np.array([1]))
    log = book.row(0, frames=10)
    assert log.finish.tolist() == [0, 55, 200] and log.response.tolist() == [3, 3, 3]
    assert len(log.status) == 10 and log.status.tolist() == [1] * 4 + [GAP, GAP, 1, 1] + [GAP, GAP]
    assert (log.late_frames, log.underruns, log.longest_gap) == (4, 4, 2)
    assert len(book.row(1, 10).finish) == 0 and book.row(1, 10).longest_gap == 0


def test_unknown_late_policy():
    with pytest.raises(ConfigError, match="Did you mean 'silence'"):
        check_late_policy("silense")
