"""The benchmarks run as their users run them; how fast they are is nobody's business here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "env_throughput.py"
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
