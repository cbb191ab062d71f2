import json
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jamgym import AccompanimentVectorEnv, EpisodeSource, cli
from jamgym.benchmark import profiling
from jamgym.benchmark.profiling import ProfileConfig, plan, profile
from jamgym.config import parse_yaml
from jamgym.errors import ConfigError, LookaheadError, UnknownNameError
from jamgym.latency import CostLatency, make_latency
from jamgym.latency_trace import read_trace
from jamgym.run import Run
from jamgym.testing import ToyCodec, ToyCorpus
from jamgym_agents.baselines import RandomCodesPolicy

TOY = "jamgym.testing:"
CORPUS = {"name": TOY + "ToyCorpus", "songs": 4, "seconds": 3.0}
CONFIG = ProfileConfig(
    policy="random_codes",
    corpus=CORPUS,
    codec=TOY + "ToyCodec",
    k_choices=(1, 5),
    t_f=-5,
    frames=22,
    episodes=2,
    calls=12,
    warm_up=3,
)
#: Ticks at 16 kHz: base, per frame, and what the first calls of a policy cost on top.
BASE, PER_FRAME, COLD = 320, 64, 16_000


class Clock:
    """A clock that only `TimedPolicy` moves."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


CLOCK = Clock()


class TimedPolicy(RandomCodesPolicy):
    """Takes BASE + PER_FRAME * k ticks per call, one more each time; its first `cold` calls take COLD more."""

    made: list = []

    def __init__(self, cold=3, **arguments):
        super().__init__(**arguments)
        self.cold, self.asked, self.rows = cold, 0, []
        self.made.append(self)

    def act(self, observation):
        ticks = BASE + PER_FRAME * self.k + self.asked + (COLD if self.asked < self.cold else 0)
        CLOCK.now += ticks / 16_000
        self.asked += 1
        self.rows.append(len(observation["frame"]))
        return super().act(observation)


TIMED = replace(CONFIG, policy=f"{__name__}:TimedPolicy")


@pytest.fixture
def run(tmp_path):
    return Run.create(tmp_path / "run", command="profile", config={}, seed=0, quiet=True)


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr(CLOCK, "now", 0.0)
    monkeypatch.setattr(profiling, "perf_counter", CLOCK)
    TimedPolicy.made.clear()


def source():
    return EpisodeSource(ToyCorpus(songs=4, seconds=3.0), ToyCodec(), "test", 22)


def test_warm_up_calls_are_made_and_not_measured(run, clock):
    profile(TIMED, run)
    # 22 calls an episode for k=1 (two episodes), 5 for k=5 (three, to have 12 calls).
    for k, calls, policy in zip((1, 5), (44, 15), TimedPolicy.made, strict=True):
        assert policy.asked == calls + 3 and set(policy.rows) == {1}
        ticks = read_trace(run.folder / f"trace-k{k}.jsonl").ticks(16_000)
        assert ticks.tolist() == [BASE + PER_FRAME * k + 3 + call for call in range(calls)]
    found = json.loads((run.folder / "metrics.json").read_text())
    assert found["chunks"]["5"]["calls"] == 15
    assert found["chunks"]["5"]["max_seconds"] == pytest.approx((BASE + PER_FRAME * 5 + 17) / 16_000)
    TimedPolicy.made.clear()
    profile(replace(TIMED, warm_up=2), run)
    assert read_trace(run.folder / "trace-k5.jsonl").ticks(16_000)[0] == BASE + PER_FRAME * 5 + 2 + COLD


def test_the_files_are_latency_models(run, clock):
    config = replace(TIMED, k_choices=(1, 5, 10), policy={"name": TIMED.policy, "cold": 0})
    figures = profile(config, run)
    cost = make_latency({"name": "cost", "path": str(run.folder / "cost.json")})
    assert isinstance(cost, CostLatency)
    # The k=1 policy has made more calls, and each one took a tick more than the one before.
    assert cost.base_seconds == pytest.approx(BASE / 16_000, rel=0.12)
    assert cost.seconds_per_frame == pytest.approx(PER_FRAME / 16_000, rel=0.12)
    assert 0 < cost.sigma < 0.1
    assert figures["cost/base_seconds"] == cost.base_seconds and figures["k5/calls"] == 15
    measured = json.loads((run.folder / "cost.json").read_text())["measured"]
    assert measured["policy"] == config.policy and measured["t_f"] == -5


@pytest.mark.parametrize("k", [1, 5])
def test_a_simulation_replays_the_measured_latencies(k, run, clock):
    profile(TIMED, run)
    path = run.folder / f"trace-k{k}.jsonl"
    env = AccompanimentVectorEnv(
        2,
        autoreset_mode="Disabled",
        source=source(),
        reward=None,
        t_f=-5,
        k=k,
        latency={"name": "trace", "path": str(path)},
    )
    env.reset(seed=1)
    calls = -(-22 // k)
    for _ in range(calls):
        env.step(np.zeros((2, k * 2), dtype=np.int64))
    for row in range(2):
        assert env.event_log(row).latency.tolist() == [BASE + PER_FRAME * k + 3 + call for call in range(calls)]


def test_real_calls_take_real_time(run):
    figures = profile(CONFIG, run)
    for k in (1, 5):
        assert 0 < figures[f"k{k}/p50_seconds"] <= figures[f"k{k}/p95_seconds"] <= figures[f"k{k}/max_seconds"] < 5
    report = (run.folder / "report.txt").read_text()
    assert report.startswith("Time per call of random_codes, t_f=-5, budget 200 ms")
    assert f"{{name: trace, path: {run.folder}/trace-k5.jsonl}}" in report
    assert f"{{name: cost, path: {run.folder}/cost.json}}" in report
    assert "| k | calls | p50 ms |" in (run.folder / "table.md").read_text()


@pytest.mark.parametrize("name", ["my prof: #1", "it's, here", "{a}"])
def test_what_the_report_says_can_be_pasted_into_a_shell(tmp_path, name):
    run = Run.create(tmp_path / name, command="profile", config={}, seed=0, quiet=True)
    profile(CONFIG, run)
    lines = [shlex.split(line) for line in (run.folder / "report.txt").read_text().splitlines() if "--latency" in line]
    found = [parse_yaml(words[words.index("--latency") + 1]) for words in lines]
    assert found == [
        {"name": "trace", "path": f"{run.folder}/trace-k5.jsonl"},
        {"name": "cost", "path": f"{run.folder}/cost.json"},
    ]


def test_one_chunk_size_gives_a_trace_but_no_cost(run):
    figures = profile(replace(CONFIG, k_choices=(5,)), run)
    assert (run.folder / "trace-k5.jsonl").exists() and not (run.folder / "cost.json").exists()
    assert not any(name.startswith("cost/") for name in figures)
    assert "No cost.json" in (run.folder / "report.txt").read_text()
    assert "name: cost" not in (run.folder / "report.txt").read_text()


def test_a_lookahead_oracle_is_refused_or_labelled(run):
    with pytest.raises(LookaheadError):
        profile(replace(CONFIG, t_f=5), run)
    profile(replace(CONFIG, t_f=5, allow_lookahead=True), run)
    assert "LOOK-AHEAD ORACLE" in (run.folder / "report.txt").read_text()
    assert json.loads((run.folder / "metrics.json").read_text())["chunks"]["1"]["budget_share"] is None


def test_threads_are_set_while_measuring_and_put_back(run, monkeypatch):
    import torch

    before = torch.get_num_threads()
    seen = []
    monkeypatch.setattr(RandomCodesPolicy, "choose", lambda self, episode: seen.append(torch.get_num_threads()))
    with pytest.raises(TypeError):
        profile(replace(CONFIG, threads=before + 1), run)
    assert seen == [before + 1] and torch.get_num_threads() == before
    monkeypatch.undo()
    profile(replace(CONFIG, threads=before + 1), run)
    assert json.loads((run.folder / "metrics.json").read_text())["machine"]["torch_threads"] == before + 1
    assert torch.get_num_threads() == before


def test_ctrl_c_keeps_what_was_measured_whole(run, clock, monkeypatch):
    act = TimedPolicy.act

    def stop(self, observation):
        # In the first of the three episodes that k=5 is to play.
        run.stop_requested |= self.k == 5 and self.asked == 5
        return act(self, observation)

    monkeypatch.setattr(TimedPolicy, "act", stop)
    figures = profile(TIMED, run)
    assert {name.split("/")[0] for name in figures} == {"k1"}
    assert not (run.folder / "trace-k5.jsonl").exists()
    run.stop_requested = False
    assert profile(replace(TIMED, k_choices=(5, 1)), run) == {}
    assert TimedPolicy.made[-1].asked == 0


def test_every_episode_is_played_and_repeated_until_there_are_enough_calls():
    a, b = source().fixed(2, 0)
    assert plan([a, b], 1, 1) == [a, b]
    assert plan([a, b], 5, 10) == [a, b]
    assert plan([a, b], 5, 11) == [a, b, a]
    assert plan([a, b], 22, 5) == [a, b, a, b, a]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"k_choices": ()}, "k_choices"),
        ({"k_choices": (1, 0)}, "k_choices"),
        ({"k_choices": (5, 5)}, "distinct"),
        ({"calls": 0}, "calls is 0"),
        ({"warm_up": -1}, "warm_up is -1"),
        ({"threads": 0}, "threads is 0"),
    ],
)
def test_impossible_settings(change, match):
    with pytest.raises(ConfigError, match=match):
        replace(CONFIG, **change)


def test_unknown_policies_have_a_nearest_name(run):
    with pytest.raises(UnknownNameError, match="Did you mean 'silence'"):
        profile(replace(CONFIG, policy="silense"), run)


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    argv = (
        f"profile --policy random_codes --policy.seed 3 --corpus {TOY}ToyCorpus --corpus.songs 3 --codec {TOY}ToyCodec "
        "--k_choices [1,5] --t_f -5 --frames 22 --episodes 1 --calls 5 --quiet"
    )
    assert cli.main([*argv.split(), "--out", "r"]) == 0
    shown = capsys.readouterr()
    assert "p99 ms" in shown.out and shown.out.rstrip().endswith("Run folder: r") and shown.err == ""
    names = {path.name for path in Path("r").iterdir()}
    assert {"cost.json", "trace-k1.jsonl", "trace-k5.jsonl", "metrics.json", "table.md", "report.txt"} <= names
    assert cli.main([*argv.split(), "--out", "s", "--threads", "0"]) == 2
    assert "threads is 0" in capsys.readouterr().err
    # What the report says can be typed.
    argv = f"evaluate --policies [silence] --metrics [{TOY}ToyReward] --corpus {TOY}ToyCorpus --codec {TOY}ToyCodec"
    argv += " --t_f -5 --k 5 --frames 22 --episodes 2 --resamples 50 --save_audio 0 --quiet"
    for number, latency in enumerate(("cost --latency.path r/cost.json", "trace --latency.path r/trace-k5.jsonl")):
        assert cli.main([*argv.split(), "--latency", *latency.split(), "--out", f"e{number}"]) == 0
    assert cli.main([*argv.split(), "--k", "1", "--latency", "{name: trace, path: r/trace-k5.jsonl}"]) == 2
    assert "recorded with k=5" in capsys.readouterr().err
