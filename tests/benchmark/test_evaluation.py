import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from jamgym import AccompanimentVectorEnv, EpisodeSource
from jamgym.benchmark.evaluation import EvaluationConfig, GridConfig, compare, evaluate
from jamgym.commands.parsing import parse
from jamgym.config import config_from_mapping, read_yaml
from jamgym.errors import CheckpointError, ConfigError, CorpusError, LookaheadError, UnknownNameError
from jamgym.latency_trace import write_trace
from jamgym.run import Run
from jamgym.testing import ToyCodec, ToyCorpus, ToyReward
from jamgym_agents.baselines import SilencePolicy, TruthPolicy

ROOT = Path(__file__).parent.parent.parent
TOY = "jamgym.testing:"
CONFIG = EvaluationConfig(
    corpus={"name": TOY + "ToyCorpus", "songs": 4, "seconds": 3.0},
    codec=TOY + "ToyCodec",
    policies=("silence", "random_stem", {"name": "random_codes", "label": "noise"}, "truth"),
    metrics=(TOY + "ToyReward",),
    t_f=-5,
    frames=22,
    latency={"name": "constant", "seconds": 0.22},
    episodes=4,
    envs=3,
    save_audio=1,
    resamples=200,
)


class NeedsTruth(ToyReward):
    name = "needs_truth"

    def __init__(self):
        super().__init__(needs=("truth",))


class NoTruthCorpus(ToyCorpus):
    def load(self, song_id):
        return replace(super().load(song_id), truth=None)


@pytest.fixture
def run(tmp_path):
    return Run.create(tmp_path / "run", command="evaluate", config={}, seed=0, quiet=True)


def test_the_config_names_the_default_policies_and_metrics():
    config = config_from_mapping(EvaluationConfig, read_yaml(ROOT / "configs/evaluate/default.yaml"))
    assert (config.policies, config.metrics) == (EvaluationConfig().policies, EvaluationConfig().metrics)


def test_evaluate_writes_everything(run):
    figures = evaluate(CONFIG, run)
    assert set(figures) == {
        f"{label}/{name}" for label in ("silence", "random_stem", "noise", "truth") for name in ("toy", "late_frames")
    }
    found = json.loads((run.folder / "metrics.json").read_text())
    assert len(found["songs"]) == len(found["episodes"]) == 4 and len(set(found["songs"])) == 4
    assert found["lookahead_oracle"] is False and found["seed"] == 0 and found["setting"]["t_f"] == -5
    values = found["policies"]["truth"]["toy"]["values"]
    assert len(values) == 4 and np.mean(values) == pytest.approx(figures["truth/toy"])
    assert figures["silence/toy"] == 0.0 and 0.0 < figures["truth/late_frames"] < 1.0
    table = (run.folder / "table.md").read_text()
    assert "| silence (anchor) |" in table and "| truth (anchor) |" in table
    assert "truth (anchor)" in (run.folder / "report.txt").read_text()
    assert (run.folder / "comparison.png").read_bytes().startswith(b"\x89PNG")
    folders = list((run.folder / "audio").iterdir())
    assert len(folders) == 1
    names = {path.name for path in folders[0].iterdir()}
    assert {"heard.wav", "truth.wav", "noise-played.wav", "noise-mix.wav", "noise.png"} <= names
    audio, rate = soundfile.read(folders[0] / "silence-mix.wav")
    assert rate == 16_000 and len(audio) == 22 * 640
    np.testing.assert_allclose(audio, soundfile.read(folders[0] / "heard.wav")[0], atol=1e-3)


class LoudCorpus(ToyCorpus):
    """Stems of full scale, so that two of them exceed it."""

    def load(self, song_id):
        song = super().load(song_id)
        return replace(song, stems=tuple(replace(stem, audio=stem.audio * 5.0) for stem in song.stems))


def test_labels_that_look_alike_have_files_of_their_own(run):
    labels = ("a b", "a_b", "a/b")
    named = tuple(
        {"name": name, "label": label} for name, label in zip(("silence", "truth", "truth"), labels, strict=True)
    )
    evaluate(replace(CONFIG, policies=named, latency="none"), run)
    folder = next((run.folder / "audio").iterdir())
    for kind in ("-played.wav", "-mix.wav", ".png"):
        assert len(list(folder.glob(f"a*b*{kind}"))) == 3
    assert (folder / "a_b-played.wav").exists()
    silent = [path.name for path in folder.glob("*-played.wav") if not soundfile.read(path)[0].any()]
    assert len(silent) == 1 and silent[0].startswith("a_b-")


def test_what_is_heard_is_turned_down_and_not_clipped(run):
    corpus = {"name": f"{__name__}:LoudCorpus", "songs": 4, "seconds": 3.0}
    evaluate(replace(CONFIG, corpus=corpus, policies=("silence",)), run)
    folder = next((run.folder / "audio").iterdir())
    heard, mix = (soundfile.read(folder / f"{name}.wav")[0] for name in ("heard", "silence-mix"))
    assert np.abs(heard).max() == pytest.approx(1.0, abs=1e-3)
    assert np.mean(np.abs(heard) > 0.999) < 0.001, "it is not cut off at full scale"
    np.testing.assert_allclose(heard, mix, atol=1e-3)


def test_same_seed_same_figures(run, tmp_path):
    again = Run.create(tmp_path / "again", command="evaluate", config={}, seed=0, quiet=True)
    assert evaluate(replace(CONFIG, save_audio=0), run) == evaluate(replace(CONFIG, save_audio=0, envs=2), again)


def test_a_trace_of_another_chunk_size_is_refused_before_anything_is_played(run, tmp_path, monkeypatch):
    write_trace(tmp_path / "trace.jsonl", np.full(5, 100), 16_000, 1)
    monkeypatch.setattr(EpisodeSource, "encoded", lambda *_: pytest.fail("a song was encoded"))
    config = replace(CONFIG, latency=("none", {"name": "trace", "path": str(tmp_path / "trace.jsonl")}))
    with pytest.raises(ConfigError, match="recorded with k=1 frames per call, but here k is 5"):
        evaluate(config, run)
    with pytest.raises(ConfigError, match="recorded with k=1 frames per call, but here k is 5"):
        evaluate(replace(config, grid=GridConfig((-5,), (1, 5))), run)


def test_lookahead_is_refused_or_labelled(run):
    config = replace(CONFIG, t_f=5, latency="none", save_audio=0, policies=("silence", "truth"))
    with pytest.raises(LookaheadError):
        evaluate(config, run)
    evaluate(replace(config, allow_lookahead=True), run)
    assert "LOOK-AHEAD ORACLE" in (run.folder / "table.md").read_text()
    assert json.loads((run.folder / "metrics.json").read_text())["lookahead_oracle"] is True


def test_a_metric_without_truth_is_left_out_whole(run):
    corpus = {"name": f"{__name__}:NoTruthCorpus", "songs": 4, "seconds": 3.0}
    metrics = (TOY + "ToyReward", f"{__name__}:NeedsTruth")
    evaluate(replace(CONFIG, corpus=corpus, metrics=metrics, save_audio=0), run)
    found = json.loads((run.folder / "metrics.json").read_text())
    assert set(found["omitted_metrics"]) == {"needs_truth"} and "needs_truth" not in found["policies"]["truth"]
    assert "needs_truth needs truth" in (run.folder / "table.md").read_text()
    other = Run.create(run.folder / "other", command="evaluate", config={}, seed=0, quiet=True)
    evaluate(replace(CONFIG, metrics=metrics, save_audio=0), other)
    assert "needs_truth" in json.loads((other.folder / "metrics.json").read_text())["policies"]["truth"]


ALONE = replace(CONFIG, corpus={"name": TOY + "ToyCorpus", "songs": 1, "seconds": 3.0}, save_audio=0)


def test_a_random_stem_without_other_songs_is_refused_before_anything_is_played(run, monkeypatch):
    monkeypatch.setattr(EpisodeSource, "encoded", lambda *_: pytest.fail("a song was encoded"))
    for config in (ALONE, replace(CONFIG, max_songs=1), replace(ALONE, grid=GridConfig((-5,), (5,)))):
        with pytest.raises(CorpusError, match="'random_stem' found no stem in a song other .*Add songs"):
            evaluate(config, run)


def test_a_random_stem_that_nobody_asked_for_is_left_out_without_other_songs(run, monkeypatch):
    monkeypatch.setattr(EvaluationConfig, "policies", CONFIG.policies)
    assert "random_stem/toy" not in evaluate(ALONE, run)
    found = json.loads((run.folder / "metrics.json").read_text())
    assert list(found["policies"]) == ["silence", "noise", "truth"] and list(found["omitted_policies"]) == [
        "random_stem"
    ]
    for name in ("report.txt", "table.md"):
        assert "random_stem needs another song's stem" in (run.folder / name).read_text()
    evaluate(replace(CONFIG, max_songs=2, save_audio=0), run)
    assert "random_stem" in json.loads((run.folder / "metrics.json").read_text())["policies"]


def test_names_and_labels_are_checked(run):
    with pytest.raises(UnknownNameError, match="Did you mean 'silence'"):
        evaluate(replace(CONFIG, policies=("silense",)), run)
    with pytest.raises(ConfigError, match="labelled 'silence'"):
        evaluate(replace(CONFIG, policies=("silence", {"name": "truth", "label": "silence"})), run)
    with pytest.raises(UnknownNameError, match="Did you mean 'coherence'"):
        evaluate(replace(CONFIG, metrics=("coherense",)), run)
    with pytest.raises(ConfigError, match="episodes is 0"):
        replace(CONFIG, episodes=0)


def test_a_checkpoint_path_stands_for_a_decoder(monkeypatch):
    from jamgym.benchmark import evaluation

    asked = []
    monkeypatch.setattr(evaluation, "create_from_spec", lambda registry, spec, known: asked.append(spec))
    config = replace(CONFIG, policies=("runs/a/policy.safetensors",), checkpoints=("runs/b/policy.safetensors",))
    source = EpisodeSource(ToyCorpus(), ToyCodec())
    assert list(evaluation.make_policies(config, source.codec, source)) == ["a", "b"]
    assert asked[1] == {"name": "decoder", "checkpoint": "runs/b/policy.safetensors"}


@pytest.mark.parametrize("given", ["random_codes", "m48.wav", "{name: truth}"])
def test_what_is_in_checkpoints_is_a_path_and_never_a_policy(given, run):
    with pytest.raises(CheckpointError, match=given):
        evaluate(replace(CONFIG, checkpoints=(given,)), run)


def test_a_checkpoint_that_is_labelled_as_another_policy_is_explained(run):
    for given in (("truth",), ("runs/a/one.safetensors", "runs/a/two.safetensors")):
        with pytest.raises(ConfigError, match=f"{given[-1]}' is labelled .* after its folder.*label: OTHER"):
            evaluate(replace(CONFIG, checkpoints=given), run)


def test_the_command_line_reads_the_config():
    request = parse("jamgym evaluate", "", (), EvaluationConfig, ["--seed", "3", "--t_f", "-50", "--episodes", "8"])
    assert (request.config.seed, request.seed, request.config.t_f, request.config.episodes) == (3, 3, -50, 8)


def test_compare_stops_after_a_policy_when_asked(run):
    source = EpisodeSource(ToyCorpus(songs=3, seconds=3.0), ToyCodec(), frames=22)
    players = {"quiet": SilencePolicy(codec=source.codec, k=5), "truth": TruthPolicy(codec=source.codec, k=5)}

    def make_env():
        return AccompanimentVectorEnv(2, source=source, reward=None, autoreset_mode="Disabled", t_f=-5, k=5)

    episodes = source.fixed(3, seed=0)
    assert compare(players, make_env, episodes, [ToyReward()], run).labels == ("quiet", "truth")
    run.stop_requested = True
    stopped = compare(players, make_env, episodes, [ToyReward()], run)
    assert stopped.labels == ("quiet",) and stopped.left_out == ("truth was not played: the run was stopped.",)
