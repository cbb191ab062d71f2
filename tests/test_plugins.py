"""Rewards of third parties, found by entry point: what docs/rewards.md says, installed and run as a user would."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from jamgym.testing import ToyCodec
from jamgym_agents.checkpoint import new_decoder, save_decoder
from jamgym_agents.decoder import DecoderConfig

ROOT = Path(__file__).resolve().parent.parent
_FILE = re.compile(r"^<!-- file: (\S+) -->\n```\w+\n(.*?)^```$", re.M | re.S)
TINY = DecoderConfig(latent_dim=8, dim=32, layers=2, heads=2, kv_heads=1, depth_dim=32, dropout=0.0)
BROKEN = """
[project]
name = "broken-reward"
version = "1"

[project.entry-points."jamgym.rewards"]
broken = "broken_reward:Reward"
"""


def documented() -> dict[str, str]:
    """Return the files that the page tells a user to write."""
    return dict(_FILE.findall((ROOT / "docs" / "rewards.md").read_text(encoding="utf-8")))


def write(folder: Path, files: dict[str, str]) -> str:
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return str(folder)


@pytest.fixture(scope="module")
def jamgym(tmp_path_factory):
    """Return a function that runs `jamgym` where both packages are installed beside the present environment."""
    # Looked for and not imported: setuptools replaces distutils, which does not go with this process.
    for tool in ("pip", "setuptools"):
        if find_spec(tool) is None:
            pytest.skip(f"builds a package without the network, which needs {tool}")
    base = tmp_path_factory.mktemp("plugins")
    good = write(base / "groove", documented())
    # The import that fails is that of something the user has not installed.
    broken = write(base / "broken", {"pyproject.toml": BROKEN, "broken_reward.py": "import no_such_module_xyz\n"})
    options = "--quiet --no-deps --no-build-isolation --no-index --disable-pip-version-check --target".split()
    command = [sys.executable, "-m", "pip", "install", *options, str(base / "site"), good, broken]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    save_decoder(base / "start.safetensors", new_decoder(TINY, ToyCodec()), ToyCodec().version, {})
    settings = {
        "corpus": {"name": "jamgym.toys:ToyCorpus", "songs": 2, "seconds": 3.0},
        "codec": "jamgym.toys:ToyCodec",
        "checkpoint": str(base / "start.safetensors"),
        **{"t_f": -5, "k": 5, "frames": 50, "latency": "none", "bf16": False},
        **{"rollouts": 1, "envs": 2, "episodes_per_batch": 2, "critic_warm_up": 1},
    }
    (base / "tiny.yaml").write_text(yaml.safe_dump(settings))
    path = os.pathsep.join([str(base / "site"), str(ROOT), str(ROOT / "agents"), str(ROOT / "rewards")])
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}

    def run(*arguments):
        command = [sys.executable, "-m", "jamgym.cli", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=base, env=env)

    run.folder, run.env = base, env
    return run


def test_the_reward_of_the_page_has_twenty_lines():
    files = documented()
    assert set(files) == {"groove.py", "pyproject.toml"} and len(files["groove.py"].splitlines()) <= 20


@pytest.mark.slow
def test_a_package_brings_a_reward_and_a_broken_one_beside_it_hurts_nobody(jamgym):
    done = jamgym("rewards", "--batch", "2")
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line for line in done.stdout.splitlines() if line}
    assert {"groove", "broken", "coherence", "judge", "note_in_chord", "beat"} <= set(rows)
    assert "-1 to 1" in rows["groove"] and rows["groove"].endswith("x real time")
    assert "broken_reward:Reward: ModuleNotFoundError: No module named 'no_such_module_xyz'" in rows["broken"]
    assert [name for name, row in rows.items() if "Error" in row] == ["broken"]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["name", "path"])
def test_finetune_trains_on_it(jamgym, how):
    reward = {"name": "groove", "path": "groove:Groove"}[how]
    arguments = ("--reward", reward, "--reward.block_seconds", "0.04", "--quiet", "--out", f"runs/{how}")
    done = jamgym("finetune", "--config", "tiny.yaml", *arguments)
    assert done.returncode == 0, done.stderr
    folder = jamgym.folder / "runs" / how
    kept = yaml.safe_load((folder / "config.yaml").read_text())
    assert kept["reward"] == {"name": reward, "block_seconds": 0.04}
    assert (folder / "decoder.safetensors").exists() and "score_first" in done.stdout


def test_a_file_in_the_working_folder_needs_no_package(jamgym, tmp_path):
    write(tmp_path / "work", {"swing.py": documented()["groove.py"], "jsonargparse.py": "raise SystemExit('hidden')\n"})
    # As the installed command does: the first entry of sys.path is the script's folder.
    write(tmp_path / "bin", {"jamgym": "import sys\nfrom jamgym.cli import main\nsys.exit(main())\n"})
    command = [sys.executable, str(tmp_path / "bin" / "jamgym"), "rewards", "--reward", "swing:Groove", "--cost=false"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path / "work", env=jamgym.env)
    assert done.returncode == 0, done.stderr
    assert "swing:Groove  -1 to 1" in done.stdout


def test_the_broken_one_breaks_only_its_own_use(jamgym):
    done = jamgym("finetune", "--config", "tiny.yaml", "--reward", "broken", "--out", "runs/broken")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "'broken' could not be imported from 'broken_reward:Reward': ModuleNotFoundError" in done.stderr
    assert "groove" in done.stderr and not (jamgym.folder / "runs/broken").exists()
