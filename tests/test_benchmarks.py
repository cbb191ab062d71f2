"""The benchmarks run as their users run them; how fast they are is nobody's business here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from jamgym.registry import rewards
from jamgym.specs import create_from_spec
from jamgym_agents.decoder import AccompanimentDecoder, DecoderConfig
from jamgym_agents.sampling import Sampling
from jamgym_agents.streaming import StreamingDecoder

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


def run(*arguments, script=SCRIPT):
    return subprocess.run(
        [sys.executable, script, *arguments],
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
    result = run("--songs", "3", "--rewards", "harmony", mixture, "--out", out, script=VALIDITY)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "AUC of the truth against" in result.stdout and "Mean score of attacks" in result.stdout
    found = json.loads(out.read_text())["rewards"]
    harmony, penalties = found["harmony"], found["mixture (level, silence)"]
    assert harmony["auc"]["transposed_all"]["estimate"] > 0.9 > 0.7 > penalties["auc"]["transposed_all"]["estimate"]
    assert harmony["correlation"]["note_in_chord"]["estimate"] > 0.5
    assert penalties["attacks"]["silence"]["estimate"] == -2.0 and harmony["attacks"]["silence"]["estimate"] == 0.0
    assert not penalties["attacks"]["truth_-40_dB"]["above_truth_lower_quartile"]
    assert harmony["attacks"]["copy_of_input"]["above_truth_lower_quartile"]


def test_every_guard_is_left_out_once(monkeypatch):
    monkeypatch.syspath_prepend(str(VALIDITY.parent))
    from reward_validity import GUARDED, GUARDS, guard_columns

    made = {label: create_from_spec(rewards, spec) for label, spec in guard_columns().items()}
    assert made["coherence, no gates"].gates is None and made["coherence"].gates is not None
    assert set(made["all guards"].components) == {GUARDED, *GUARDS}
    for guard in GUARDS:
        assert set(made[f"without {guard}"].components) == {GUARDED, *GUARDS} - {guard}


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
        resting = played["truth_half_the_time"].reshape(12, 16000)
        assert np.array_equal(resting[::2], true.reshape(12, 16000)[::2]) and not resting[1::2].any()
        shreds, frames = (played[name].reshape(-1, 640) for name in ("truth_in_shreds", "truth"))
        for group in range(0, 300, 12):
            left = {tuple(frame) for frame in frames[group : group + 12]}
            assert left == {tuple(frame) for frame in shreds[group : group + 12]}
        assert not np.array_equal(shreds, frames)
        assert played["truth_-40_dB"] == pytest.approx(true * 0.01) and not played["silence"].any()
        assert np.abs(played["tempo"] - true).max() > 0.01


def test_hpss(tmp_path):
    script = SCRIPT.with_name("hpss.py")
    out = tmp_path / "out.json"
    result = run("--clips", "1", "--repeats", "1", "--out", out, script=script)
    assert result.returncode == 0, result.stderr[-3000:]
    report = json.loads(out.read_text())
    assert report["largest_difference"] < 1e-6 and report["ratio"] > 0
    assert report["yardstick"] in ("librosa.decompose.hpss", "scipy.ndimage.median_filter")


@pytest.fixture
def references(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import decoder_references

    return decoder_references


def sharp_decoder(**settings):
    """Return a drawn decoder that is far from indifferent between codes."""
    sizes = {"num_codebooks": 3, "cardinality": 16, "latent_dim": 8, "dim": 32, "heads": 4, "kv_heads": 2}
    torch.manual_seed(0)
    config = DecoderConfig(**sizes, layers=2, depth_dim=16, **settings)
    decoder = AccompanimentDecoder(config, torch.randn(3, 16, 8)).eval()
    with torch.no_grad():
        for block in decoder.blocks:
            block.qkv.weight *= 3.0
        for head in decoder.depth.head:
            head.weight *= 4.0
    return decoder


def heard_by_call(t_f, k, calls, rows=3):
    """Yield what each call hears anew."""
    heard = torch.randint(16, (rows, calls * k + 5, 3), generator=torch.Generator().manual_seed(1))
    before = 0
    for call in range(calls):
        visible = min(max(call * k + t_f, 0), heard.shape[1])
        yield heard[:, before:visible]
        before = visible


@pytest.mark.parametrize(("t_f", "k", "window"), [(-3, 1, None), (-3, 5, None), (0, 4, 64), (2, 3, None)])
@pytest.mark.parametrize("small", [False, True])
def test_the_decoder_without_cache_plays_what_the_streaming_one_plays(references, monkeypatch, t_f, k, window, small):
    if small:
        monkeypatch.setattr(references, "POSITIONS", 64)
        monkeypatch.setattr(references, "SCORES", 1)
    decoder, instrument = sharp_decoder(window=window), torch.tensor([0, 3, 5])
    stream, plain = StreamingDecoder(decoder), references.ReencodingDecoder(decoder, t_f, k)
    state = stream.initial_state(3)
    state.instrument = instrument
    empty = torch.zeros(3, 0, 3, dtype=torch.int64)
    history = references.CodeHistory(empty, empty, instrument)
    for fresh in heard_by_call(t_f, k, 40 // k):
        stream.hear(state, fresh, torch.full((3,), fresh.shape[1]))
        history.hear(fresh)
        expected = stream.generate(state, k, Sampling(temperature=0)).codes
        assert torch.equal(plain.generate(history, Sampling(temperature=0)), expected)
    assert history.played.shape == (3, 40 // k * k, 3)
    assert len(history.played.unique()) > 4, "the test tells nothing if all codes are the same"


@pytest.mark.parametrize(("t_f", "k"), [(-3, 1), (-3, 5), (0, 4), (2, 3)])
@pytest.mark.parametrize("small", [False, True])
def test_the_fused_decoder_plays_the_same_with_and_without_cache(references, monkeypatch, t_f, k, small):
    if small:
        monkeypatch.setattr(references, "POSITIONS", 64)
    torch.manual_seed(0)
    decoder = references.FusedDecoder(sharp_decoder().config, t_f, k).eval()
    empty, instrument = torch.zeros(3, 0, 3, dtype=torch.int64), torch.tensor([0, 3, 5])
    histories = [references.CodeHistory(empty, empty, instrument) for _ in range(2)]
    for fresh in heard_by_call(t_f, k, 40 // k):
        for history, cached in zip(histories, (True, False), strict=True):
            history.hear(fresh)
            decoder.generate(history, Sampling(temperature=0), cached=cached)
    assert torch.equal(histories[0].played, histories[1].played)
    assert len(histories[0].played.unique()) > 4


def test_the_fused_decoder_keeps_its_delay_pattern_and_hears_nothing_ahead(references):
    """Its first code of each frame is that of one pass over rows that are laid out by hand."""
    torch.manual_seed(0)
    decoder = references.FusedDecoder(sharp_decoder().config, -2, 1).eval()
    empty, instrument = torch.zeros(1, 0, 3, dtype=torch.int64), torch.tensor([4])
    history = references.CodeHistory(empty, empty, instrument)
    for fresh in heard_by_call(-2, 1, 12, rows=1):
        history.hear(fresh)
        decoder.generate(history, Sampling(temperature=0))
    heard, played = history.heard[0], history.played[0]
    assert len(heard) == 11 - 2 and len(played) == 12
    for n in range(12):
        x = []
        for p in range(n + 1):
            vector = decoder.instrument.weight[4].clone()
            for q in range(3):
                newest, before = p - 2 - 1, p - 1 - q
                vector += decoder.input_tables[q].weight[heard[newest, q] if newest >= 0 else 16]
                vector += decoder.output_tables[q].weight[played[before, q] if before >= 0 else 16]
            x.append(vector)
        shape = (2, 1, 2, n + 1, 8)
        cache = (torch.zeros(shape), torch.zeros(shape))
        with torch.no_grad():
            hidden = decoder._trunk(torch.stack(x)[None], 0, cache, slice(0, 1), references.never)
        assert decoder.heads(hidden)[0, :16].argmax() == played[n, 0]


def test_a_filled_state_is_that_of_a_stream_with_the_same_past(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    from decoder_contestants import Music, filled_state, hear_until, spread, state_bytes

    decoder = sharp_decoder(window=16)
    music = Music.random(decoder.config, 1, 60, -3, 0)
    stream, one = StreamingDecoder(decoder), torch.ones(1, dtype=torch.int64)
    filled = filled_state(stream, music, 50, 5, block=5)
    state = stream.initial_state(1)
    for begin in range(0, 50, 5):
        hear_until(stream, state, music, min(begin + 5, 45))
        stream.generate(state, 5, Sampling())
        stream.amend(state, music.played[:, begin : begin + 5], 5 * one, 5 * one)
    assert int(filled.heard[0]) == 42 and int(filled.played[0]) == 50
    rows = spread(filled, decoder, 4)
    assert state_bytes(rows) > 3.9 * state_bytes(filled)
    hear_until(stream, state, music, 50)
    stream.hear(rows, music.heard[:, 42:47].expand(4, -1, -1), torch.full((4,), 5))
    expected = stream.generate(state, 5, Sampling(temperature=0)).codes
    assert torch.equal(stream.generate(rows, 5, Sampling(temperature=0)).codes, expected.expand(4, -1, -1))


def test_a_forgetful_reference_never_gets_a_longer_history(references):
    from decoder_contestants import Forgetful

    lengths = []

    class Watched:
        def generate(self, history, *_):
            lengths.append(history.played.shape[1])
            history.play(torch.zeros(1, 5, 3, dtype=torch.int64))

    one = torch.zeros(1, 1, 3, dtype=torch.int64)
    player = Forgetful(Watched(), references.CodeHistory(one, one, torch.zeros(1)), seed=0)
    for _ in range(3):
        player.call(torch.zeros(1, 5, 3, dtype=torch.int64), references.never)
    assert lengths == [1, 1, 1] and player.start.played.shape[1] == 1


@pytest.mark.slow
def test_decoder_throughput(tmp_path):
    out = tmp_path / "out.json"
    sizes = ("--size", "128", "1", "--k", "1", "2", "--batch", "1", "2", "--history", "1", "60", "--window", "20")
    calls = ("--calls", "2", "--block", "1", "--warm-up", "1", "--limit", "0.05", "--threads", "1")
    streaming = ("--stream-seconds", "1", "--stream-history", "4", "--json", out)
    result = run(*sizes, *calls, *streaming, script=SCRIPT.with_name("decoder_throughput.py"))
    assert result.returncode == 0, result.stderr[-3000:]
    assert "(a) no cache" in result.stdout and "met" in result.stdout
    report = json.loads(out.read_text())
    assert report["decoder"]["window"] == 20 and report["decoder"]["heads"] == 2
    compiled = ["streaming_compiled_eight_bits", "streaming_compiled_half", "streaming_compiled"]
    streams = [*compiled, "streaming", "streaming_unbounded"]
    names = [*streams, "reencoding", "fused", "fused_free"]
    assert [row["name"] for row in report["rows"]] == 8 * names
    for row in report["rows"]:
        ours = row["name"].startswith("streaming")
        assert set(row["ratios"]) == (set() if ours else set(streams))
        assert row["frames_per_second"] > 0 and all(value > 0 for value in row["ratios"].values())
        if row["calls"]:
            assert row["median_ms"] <= row["p99_ms"] and row["at_least_ms"] is None and row["calls"] <= 2
        else:
            # Given up, not guessed.
            assert not ours and row["median_ms"] is None and row["at_least_ms"] >= 50
    checks = {check["name"]: check for check in report["checks"]}
    assert {
        *("streaming/fused/k1/batch1", "streaming_compiled/fused/k1/batch1", "streaming/flat_cost/k1"),
        *("streaming_compiled_eight_bits/fused/k1/batch1", "share_of_real_time"),
        *("p99_of_budget", "compiled_guided_share_of_real_time"),
    } <= set(checks)
    memory = checks["streaming/flat_memory/k5"]
    assert memory["met"] is True and memory["value"] == 1.0
    assert checks["streaming_unbounded/flat_cost/k1"]["met"] is None
    for check in checks.values():
        if check["target"] is not None:
            met = check["value"] <= check["target"] if check["at_most"] else check["value"] >= check["target"]
            assert check["met"] is met and check["value"] > 0


@pytest.mark.slow
def test_decoder_window(tmp_path, monkeypatch):
    monkeypatch.setenv("JAMGYM_CACHE", str(tmp_path))
    script = SCRIPT.with_name("decoder_window.py")
    refused = run("--frames", "200", script=script)
    assert refused.returncode == 2 and "give at least 252" in refused.stderr
    result = run("--songs", "3", "--frames", "400", "--t-f", "5", script=script)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "on 3 songs" in result.stdout and "10-13 s" in result.stdout
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in result.stdout.splitlines() if "│" in line]
    whole, *windows, half = rows
    assert [row[1] for row in rows] == ["all", "250", "250", "250", "125"]
    # 250 frames fit into every window but the half one; beyond it none looks at the same as another.
    assert all(row[3] == whole[3] for row in windows) and half[3] != whole[3]
    assert all(row[5] != whole[5] for row in (*windows, half))
    assert all(0.1 < float(value) < 4.0 for row in rows for value in row[3:])
