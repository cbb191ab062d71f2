import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jamgym.errors import ConfigError
from jamgym.event_log import EventLogBook
from jamgym.playback import (
    CONCEALED,
    DELAYED,
    GAP,
    NEVER_EMITTED,
    NOTHING,
    ON_TIME,
    REPEATED,
    Chunks,
    LastPlayed,
    PlaybackRule,
    check_late_policy,
    resolve_slots,
)
from jamgym.timing import Timing

HOP = 10
TIMING = Timing(t_f=-2, k=4, hop_samples=HOP, sample_rate=1000, frames=10)
SILENCE = np.array([0, 0], dtype=np.int16)


def resolve(finish, first=4, frames=10, policy="silence", last=(-1, (0, 0)), salvage="frame", size=4, slip=0):
    emitted = (100 + np.arange(4 * 2)).reshape(1, 4, 2)
    chunks = Chunks(
        emitted, np.array([first]), np.array([size]), np.array([frames]), np.array([finish]), np.array([slip])
    )
    before = LastPlayed(np.array([last[1]], dtype=np.int16), np.array([last[0]]))
    return emitted[0], resolve_slots(chunks, PlaybackRule(policy, salvage), TIMING, SILENCE, before)


def test_finishing_exactly_at_the_deadline_is_on_time():
    emitted, slots = resolve(40)
    assert slots.status.tolist() == [[ON_TIME] * 4] and slots.lateness.tolist() == [[0] * 4]
    assert slots.source.tolist() == [[4, 5, 6, 7]] and np.array_equal(slots.codes[0], emitted)


def test_on_time_frames_of_a_late_chunk_are_played_and_late_ones_are_not():
    emitted, slots = resolve(55)
    assert slots.status.tolist() == [[GAP, GAP, ON_TIME, ON_TIME]]
    assert slots.lateness.tolist() == [[15, 5, 0, 0]] and slots.source.tolist() == [[-1, -1, 6, 7]]
    assert np.array_equal(slots.codes[0, 2:], emitted[2:]) and (slots.codes[0, :2] == 0).all()


def test_without_salvage_a_chunk_is_due_as_a_whole():
    _, slots = resolve(41, salvage="chunk")
    assert slots.status.tolist() == [[GAP] * 4] and slots.lateness.tolist() == [[1] * 4]
    _, slots = resolve(40, salvage="chunk")
    assert slots.status.tolist() == [[ON_TIME] * 4]


@pytest.mark.parametrize(("policy", "status"), [("repeat", REPEATED), ("conceal", CONCEALED)])
def test_repeat_plays_the_last_frame_again_and_is_a_gap_when_there_is_none(policy, status):
    emitted, slots = resolve(55, policy=policy, last=(3, (7, 8)))
    assert slots.status.tolist() == [[status, status, ON_TIME, ON_TIME]]
    assert slots.source.tolist() == [[3, 3, 6, 7]] and slots.codes[0, :2].tolist() == [[7, 8], [7, 8]]
    assert slots.lateness.tolist() == [[15, 5, 0, 0]]
    _, slots = resolve(55, policy=policy)
    assert slots.status.tolist() == [[GAP, GAP, ON_TIME, ON_TIME]] and slots.source.tolist() == [[-1, -1, 6, 7]]


def test_a_stall_waits_whole_frames_and_then_plays_everything():
    emitted, slots = resolve(55, policy="stall")
    assert slots.stalled.tolist() == [2] and slots.first.tolist() == [6]
    assert slots.source.tolist() == [[4, 5, 6, 7]] and slots.status.tolist() == [[DELAYED] * 4]
    assert slots.lateness.tolist() == [[20] * 4] and np.array_equal(slots.codes[0], emitted)
    # A player that is behind already has that much more time.
    _, slots = resolve(55, policy="stall", slip=2, frames=30)
    assert slots.stalled.tolist() == [0] and slots.first.tolist() == [6] and slots.status.tolist() == [[DELAYED] * 4]
    _, slots = resolve(40, policy="stall")
    assert slots.stalled.tolist() == [0] and slots.status.tolist() == [[ON_TIME] * 4]
    # The episode's slots end where they end, however long the wait.
    _, slots = resolve(10_000, policy="stall")
    assert slots.stalled.tolist() == [6] and slots.status.tolist() == [[NOTHING] * 4]


@pytest.mark.parametrize("finish", [0, 10_000])
def test_frames_beyond_the_episode_are_nothing(finish):
    _, slots = resolve(finish, first=8)
    assert (slots.status[0, :2] != NOTHING).all() and slots.status[0, 2:].tolist() == [NOTHING, NOTHING]
    assert slots.source[0, 2:].tolist() == [-1, -1] and slots.lateness[0, 2:].tolist() == [0, 0]
    assert (slots.codes[0, 2:] == 0).all()


@pytest.mark.parametrize("policy", ["silence", "repeat", "stall"])
def test_padding_beyond_a_rows_own_k_is_nothing(policy):
    emitted, slots = resolve(40, size=3, policy=policy)
    assert slots.status.tolist() == [[ON_TIME] * 3 + [NOTHING]] and slots.source.tolist() == [[4, 5, 6, -1]]
    assert np.array_equal(slots.codes[0, :3], emitted[:3]) and (slots.codes[0, 3] == 0).all()


@given(st.integers(-100, 200), st.integers(0, 100), st.sampled_from(["silence", "repeat", "conceal"]))
def test_later_finish_gives_a_superset_of_late_frames(finish, more, policy):
    _, early = resolve(finish, policy=policy, last=(3, (7, 8)))
    _, late = resolve(finish + more, policy=policy, last=(3, (7, 8)))
    assert ((early.lateness > 0) <= (late.lateness > 0)).all()
    assert np.array_equal(late.status == ON_TIME, late.lateness == 0)


def test_event_log_keeps_calls_in_order_and_rows_apart():
    book = EventLogBook(2, 3, 12, pad=2)
    for call, finish in enumerate((0, 55, 200)):
        _, slots = resolve(finish, first=4 * call)
        two = np.array([finish, finish])
        book.append(np.array([call, call]), np.array([4 * call] * 2), two - 2, two)
        part = slice(2 + 4 * call, 6 + 4 * call)
        book.status[:, part], book.source[:, part], book.lateness[:, part] = slots.status, slots.source, slots.lateness
    bigger = EventLogBook(2, 5, 20, pad=2)
    bigger.copy_from(book)
    bigger.clear(np.array([1]))
    for log in (book.row(0, 10, TIMING), bigger.row(0, 10, TIMING)):
        assert log.finish.tolist() == [0, 55, 200] and log.latency.tolist() == [2, 2, 2]
        assert log.release.tolist() == [-20, 20, 60] and log.response.tolist() == [20, 35, 140]
        assert len(log.status) == 10 and log.status.tolist() == [1] * 4 + [GAP, GAP, 1, 1] + [GAP, GAP]
        assert (log.late_frames, log.underruns, log.skipped_frames, log.longest_gap) == (4, 4, 0, 2)
        assert [log.slots_of(call) for call in range(3)] == [slice(0, 4), slice(4, 8), slice(8, 10)]
    empty = bigger.row(1, 0, TIMING)
    assert len(empty.finish) == 0 and empty.longest_gap == 0
    # What nobody has written counts as played on time; before frame 0 there is nothing.
    fresh = bigger.row(1, 12, TIMING)
    assert (fresh.status == ON_TIME).all() and fresh.source.tolist() == list(range(12)) and not fresh.lateness.any()
    assert not bigger.status[:, :2].any() and (bigger.source[:, :2] == -1).all()


def test_skipped_slots_are_flagged_but_not_late():
    book = EventLogBook(1, 2, 6)
    book.append(*(np.array([value]) for value in (0, 0, 0, 5)))
    book.status[0] = [ON_TIME, ON_TIME, REPEATED, GAP, ON_TIME, NOTHING]
    book.lateness[0] = [0, 0, NEVER_EMITTED, NEVER_EMITTED, 0, 0]
    log = book.row(0, 5, TIMING)
    assert (log.late_frames, log.skipped_frames, log.underruns, log.longest_gap) == (0, 2, 1, 2)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("silense",), "Did you mean 'silence'"),
        (("silence", "frames"), "Did you mean 'frame'"),
        (("silence", "frame", "queu"), "Did you mean 'queue'"),
        (("stall", "chunk"), "never act"),
        (("stall", "frame", "skip"), "never act"),
    ],
)
def test_impossible_rules(arguments, match):
    with pytest.raises(ConfigError, match=match):
        PlaybackRule(*arguments)
    if len(arguments) == 1:
        with pytest.raises(ConfigError, match=match):
            check_late_policy(*arguments)
