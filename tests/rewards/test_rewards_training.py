import json
import shlex
from contextlib import nullcontext
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from jamgym import registry
from jamgym.checkpoint import load_state
from jamgym.commands.parsing import parse
from jamgym.corpus import Song, Stem, Truth
from jamgym.errors import ConfigError, JamgymError
from jamgym.reward import Windows
from jamgym.run import Run
from jamgym_rewards import training
from jamgym_rewards.features import SAMPLE_RATE, Analysis, FeatureSpec, Prepared, cut, prepare
from jamgym_rewards.losses import contrastive_loss
from jamgym_rewards.negatives import KINDS, draw_batch, make_feature_pair, render_pair, shifted_start, window
from jamgym_rewards.towers import TwoTowers, halve
from jamgym_rewards.training import _command, build_pool, train_coherence
from jamgym_rewards.training_settings import CoherenceTrainingConfig
from jamgym_rewards.validation import auc, auc_figures


class ChordCorpus:
    """Songs of plain tones: a chord that changes twice a second, a bass on its root and a pulse on the beat."""

    name = "chords"
    version = "1"
    sample_rate = SAMPLE_RATE

    def song_ids(self, split):
        return [f"{split}-{index}" for index in range(8)]

    def load(self, song_id):
        rng = np.random.default_rng(list(song_id.encode()))
        steps, length = 16, SAMPLE_RATE // 2
        roots = rng.integers(0, 12, steps)
        time = np.arange(length) / SAMPLE_RATE
        fade = np.minimum(1.0, np.minimum(time, time[::-1]) / 0.01)

        def tone(key):
            return np.sin(2 * np.pi * 440 * 2 ** ((key - 69) / 12) * time) * fade

        chord = np.concatenate([sum(tone(60 + r + step) for step in (0, 4, 7)) * 0.1 for r in roots])
        bass = np.concatenate([tone(36 + r) * 0.2 for r in roots])
        pulse = np.tile(rng.normal(0, 0.3, length) * np.exp(-time * 30), steps)
        stems = [Stem(n, i, a.astype(np.float32)) for n, i, a in
                 (("chord", "piano", chord), ("bass", "bass", bass), ("drums", "drums", pulse))]  # fmt: skip
        beats = np.arange(steps) * 0.5
        truth = Truth(beats, beats[::4], np.array([0.0, 8.0]), np.zeros(1, int), np.zeros((1, 12), bool), 120.0)
        return Song(song_id, SAMPLE_RATE, tuple(stems), truth)


TINY = CoherenceTrainingConfig(
    corpus="tests_rewards_training:ChordCorpus",
    codec=None,
    songs=4,
    validation_songs=4,
    steps=4,
    batch=3,
    window_seconds=(2.0, 2.0),
    bf16=False,
    threads=1,
    evaluate_every=3,
)


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """Let the corpus be named like a plug-in, whatever name pytest imported this file under."""
    import sys
    import types

    module = types.ModuleType("tests_rewards_training")
    module.ChordCorpus = ChordCorpus  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tests_rewards_training", module)


def make_run(folder, config, resume=False):
    return Run.create(
        folder, command="train-coherence", config=asdict(config), seed=config.seed, resume=resume, quiet=True
    )


def pool(spec, count=4):
    analysis, corpus = Analysis(spec), ChordCorpus()
    ids = corpus.song_ids("train")[:count]
    return [make_feature_pair(corpus.load(i), "chord", analysis, rng=np.random.default_rng(0)) for i in ids]


def test_a_cut_of_packed_features_is_the_feature_of_the_cut_audio():
    spec = FeatureSpec()
    song = ChordCorpus().load("train-0")
    pair = make_feature_pair(song, "chord", Analysis(spec))
    frames = spec.frames(2 * SAMPLE_RATE)
    packed = prepare(torch.from_numpy(window(pair.played[0], spec, 50, frames)[None]), spec)
    audio = song.stem("chord").audio[50 * spec.hop :][: 2 * SAMPLE_RATE]
    direct = prepare(cut(Analysis(spec)(torch.from_numpy(audio[None])), spec), spec)
    torch.testing.assert_close(
        packed.values[:, : spec.pitch_bins], direct.values[:, : spec.pitch_bins], atol=0.02, rtol=0
    )


def test_a_batch_holds_the_truth_and_four_wrong_versions():
    spec = FeatureSpec()
    pairs = pool(spec)
    batch = draw_batch(pairs, spec, np.random.default_rng(0), 3, (2.0, 2.0))
    frames = spec.frames(2 * SAMPLE_RATE)
    assert batch.heard.shape == (3, spec.pitch_bins + spec.bands, frames)
    assert batch.played.shape == (3, 1 + len(KINDS), spec.pitch_bins + spec.bands, frames)
    for version in range(1, 1 + len(KINDS)):
        assert (batch.played[:, version] - batch.played[:, 0]).abs().mean() > 0.5
    again = draw_batch(pairs, spec, np.random.default_rng(0), 3, (2.0, 2.0))
    torch.testing.assert_close(again.played, batch.played)


def test_a_transposed_cut_moves_two_bins_a_semitone():
    spec = FeatureSpec()
    pair = pool(spec, 2)[0]
    base = window(pair.played[0], spec, 0, 50)
    up = window(pair.played[0], spec, 0, 50, semitones=4)
    np.testing.assert_array_equal(up[8 : spec.pitch_bins], base[: spec.pitch_bins - 8])
    np.testing.assert_array_equal(up[spec.pitch_bins :], base[spec.pitch_bins :])


def test_a_faster_cut_reads_further():
    spec = FeatureSpec()
    pair = pool(spec, 2)[0]
    base, fast = window(pair.played[0], spec, 0, 100), window(pair.played[0], spec, 0, 50, speed=2.0)
    np.testing.assert_allclose(fast, base[:, ::2], atol=1e-4)


def test_a_shift_stays_inside_the_song():
    rng = np.random.default_rng(0)
    assert {shifted_start(rng, 0, 10, 100, 80) for _ in range(20)} == {10}
    assert {shifted_start(rng, 20, 10, 100, 80) for _ in range(20)} == {10}
    assert {shifted_start(rng, 10, 5, 100, 80) for _ in range(50)} == {5, 15}


def test_drums_are_not_transposed_and_silent_songs_are_left_out():
    spec, corpus = FeatureSpec(), ChordCorpus()
    pair = make_feature_pair(corpus.load("train-0"), "drums", Analysis(spec))
    assert not pair.pitched and pair.beat_seconds == 0.5

    class Silent(ChordCorpus):
        def load(self, song_id):
            song = super().load(song_id)
            return replace(song, stems=tuple(replace(s, audio=s.audio * 0) for s in song.stems))

    assert render_pair(Silent(), "train-0", Analysis(spec), None, np.random.default_rng(0), True) is None


def test_all_pairs_agrees_with_one_pair_at_a_time():
    network = TwoTowers().eval()
    spec = network.config.features
    generator = torch.Generator().manual_seed(0)
    rows = spec.pitch_bins + spec.bands

    def side() -> Prepared:
        return Prepared(torch.rand(3, rows, 50, generator=generator), torch.rand(3, 50, generator=generator))

    sides = [side(), side()]
    with torch.no_grad():
        a, b = network.heard(sides[0].values), network.played(sides[1].values)
        matrix = network.all_pairs(a, halve(halve(sides[0].weight)), b, halve(halve(sides[1].weight)))
        torch.testing.assert_close(matrix.diagonal(), network(*sides), atol=1e-3, rtol=0)


def test_the_loss_falls_to_zero_when_truth_is_told_apart(monkeypatch):
    network = TwoTowers()
    batch = draw_batch(pool(network.config.features), network.config.features, np.random.default_rng(0), 4, (2.0, 2.0))
    blind, _ = contrastive_loss(network, batch)
    assert blind.item() > 1.0
    versions = 1 + len(KINDS)
    perfect = torch.full((4, 4 * versions), -1.0)
    perfect[torch.arange(4), torch.arange(4) * versions] = 1.0
    monkeypatch.setattr(network, "all_pairs", lambda *_: perfect)
    loss, figures = contrastive_loss(network, batch)
    assert loss.item() < 0.01
    assert figures["accuracy/batch"] == figures["accuracy/wrong_versions"] == 1.0


def test_auc_leaves_out_songs_without_the_version():
    truth = np.array([[1.0], [0.0]])
    scores = {"truth": truth, "random_stem": truth - 1.0, "transposed_+1": np.array([[0.5], [np.nan]])}
    found = auc_figures(scores, floor=-0.5)
    assert found["random_stem"].value == 0.875
    assert found["transposed_+1"].value == 1.0
    assert found["silence"].value == 1.0
    assert auc(np.array([1.0]), np.array([1.0])) == 0.5


def test_the_judge_and_the_training_rewards_train_on_disjoint_songs(tmp_path):
    run = make_run(tmp_path / "r", TINY)
    used = {}
    for model in ("coherence", "judge", "discriminative"):
        network = registry.rewards.resolve(model).build()
        config = replace(TINY, model=model)
        pairs = build_pool(config, ChordCorpus(), None, Analysis(network.config.features), "train", run)
        used[model] = {pair.song_id for pair in pairs}
    assert used["coherence"] == {"train-0", "train-2", "train-4", "train-6"}
    assert used["discriminative"] == used["coherence"]
    assert used["judge"] == {"train-1", "train-3", "train-5", "train-7"}


@pytest.mark.parametrize("model", ["coherence", "judge", "discriminative"])
def test_training_writes_weights_card_and_figures(tmp_path, model):
    config = replace(TINY, model=model)
    before = torch.get_rng_state(), torch.get_num_threads()
    with make_run(tmp_path / "r", config) as run:
        figures = train_coherence(config, run)
    assert torch.equal(torch.get_rng_state(), before[0]) and torch.get_num_threads() == before[1]
    for kind in ("random_stem", "other_time", "half_beat", "tempo", "transposed_-6", "transposed_+6", "silence"):
        assert figures[f"auc/{kind}_low"] <= figures[f"auc/{kind}"] <= figures[f"auc/{kind}_high"]
    assert (tmp_path / "r" / f"{model}.json").exists() and (tmp_path / "r" / "metrics.json").exists()
    modes = ({}, {"mode": "harmonic"}, {"mode": "percussive"}) if model == "coherence" else ({},)
    audio = np.random.default_rng(0).normal(0, 0.1, (1, 2 * SAMPLE_RATE)).astype(np.float32)
    for mode in modes:
        reward = registry.rewards.resolve(model)(tmp_path / "r" / f"{model}.safetensors", **mode)
        assert np.isfinite(reward.score(Windows(audio, audio, SAMPLE_RATE))).all()
    card = json.loads((tmp_path / "r" / f"{model}.json").read_text())
    if model == "coherence":
        assert set(card["modes"]["calibration_harmonic"]) == {"random", "truth"}
        assert 0 <= card["modes"]["figures_percussive"]["auc/half_beat"] <= 1
    else:
        assert card["modes"] == {}


@pytest.mark.parametrize("model", ["coherence", "discriminative"])
def test_a_resumed_training_ends_where_an_unbroken_one_does(tmp_path, model):
    settings = replace(TINY, model=model)
    with make_run(tmp_path / "whole", settings) as run:
        whole = train_coherence(settings, run)

    class Stopping(Run):
        def log(self, step, metrics):
            super().log(step, metrics)
            self.stop_requested = True  # as Ctrl-C does, in the middle

    config = replace(settings, evaluate_every=2)
    run = make_run(tmp_path / "parts", config)
    run.__class__ = Stopping
    with run:
        assert train_coherence(config, run) == {}
    with make_run(tmp_path / "parts", config, resume=True) as run:
        parts = train_coherence(config, run)
    assert parts == pytest.approx(whole, abs=1e-5, nan_ok=True)


def test_a_kill_before_the_first_checkpoint_leaves_no_line_twice(tmp_path, monkeypatch):
    config = replace(TINY, model="judge", evaluate_every=1)
    with make_run(tmp_path / "whole", config) as run:
        train_coherence(config, run)
    step, steps = torch.optim.AdamW.step, []

    def killed(self):
        steps.append(step(self))
        if len(steps) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt), make_run(tmp_path / "cut", config) as run:
        patch.setattr(torch.optim.AdamW, "step", killed)
        train_coherence(config, run)
    assert not (tmp_path / "cut/checkpoint.safetensors").exists() and (tmp_path / "cut/metrics.jsonl").read_text()
    with make_run(tmp_path / "cut", config, resume=True) as run:
        train_coherence(config, run)
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "cut")]
    assert [json.loads(line)["step"] for line in lines[1]] == [json.loads(line)["step"] for line in lines[0]]


def test_a_weight_decay_that_changed_on_resume_takes_effect(tmp_path):
    short, longer = (replace(TINY, model="judge", steps=n, weight_decay=d) for n, d in ((1, 0.02), (2, 0.5)))
    for config, resume in ((short, False), (longer, True)):
        with make_run(tmp_path / "r", config, resume=resume) as run:
            train_coherence(config, run)
    (group,) = load_state(tmp_path / "r" / "checkpoint.safetensors")["optimizer"]["param_groups"]
    assert group["weight_decay"] == 0.5


@pytest.mark.parametrize("diverged", [lambda loss: loss * float("nan"), lambda loss: (0.0 * loss).sqrt()])
def test_a_loss_or_gradient_that_is_not_finite_stops_before_the_optimizer_steps(tmp_path, monkeypatch, diverged):
    steps = []
    honest = training.batch_loss

    def batch_loss(network, batch):
        loss, figures = honest(network, batch)
        return diverged(loss), figures

    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: steps.append(self))
    monkeypatch.setattr(training, "batch_loss", batch_loss)
    with make_run(tmp_path / "r", TINY) as run, pytest.raises(JamgymError, match=r"step 0 .*lower learning_rate"):
        train_coherence(TINY, run)
    assert steps == [] and not list((tmp_path / "r").glob("*.safetensors"))


def reread(command):
    program, name, *argv = shlex.split(command)
    assert (program, name) == ("jamgym", "train-coherence")
    return parse("jamgym train-coherence", "", (), CoherenceTrainingConfig, argv).config


@pytest.mark.parametrize(
    "config",
    [
        CoherenceTrainingConfig(),
        TINY,
        CoherenceTrainingConfig(
            model="judge",
            corpus={"name": "stems", "path": "my songs/Zoë's"},
            codec={"name": "spectral", "weights": "2024"},
            songs=5,
            validation_songs=6,
            steps=7,
            max_minutes=0.5,
            batch=8,
            learning_rate=1e-5,
            weight_decay=0.0,
            window_seconds=(2.5, 3.0),
            seed=9,
            threads=2,
            bf16=False,
            evaluate_every=10,
            checkpoint_minutes=11.0,
            weights_out="out folder/$HOME.safetensors",
        ),
    ],
    ids=["defaults", "no codec", "everything else"],
)
def test_the_command_on_the_card_has_every_setting_and_is_read_back_as_the_same_ones(config):
    assert reread(_command(config)) == config


def test_the_command_says_only_what_differs_from_the_defaults():
    assert _command(CoherenceTrainingConfig()) == "jamgym train-coherence"
    assert _command(CoherenceTrainingConfig(codec=None, seed=3)) == "jamgym train-coherence --codec null --seed 3"


def test_the_card_leaves_out_where_the_weights_were_written(tmp_path):
    config = replace(TINY, model="judge", steps=1, weights_out=str(tmp_path / "elsewhere" / "w.safetensors"))
    with make_run(tmp_path / "r", config) as run:
        train_coherence(config, run)
    card = json.loads((tmp_path / "elsewhere" / "w.json").read_text())
    assert card["config"]["weights_out"] is None
    assert reread(card["command"]) == replace(config, weights_out=None)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("model", "other", "coherence"),
        ("songs", 1, "songs is 1; it must be at least 2"),
        ("validation_songs", 1, "validation_songs is 1; it must be at least 2"),
        ("batch", 1, "batch is 1; it must be at least 2"),
        ("steps", 0, "steps is 0; it must be at least 1"),
        ("evaluate_every", 0, "evaluate_every is 0; it must be at least 1"),
        ("threads", 0, "threads is 0; it must be at least 1"),
        ("learning_rate", -1e-3, "learning_rate is -0.001; it must be at least 0"),
        ("learning_rate", float("nan"), "learning_rate is nan; it must be at least 0"),
        ("weight_decay", -0.1, "weight_decay is -0.1; it must be at least 0"),
        ("checkpoint_minutes", -1.0, "checkpoint_minutes is -1.0; it must be at least 0"),
        ("seed", -1, "seed is -1; it must be at least 0"),
        ("window_seconds", (3.0, 2.0), "shortest, longest"),
    ],
)
def test_impossible_settings_are_refused(name, value, message):
    with pytest.raises(ConfigError, match=message):
        replace(TINY, **{name: value})


@pytest.mark.parametrize("minutes", [0.0, -1.0, float("nan")])
def test_no_minutes_are_not_the_same_as_no_limit(minutes):
    with pytest.raises(ConfigError, match=f"max_minutes is {minutes}; it must be above 0"):
        replace(TINY, max_minutes=minutes)
    assert replace(TINY, max_minutes=None).max_minutes is None


@pytest.mark.parametrize("part, written", [("both", False), ("harmonic", True)])
def test_ctrl_c_stops_while_features_are_made_but_not_while_parts_are_measured(tmp_path, monkeypatch, part, written):
    made, render = [], training.render_pair

    def stopping(*arguments):
        made.append(arguments[-1])
        run.stop_requested = run.stop_requested or part in made  # as Ctrl-C does
        return render(*arguments)

    monkeypatch.setattr(training, "render_pair", stopping)
    run = make_run(tmp_path / "r", TINY)
    with run, nullcontext() if written else pytest.raises(KeyboardInterrupt):
        train_coherence(TINY, run)
    assert (tmp_path / "r/coherence.safetensors").exists() == written
    assert (made == ["both"]) == (not written) and ("percussive" in made) == written
