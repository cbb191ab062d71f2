"""`jamgym accompany`: playing along with a file."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from jamgym.benchmark.call_times import summarise
from jamgym.cli import main
from jamgym.commands.accompany import (
    AccompanyConfig,
    about_scores,
    about_time,
    accompany,
    described,
    gain_to,
    make_source,
    read_part,
    sounds,
)
from jamgym.config import config_from_mapping, read_yaml
from jamgym.errors import AudioError, ConfigError, LookaheadError
from jamgym.run import Run
from jamgym.timing import Timing
from jamgym.toys import ToyCodec

ROOT = Path(__file__).parent.parent
RATE = 44_100


@pytest.fixture
def song(tmp_path):
    """Two seconds of stereo at another rate than the codec's."""
    path = tmp_path / "song.wav"
    tone = 0.1 * np.sin(2 * np.pi * 220 * np.arange(2 * RATE) / RATE)
    soundfile.write(path, np.stack([tone, tone], axis=1), RATE)
    return path


def toy(song, **changes):
    settings = {"policy": "random_codes", "codec": "jamgym.toys:ToyCodec", "t_f": -5, "metrics": ()}
    return AccompanyConfig(str(song), **{**settings, **changes})


def played(config, folder, seed=0):
    with Run.create(folder, command="accompany", config={}, seed=seed, quiet=True) as run:
        return accompany(config, run)


@pytest.mark.parametrize("gain_db", [0.0, 12.0, -6.0])
def test_what_is_written(song, tmp_path, gain_db):
    figures = played(toy(song, gain_db=gain_db), tmp_path / "a")
    heard, answer, mix = (soundfile.read(tmp_path / "a" / f"{name}.wav") for name in ("heard", "played", "mix"))
    assert heard[1] == answer[1] == mix[1] == 16_000
    assert len(heard[0]) == len(answer[0]) == len(mix[0]) == 2 * 16_000
    assert np.abs(answer[0]).max() > 0
    total = heard[0] + 10 ** (gain_db / 20) * answer[0]
    assert (np.abs(total).max() > 1) == (gain_db == 12.0)
    np.testing.assert_allclose(mix[0], total / max(1.0, np.abs(total).max()), atol=2e-3)
    assert figures["late_frames"] == 0
    assert json.loads((tmp_path / "a/metrics.json").read_text()) == figures
    text = (tmp_path / "a/report.txt").read_text()
    assert "random_codes played piano along with" in text and "2.00 s at t_f = -5, k = 5" in text
    assert (tmp_path / "a/played.png").stat().st_size > 1000


def test_the_same_seed_plays_the_same(song, tmp_path):
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        played(toy(song), tmp_path / folder, seed)
    a, b, c = (soundfile.read(tmp_path / name / "played.wav")[0] for name in "abc")
    assert np.array_equal(a, b) and not np.array_equal(a, c)


def test_the_seed_draws_the_latencies(song, tmp_path):
    latency = {"name": "lognormal", "median_seconds": 0.19, "sigma": 0.5}
    late = [played(toy(song, latency=latency, t_f=-6), tmp_path / f"{seed}", seed)["late_frames"] for seed in range(5)]
    assert len(set(late)) > 1


def test_a_part_of_the_file(song, tmp_path):
    assert len(read_part(toy(song, start_seconds=0.5, seconds=1.0), 16_000)) == 16_000
    assert len(read_part(toy(song, start_seconds=1.5, seconds=9.0), 16_000)) == 8_000
    played(toy(song, start_seconds=1.0, k=7), tmp_path / "a")
    assert len(soundfile.read(tmp_path / "a/played.wav")[0]) == 16_000


def test_the_level_is_that_of_what_sounds(tmp_path):
    tone = 0.01 * np.sin(2 * np.pi * 220 * np.arange(16_000) / 16_000)
    soundfile.write(tmp_path / "rests.wav", np.concatenate([np.zeros(48_000), tone]), 16_000, subtype="FLOAT")
    for level_db, found in ((-18.0, -18.0), (-30.0, -30.0), (0.0, -3.0), (None, -43.0)):
        config = toy(tmp_path / "rests.wav", level_db=level_db)
        source = make_source(config, ToyCodec())
        heard = source.crop("rests.wav", "piano", 0).heard
        assert 20 * np.log10(np.sqrt(np.mean(heard[48_000:] ** 2))) == pytest.approx(found, abs=0.1), level_db
        assert not heard[:48_000].any()


def test_the_peak_of_what_is_heard_stays_within_full_scale():
    click = np.zeros(16_000, dtype=np.float32)
    click[100] = 0.5
    assert gain_to(sounds(click, 16_000), -18.0) <= 2.0


def test_late_frames_are_told(song, tmp_path):
    figures = played(toy(song, latency={"name": "constant", "seconds": 0.3}), tmp_path / "a")
    assert figures["late_frames"] > 0
    assert "of the frames were late (silence)" in (tmp_path / "a/report.txt").read_text()


@pytest.mark.parametrize("late_policy", ["repeat", "stall"])
def test_other_late_policies(song, tmp_path, late_policy):
    played(toy(song, latency={"name": "constant", "seconds": 0.3}, late_policy=late_policy), tmp_path / "a")
    assert f"were late ({late_policy})" in (tmp_path / "a/report.txt").read_text()


def test_an_oracle_is_called_one(song, tmp_path):
    with pytest.raises(LookaheadError):
        played(toy(song, t_f=5), tmp_path / "a")
    latency = {"name": "constant", "seconds": 0.01}
    played(toy(song, t_f=5, allow_lookahead=True, latency=latency), tmp_path / "b")
    text = (tmp_path / "b/report.txt").read_text()
    assert "live, it cannot be played" in text and "of the frames were late" in text


def test_calls_that_take_too_long_for_live_play_are_counted():
    timing = Timing(t_f=-10, k=5, hop_samples=640, sample_rate=16_000, frames=100)
    text = about_time(summarise(np.array([0.01, 0.01, 0.01, 0.3]), timing), 0.0, timing, "silence")[0]
    assert "took 10 ms" in text and "25.0% of them took longer than live play leaves (0.20 s)" in text
    tight = Timing(t_f=-2, k=5, hop_samples=640, sample_rate=16_000, frames=100)
    assert "leaves (0.08 s)" in about_time(summarise(np.array([0.01]), tight), 0.0, tight, "silence")[0]


def test_a_nearer_t_f_is_told_where_this_machine_would_keep_up():
    timing = Timing(t_f=-10, k=5, hop_samples=640, sample_rate=16_000, frames=100)

    def told(milliseconds):
        times = summarise(np.full(50, milliseconds / 1000), timing)
        return [line for line in about_time(times, 0.0, timing, "silence") if "--t_f" in line]

    assert ["--t_f -3 as well" in line for line in told(60)] == [True]
    assert ["--t_f -5 as well" in line for line in told(100)] == [True]
    assert told(101) == []  # twice that is longer than a chunk: there is nothing to spare, whatever t_f
    few_slow = summarise(np.array([0.02] * 995 + [0.4] * 5), timing)
    assert few_slow.p99_seconds == 0.02
    assert not any("--t_f" in line for line in about_time(few_slow, 0.0, timing, "silence"))
    quick = summarise(np.full(50, 0.02), timing)
    assert not any("--t_f" in line for line in about_time(quick, 0.0, timing, "silence", delayed=True))
    tight = Timing(t_f=-1, k=5, hop_samples=640, sample_rate=16_000, frames=100)
    assert not any("--t_f" in line for line in about_time(quick, 0.0, tight, "silence"))  # -1 is what was played


def test_only_coherence_is_compared_with_a_random_stem():
    assert "random stem" in about_scores({"coherence": 0.3}, [])[0]
    assert about_scores({"level": 0.0}, ["coherence"]) == [
        "Score: level 0.000.",
        "Too short to be scored with coherence.",
    ]
    assert about_scores({}, []) == []


def test_what_is_too_short_is_not_scored(song, tmp_path):
    assert "coherence" not in played(toy(song, seconds=0.2, metrics=("coherence",)), tmp_path / "a")
    assert "Too short to be scored with coherence." in (tmp_path / "a/report.txt").read_text()


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"instrument": "paino"}, ConfigError, "Did you mean 'piano'"),
        ({"start_seconds": -1.0}, ConfigError, "start_seconds is -1"),
        ({"seconds": float("nan")}, ConfigError, "seconds is nan; it must be from 0"),
        ({"gain_db": float("inf")}, ConfigError, "gain_db is inf"),
        ({"level_db": 18.0}, ConfigError, "level_db is 18.0; it must be from -60 to 0"),
        ({"start_seconds": 3.0}, AudioError, "lasts 2.00 s, and start_seconds is 3"),
        ({"seconds": 0.01}, AudioError, "less than a frame of 0.040 s"),
        ({"metrics": ("note_in_chord",)}, ConfigError, "'note_in_chord' needs truth"),
        ({"metrics": ("flicker",)}, ConfigError, "'flicker' needs target"),
        ({"metrics": ("silence", "silence")}, ConfigError, "distinct names"),
        ({"policy": "truth"}, ConfigError, "'truth' plays a stem"),
        ({"audio": "missing.wav"}, AudioError, "missing.wav"),
    ],
)
def test_what_cannot_be_played(song, tmp_path, changes, error, match):
    changes = dict(changes)
    with pytest.raises(error, match=match):
        played(toy(changes.pop("audio", song), **changes), tmp_path / "a")


def test_channels_that_cancel_each_other_are_silent(tmp_path):
    tone = 0.1 * np.sin(np.arange(RATE) / 20)
    soundfile.write(tmp_path / "opposite.wav", np.stack([tone, -tone], axis=1), RATE)
    with pytest.raises(AudioError, match="is silent .* opposite sign"):
        played(toy(tmp_path / "opposite.wav"), tmp_path / "a")


def test_ctrl_c_stops_at_the_next_call(song, tmp_path):
    with (
        pytest.raises(KeyboardInterrupt),
        Run.create(tmp_path / "a", command="accompany", config={}, seed=0, quiet=True) as run,
    ):
        run.stop_requested = True
        accompany(toy(song), run)


def test_the_config_is_the_default():
    config = config_from_mapping(AccompanyConfig, read_yaml(ROOT / "configs/accompany/default.yaml"))
    assert config == AccompanyConfig("my_song.wav")
    assert described(config.policy) == "decoder (checkpoint ppo, guidance 3.0)"


def test_the_shipped_decoder_on_the_command_line(song, tmp_path, capsys):
    out = tmp_path / "a"
    assert main(["accompany", str(song), "--instrument", "bass", "--out", str(out), "--quiet"]) == 0
    said = capsys.readouterr().out
    assert "decoder (checkpoint ppo, guidance 3.0) played bass along with" in said
    assert "Score: coherence" in said and str(out / "mix.wav") in said
    assert (out / "mix.wav").exists()
