import numpy as np
import pytest

from jamgym.corpus import INSTRUMENTS, Song, Stem, Truth, active, active_share, instrument_index, make_pair
from jamgym.errors import CorpusError


def truth():
    members = np.zeros((3, 12), dtype=bool)
    members[[0, 1, 2], [0, 5, 7]] = True
    return Truth(
        beats=np.arange(0.0, 6.0, 0.5),
        downbeats=np.arange(0.0, 6.0, 2.0),
        chord_times=np.array([0.0, 2.0, 4.0, 6.0]),
        chord_roots=np.array([0, 5, 7]),
        chord_pitch_classes=members,
        tempo_bpm=120.0,
    )


def song(*levels):
    stems = tuple(Stem(f"s{i}", INSTRUMENTS[i], np.full(1600, v, np.float32)) for i, v in enumerate(levels))
    return Song("a", 16000, stems, truth())


def test_crop_moves_times_to_zero():
    part = truth().crop(1.5, 4.5)
    assert part.beats.tolist() == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]
    assert part.downbeats.tolist() == [0.5, 2.5]
    assert part.chord_times.tolist() == [0.0, 0.5, 2.5, 3.0]
    assert part.chord_roots.tolist() == [0, 5, 7]
    assert part.chord_pitch_classes.shape == (3, 12)


def test_crop_on_boundaries_keeps_only_what_sounds():
    part = truth().crop(2.0, 4.0)
    assert part.chord_roots.tolist() == [5] and part.chord_times.tolist() == [0.0, 2.0]
    assert part.beats.tolist() == [0.0, 0.5, 1.0, 1.5]


def test_crop_of_a_crop_is_one_crop():
    twice, once = truth().crop(1.0, 5.0).crop(0.5, 2.0), truth().crop(1.5, 3.0)
    assert np.allclose(twice.beats, once.beats) and np.allclose(twice.chord_times, once.chord_times)
    assert twice.chord_roots.tolist() == once.chord_roots.tolist()


def test_crop_beyond_the_end_is_empty():
    part = truth().crop(7.0, 8.0)
    assert len(part.beats) == len(part.chord_roots) == 0
    assert part.chord_index(np.array([0.0, 0.5])).tolist() == [-1, -1]


def test_chord_index():
    assert truth().chord_index(np.array([-0.1, 0.0, 1.99, 2.0, 5.9, 6.0])).tolist() == [-1, 0, 0, 1, 2, -1]


def test_pair_sums_the_others():
    pair = make_pair(song(0.7, 0.6, 0.1), "s2")
    assert np.allclose(pair.heard, 1.3) and pair.heard.dtype == np.float32
    assert np.allclose(pair.target, 0.1) and pair.instrument == 2 and pair.target_name == "s2"


def test_pair_errors():
    with pytest.raises(CorpusError, match="at least two"):
        make_pair(song(0.5), "s0")
    with pytest.raises(CorpusError, match="Did you mean 's1'"):
        make_pair(song(0.5, 0.5), "s1x")


def test_active_counts_blocks_of_20_ms():
    audio = np.zeros(16000 // 50 * 4 + 100, np.float32)
    audio[320:640] = 0.1
    audio[640:960] = 10 ** (-61 / 20)
    audio[960:1280] = 10 ** (-59 / 20)
    assert active(audio, 16000).tolist() == [False, True, False, True]


@pytest.mark.filterwarnings("error")
def test_active_share_is_a_mean_and_0_where_there_is_no_block():
    audio = np.concatenate([np.full(640, 0.1), np.zeros(320)]).astype(np.float32)
    assert active_share(audio, 16000) == pytest.approx(2 / 3)
    assert active_share(audio[:160], 16000) == 0.0


def test_instrument_index():
    assert instrument_index("other") == 0 and instrument_index("bass") == 2
    with pytest.raises(CorpusError, match="Did you mean 'guitar'"):
        instrument_index("gitar")


def test_cropping_where_no_chord_sounds_leaves_one_boundary():
    for part in (truth().crop(10.0, 12.0), truth().crop(6.0, 7.0)):
        assert (
            len(part.chord_roots) == 0 and part.chord_times.shape == (1,) and part.chord_pitch_classes.shape == (0, 12)
        )
        assert part.chord_index(np.array([0.0, 1.0])).tolist() == [-1, -1]
    inside = truth().crop(0.5, 3.0)
    assert len(inside.chord_times) == len(inside.chord_roots) + 1 and inside.chord_times[-1] == 2.5
