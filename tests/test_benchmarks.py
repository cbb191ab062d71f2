"""The benchmarks run as their users run them; how fast they are is nobody's business here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "env_throughput.py"
VALIDITY = SCRIPT.with_name("reward_validity.py")
TINY = ("--envs", "3", "--sync-envs", "2", "--frames", "12", "--window", "8", "--songs", "2", "--episodes", "1")
ROWS = {
    "native_new",
    "native_window",
    "native_late",
    "native_audio",
    "adapter_new",
    "adapter_window",
    "cartpole_vector",
    "sync_new",
    "single_new",
    "cartpole_single",
}
RATIOS = {
    "native_new/cartpole_vector",
    "native_new/sync_new",
    "adapter_new/native_new",
    "adapter_window/native_window",
    "native_window/native_new",
    "native_late/native_new",
    "native_audio/native_new",
    "single_new/cartpole_single",
}


def run(*arguments):
    return subprocess.run(
        [sys.executable, SCRIPT, *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def check(report, repeats, k):
    calls = -(-12 // k)
    assert {row["name"] for row in report["rows"]} == ROWS
    for row in report["rows"]:
        assert len(row["rates"]) == repeats and all(rate > 0 for rate in row["rates"])
        assert min(row["rates"]) <= row["steps_per_second"] <= max(row["rates"])
        assert row["calls"] % calls == 0, "whole episodes, so that their resets are in the rate"
    assert {ratio["name"] for ratio in report["ratios"]} == RATIOS
    assert all(ratio["value"] > 0 for ratio in report["ratios"])
    for target in report["targets"]:
        met = target["value"] <= target["target"] if target["at_most"] else target["value"] >= target["target"]
        assert target["met"] is met and target["value"] > 0


@pytest.mark.parametrize(("k", "clock"), [(1, "wall"), (5, "cpu")])
def test_env_throughput(tmp_path, k, clock):
    out = tmp_path / "out.json"
    result = run(*TINY, "--repeats", "2", "--k", str(k), "--clock", clock, "--out", out)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "native new / CartPoleVectorEnv" in result.stdout and "scaled to this machine" in result.stdout
    report = json.loads(out.read_text())
    check(report, 2, k)
    assert report["rollout"] is None and len(report["targets"]) == 5
    assert report["settings"]["k"] == k and report["settings"]["clock"] == clock


@pytest.mark.slow
def test_rollout_share(tmp_path):
    out = tmp_path / "out.json"
    result = run(
        *TINY, "--repeats", "1", "--rollout", "--rollout-envs", "2", "--rollout-k", "3", "--rollouts", "1", "--out", out
    )
    assert result.returncode == 0, result.stderr[-3000:]
    report = json.loads(out.read_text())
    check(report, 1, 1)
    rollout = report["rollout"]
    assert 0 < rollout["share_of_rollout_and_update"] < rollout["share_of_rollout"] < 1
    assert report["targets"][-1]["value"] == rollout["share_of_rollout"] and "PPO rollout" in result.stdout


def test_wrong_sizes_are_refused():
    result = run("--envs", "0")
    assert result.returncode == 2 and "'0' is not a whole number of at least 1" in result.stderr


def test_reward_validity(tmp_path):
    out = tmp_path / "out.json"
    mixture = "{name: mixture, rewards: [level, silence]}"
    result = subprocess.run(
        [sys.executable, VALIDITY, "--songs", "3", "--rewards", "harmony", mixture, "--out", out],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "AUC of the truth against" in result.stdout and "Mean score of attacks" in result.stdout
    found = json.loads(out.read_text())["rewards"]
    harmony, penalties = found["harmony"], found["mixture (level, silence)"]
    assert harmony["auc"]["transposed_all"]["estimate"] > 0.9 > 0.7 > penalties["auc"]["transposed_all"]["estimate"]
    assert harmony["correlation"]["note_in_chord"]["estimate"] > 0.5
    assert penalties["attacks"]["silence"]["estimate"] == -2.0 and harmony["attacks"]["silence"]["estimate"] == 0.0
    assert not penalties["attacks"]["truth_-40_dB"]["above_truth_lower_quartile"]
    assert harmony["attacks"]["copy_of_input"]["above_truth_lower_quartile"]


def test_versions_are_what_their_names_say(monkeypatch):
    monkeypatch.syspath_prepend(str(VALIDITY.parent))
    from reward_versions import ATTACKS, WRONG, make_cases

    from jamgym.corpora.band import BandCorpus

    corpus = BandCorpus()
    cases = make_cases(corpus, corpus.song_ids("validation")[:4])
    again = make_cases(corpus, corpus.song_ids("validation")[:4])
    for case, twin in zip(cases, again, strict=True):
        played = case.played
        expected = {"truth", *WRONG, *ATTACKS}
        if case.instrument == "drums":
            expected -= {name for name in WRONG if name.startswith("transposed")}
        assert set(played) == expected
        assert all(len(audio) == 12 * 16000 and audio.dtype == np.float32 for audio in played.values())
        assert all(np.array_equal(audio, twin.played[name]) for name, audio in played.items())
        true = played["truth"]
        assert np.array_equal(played["delayed_1_s"][16000:], true[:-16000])
        half = round(30.0 / case.truth.tempo_bpm * 16000)
        early = played["half_beat_early"][:-half]
        assert (
            min(np.abs(early[:-2] - true[half + shift :][: len(early) - 2]).max() for shift in (-1, 0, 1) if half) == 0
        )
        assert np.array_equal(played["copy_of_input"], case.heard)
        assert played["truth_-40_dB"] == pytest.approx(true * 0.01) and not played["silence"].any()
        assert np.abs(played["tempo"] - true).max() > 0.01


def test_hpss(tmp_path):
    script = SCRIPT.with_name("hpss.py")
    out = tmp_path / "out.json"
    result = subprocess.run(
        [sys.executable, script, "--clips", "1", "--repeats", "1", "--out", out],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr[-3000:]
    report = json.loads(out.read_text())
    assert report["largest_difference"] < 1e-6 and report["ratio"] > 0
    assert report["yardstick"] in ("librosa.decompose.hpss", "scipy.ndimage.median_filter")
