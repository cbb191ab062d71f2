import json
import sys

import numpy as np
import pytest
import soundfile

from jamgym import cli, registry
from jamgym.commands.rewards import RewardsConfig, cost, describe, list_rewards, toy_windows
from jamgym.errors import ConfigError, RewardError
from jamgym.testing import ToyReward


class Needy(ToyReward):
    """Has an argument without default."""

    range = (-np.inf, np.inf)

    def __init__(self, checkpoint: str) -> None:
        super().__init__()


class Raises(ToyReward):
    """Cannot be made."""

    def __init__(self) -> None:
        sys.exit("goodbye")


class Wrong(ToyReward):
    """Scores what nobody can use."""

    def score(self, windows):
        return np.full(len(windows.heard), np.nan)


class Odd(ToyReward):
    """Declares nonsense."""

    range = (1,)


class NoReward:
    """Nothing of the protocol."""


class Level(ToyReward):
    """Scores the level of the target."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__(needs=("target",))
        self.gain = gain

    def score(self, windows):
        return self.gain * np.abs(windows.target).max(axis=1)


@pytest.fixture(autouse=True)
def names(monkeypatch, tmp_path):
    here = {name.lower(): f"{__name__}:{name}" for name in ("Needy", "Raises", "Wrong", "Odd", "NoReward", "Level")}
    paths = {"toy": "jamgym.toys:ToyReward", "broken": "no_such_module:Reward", **here}
    monkeypatch.setattr(registry.rewards, "_paths", paths)
    monkeypatch.setattr(registry, "entry_points", lambda group: [])
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("JAMGYM_DEBUG", raising=False)


def rows(text):
    return {line.split()[0]: " ".join(line.split()[1:]) for line in text.splitlines() if line}


def test_every_reward_is_listed_whatever_is_wrong_with_it(capsys):
    assert cli.main(["rewards"]) == 0
    text = capsys.readouterr().out
    found = rows(text)
    assert set(registry.rewards.names()) <= set(found)
    assert found["toy"].startswith("0 to 1 - 1 s 0.4 s 0.4 s yes") and found["toy"].endswith("x real time")
    assert "cannot be imported from no_such_module:Reward: ModuleNotFoundError: No mod" in found["broken"]
    assert found["needy"].startswith("-inf to inf") and "needs checkpoint; give --reward.checkpoint" in found["needy"]
    assert "fails: SystemExit: goodbye" in found["raises"]
    assert "fails: RewardError: Reward 'toy' returned nan" in found["wrong"]
    assert found["odd"].startswith("? - 1 s") and "is not a reward model" in found["noreward"]
    assert found["level"].startswith("0 to 1 target") and "in batches of 8" in text


def test_without_cost_nothing_is_scored(capsys, monkeypatch):
    monkeypatch.setattr(ToyReward, "score", lambda self, windows: pytest.fail("scored"))
    assert cli.main("rewards --cost false".split()) == 0
    found = rows(capsys.readouterr().out)
    assert found["toy"].endswith("not measured") and found["wrong"].endswith("not measured")


def test_one_reward_with_its_arguments(capsys):
    assert cli.main("rewards --reward needy --reward.checkpoint x --batch 2".split()) == 0
    found = rows(capsys.readouterr().out)
    assert set(found) == {"reward", "needy", "Cost:"} and found["needy"].endswith("x real time")
    assert cli.main("rewards --reward needy".split()) == 2
    assert cli.main("rewards --reward broken".split()) == 1
    assert cli.main("rewards --reward toyy".split()) == 2
    assert "Did you mean 'toy'" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="batch is 0"):
        RewardsConfig(batch=0)


def test_cost_is_the_time_of_a_window_and_counts_a_window_per_hop(monkeypatch):
    clock = iter(np.arange(100) * 0.5)  # every look at the clock takes half a second, so one call is enough
    monkeypatch.setattr("jamgym.commands.rewards.time.perf_counter", lambda: next(clock))
    # 0.5 s for 5 windows: 100 ms each; a window every 0.4 s.
    assert cost(ToyReward(), 5) == "100 ms, 4 x real time"
    with pytest.raises(RewardError, match="toy music"):
        cost(Wrong(), 5)


def test_toy_windows_have_what_is_needed():
    windows = toy_windows(ToyReward(window_seconds=2.0, needs=("truth", "target")), 3)
    assert windows.heard.shape == windows.played.shape == windows.target.shape == (3, 32_000)
    assert windows.heard.std() > 0.01 and windows.played.std() > 0.01
    assert not np.array_equal(windows.played[0], windows.played[1])
    assert len(windows.truth) == 3 and all(len(truth.chord_roots) for truth in windows.truth)
    windows = toy_windows(ToyReward(), 3)
    assert windows.truth is None and windows.target is None


def test_shipped_rewards_can_be_listed(monkeypatch):
    monkeypatch.undo()
    for name, path in registry.rewards.paths().items():
        if path.startswith("jamgym") and name != "mixture":  # which declares what its components do
            assert None not in describe(name, None).declared.values(), name
    text = list_rewards(RewardsConfig(reward="note_in_chord", batch=2))
    assert "truth" in text and "x real time" in text


@pytest.fixture
def wav():
    for name, level in (("a", 0.2), ("b", 0.2), ("c", 0.4)):
        audio = level * np.sin(np.arange(32_000) * 0.1)
        soundfile.write(f"{name}.wav", audio, 16_000, subtype="FLOAT")


@pytest.mark.usefixtures("wav")
def test_score_prints_windows_and_mean_and_writes_what_is_asked_for(capsys, tmp_path):
    assert cli.main("rewards score toy --heard a.wav --played b.wav".split()) == 0
    text = capsys.readouterr().out
    assert "Reward toy, version 1, range 0 to 1" in text and "a.wav  (2.00 s, 16000 Hz, 1 channel)" in text
    table = [line.split() for line in text.splitlines() if line.startswith("  ")]
    assert table[:3] == [["0.00", "0.40", "1.000"], ["0.00", "0.80", "1.000"], ["0.20", "1.20", "1.000"]]
    assert table[-1] == ["mean", "1.000"] and len(table) == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.wav", "b.wav", "c.wav"]

    assert cli.main("rewards score toy --heard a.wav --played b.wav --out deep/er".split()) == 0
    assert sorted(path.name for path in (tmp_path / "deep/er").iterdir()) == ["scores.json", "scores.png"]
    written = json.loads((tmp_path / "deep/er/scores.json").read_text())
    assert written["mean"] == pytest.approx(1.0) and written["spec"] == "toy" and written["seconds"] == 2.0
    assert written["files"] == {"heard": "a.wav", "played": "b.wav", "target": None}
    assert written["windows"][2] == {"start": pytest.approx(0.2), "end": pytest.approx(1.2), "score": pytest.approx(1)}


@pytest.mark.usefixtures("wav")
def test_score_takes_arguments_target_and_yaml(capsys, tmp_path):
    argv = "rewards score level --heard a.wav --played b.wav --target c.wav"
    assert cli.main([*argv.split(), "--reward.gain", "0.5"]) == 0
    assert "mean     0.200" in capsys.readouterr().out
    (tmp_path / "s.yaml").write_text(
        f"reward: {{name: '{__name__}:Level', gain: 2}}\nheard: a.wav\nplayed: b.wav\ntarget: c.wav\n"
    )
    assert cli.main("rewards score --config s.yaml".split()) == 0
    assert "mean     0.800" in capsys.readouterr().out
    assert cli.main("rewards score toy --heard a.wav --played b.wav --target c.wav".split()) == 0
    assert "c.wav was not used" in capsys.readouterr().out


@pytest.mark.usefixtures("wav")
@pytest.mark.parametrize(
    ("argv", "status", "message"),
    [
        ("score toyy --heard a.wav --played b.wav", 2, "Did you mean 'toy'"),
        ("score toy --heard a.wav", 2, "played is missing"),
        ("score --heard a.wav --played b.wav", 2, "reward is missing"),
        ("score level --heard a.wav --played b.wav", 2, "--target FILE"),
        ("score level --reward.gian 2 --heard a.wav --played b.wav", 2, "Did you mean 'gain'"),
        ("score needy --heard a.wav --played b.wav", 2, "--reward.checkpoint VALUE"),
        ("score toy --heard a.wav --played b.waw", 1, "Did you mean 'b.wav'"),
        ("score wrong --heard a.wav --played b.wav", 1, "returned nan"),
        ("score broken --heard a.wav --played b.wav", 1, "No module named"),
        ("score toy --heard a.wav --played b.wav --resume", 2, "Unknown option '--resume'"),
        ("scor toy --heard a.wav --played b.wav", 2, "Did you mean 'rewards score'"),
        ("--seed 3", 2, "Unknown option '--seed'"),
    ],
)
def test_mistakes_end_with_the_documented_status_and_one_line(argv, status, message, capsys, tmp_path):
    assert cli.main(["rewards", *argv.split()]) == status
    shown = capsys.readouterr()
    assert message in shown.err and shown.err.count("\n") == 1 and shown.out == ""
    assert not (tmp_path / "runs").exists()
