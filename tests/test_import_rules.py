import ast
import subprocess
import sys
from pathlib import Path

import pytest

import jamgym

CORE = Path(jamgym.__file__).parent
ROOT = CORE.parent
#: Core modules that may use torch when they are imported themselves; `import jamgym` reaches none of them.
TORCH_MODULES = ("codecs/", "wrappers/", "checkpoint.py", "commands/", "live/", "cli.py", "run.py")
NOT_PACKAGES = ("configs", "examples", "tests", "benchmarks")


def imports(path: Path, inside_functions: bool) -> set[str]:
    """Return the top packages that a file imports, at module level or anywhere."""
    tree = ast.parse(path.read_text())
    skip = set()
    if not inside_functions:
        for node in ast.walk(tree):
            typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) or typing_only:
                skip.update(id(child) for child in ast.walk(node))
    found = set()
    for node in ast.walk(tree):
        if id(node) in skip:
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module.split(".")[0])
    return found


def core_files():
    return [p for p in sorted(CORE.rglob("*.py")) if p.is_file()]


@pytest.mark.parametrize("path", core_files(), ids=lambda p: str(p.relative_to(CORE)))
def test_core_imports(path):
    name = path.relative_to(CORE).as_posix()
    composition_root = name == "cli.py" or name.startswith("commands/")
    if not composition_root:
        everywhere = imports(path, inside_functions=True)
        assert not everywhere & {"jamgym_agents", "jamgym_rewards", *NOT_PACKAGES}
    if not name.startswith(TORCH_MODULES):
        assert not imports(path, inside_functions=False) & {"torch", "stable_baselines3", "transformers"}


@pytest.mark.parametrize(
    ("package", "other"), [("jamgym_rewards", "jamgym_agents"), ("jamgym_agents", "jamgym_rewards")]
)
def test_agents_and_rewards_are_strangers(package, other):
    folder = Path(__import__(package).__file__).parent
    for path in folder.rglob("*.py"):
        assert not imports(path, inside_functions=True) & {other, *NOT_PACKAGES}, path


def test_the_guard_sees_a_violation(tmp_path):
    path = tmp_path / "bad.py"
    path.write_text("def f():\n    from jamgym_agents import x\nimport torch.nn\n")
    assert imports(path, inside_functions=True) == {"jamgym_agents", "torch"}
    assert imports(path, inside_functions=False) == {"torch"}


def test_import_is_fast_and_light():
    code = (
        "import sys, time; start = time.process_time(); import jamgym; spent = time.process_time() - start;"
        "heavy = {'torch', 'matplotlib', 'scipy', 'stable_baselines3', 'transformers'} & set(sys.modules);"
        "assert not heavy, heavy; print(spent)"
    )
    times = [
        float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
        for _ in range(3)
    ]
    # Processor time, the least of three: what else the machine does is not the package's fault.
    assert min(times) < 0.5


def test_public_names():
    assert len([name for name in jamgym.__all__ if not name.startswith("_")]) <= 15
    assert all(hasattr(jamgym, name) for name in jamgym.__all__)
