"""The examples run as their users run them: in a process of their own."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jamgym.testing import RewardConformance

EXAMPLES = Path(__file__).parents[1] / "examples"
TOYS = ("--corpus", "jamgym.testing:ToyCorpus", "--codec", "jamgym.testing:ToyCodec")
TOY_REWARD = ("--reward", "jamgym.testing:ToyReward")


def run(name, *arguments):
    result = subprocess.run(
        [sys.executable, EXAMPLES / name, *arguments],
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def last_number(text):
    return float(re.findall(r"-?\d+\.\d+", text)[-1])


def test_random_agent():
    out = run("random_agent.py", *TOYS, *TOY_REWARD, "--calls", "10")
    assert "10 random chunks" in out and 0.0 <= last_number(out) <= 10.0


def test_plain_sb3():
    out = run("plain_sb3.py", *TOYS, *TOY_REWARD, "--steps", "200")
    assert out.startswith("200 steps") and 0.0 < last_number(out) <= 1.0


def test_rllib_ppo():
    pytest.importorskip("ray.rllib", reason="needs the extra `rllib`")
    out = run("rllib_ppo.py", *TOYS, *TOY_REWARD, "--iterations", "2", "--steps", "160")
    assert "iteration 2: 320 steps" in out and 0.0 < last_number(out) <= 1.0


def test_custom_reward():
    assert 0.0 <= last_number(run("custom_reward.py", *TOYS)) <= 1.0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments"),
    [("random_agent.py", ()), ("custom_reward.py", ()), ("plain_sb3.py", ("--steps", "2000"))],
)
def test_with_the_shipped_weights(name, arguments):
    out = run(name, *arguments)
    assert name != "plain_sb3.py" or out.startswith("2000 steps")


class TestCustomReward(RewardConformance):
    def make(self):
        spec = importlib.util.spec_from_file_location("custom_reward", EXAMPLES / "custom_reward.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.RestWhereLoud()


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_examples_are_tested_and_short(path):
    assert path.name in Path(__file__).read_text()
    assert len(path.read_text().splitlines()) < 60
