"""Who may import whom (architecture, section 3): every import statement of the package is held against the table."""

import ast
import platform
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "platform" / "eegvision"

LAYERS = [
    {"vocab"},
    {"failures", "overrides", "preflight", "pseudonyms", "spool", "telemetry"},
    {"config", "losses", "evaluate", "ingest", "checkpoint", "processes", "runs", "cluster", "ledger", "history"},
    {"encoders", "stream", "fanout", "tracking", "cli", "space"},
    {"objective", "optim", "readiness", "resume"},
    {"parts"},
    {"train", "analyses", "features"},
    {"stacked"},
    {"together"},
    {"distributed", "trials"},
    {"watching"},
    {"sweep", "report", "grid", "assess"},
    {"intake"},
    {"study", "audits", "recipes", "inspection"},
]
WALLS = {
    "ray": {"cluster", "stream", "distributed", "sweep", "fanout", "telemetry"},
    "mlflow": {"tracking"},
    "optuna": {"sweep", "space"},
    "mne": {"ingest.mne_epochs", "ingest.simulate", "ingest.prepare", "report"},
    "matplotlib": {"report"},
    "tyro": {"cli"},
}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def imports_of(path: Path) -> set[str]:
    """Dotted names of everything imported anywhere in a file, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports in full"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def layer_of(part: str) -> int:
    return next(number for number, layer in enumerate(LAYERS) if part in layer)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_imports_only_layers_below_and_siblings_in_its_folder(path):
    own = name_of(path).split(".")
    for imported in imports_of(path):
        parts = imported.split(".")
        if parts[0] != "eegvision" or len(parts) < 2:
            continue
        is_sibling = len(own) == 2 and parts[1] == own[0]
        assert is_sibling or layer_of(parts[1]) < layer_of(own[0]), f"{name_of(path)} imports {imported}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_third_parties_stay_behind_their_walls(path):
    for imported in imports_of(path):
        allowed = WALLS.get(imported.split(".")[0])
        own = {name_of(path), name_of(path).split(".")[0]}  # a folder's name stands for all modules in it
        assert allowed is None or own & allowed, f"{name_of(path)} imports {imported}"


def test_every_module_has_a_layer_and_no_layer_names_a_missing_one():
    named = set().union(*LAYERS)
    present = {name_of(path).split(".")[0] for path in MODULES}
    assert present <= named
    assert named <= present, "remove what is gone from the table"


def test_the_source_root_does_not_shadow_the_standard_library():
    assert not (ROOT / "platform" / "__init__.py").exists()
    assert str(ROOT) not in {str(Path(module_file).parent.parent) for module_file in [platform.__file__]}
    assert platform.system() in {"Linux", "Darwin", "Windows"}
    assert "eegvision" not in dir(sys.modules["platform"])


def test_files_and_functions_keep_to_a_readable_size():
    for path in [*MODULES, *(ROOT / "jobs").glob("*.py"), *(ROOT / "search_spaces").glob("*.py")]:
        text = path.read_text()
        assert text.count("\n") <= 600, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                assert lines <= (120 if node.name == "fit" else 80), f"{path}: {node.name} has {lines} lines"
