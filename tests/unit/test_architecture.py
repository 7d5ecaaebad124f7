"""Who may import whom: layers point down, siblings are strangers, Ray stays at the edges, heavy libraries wait."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAYERS = {
    **dict.fromkeys(
        (
            *(
                "errors",
                "config",
                "columns",
                "records",
                "stored",
                "identity",
                "storage",
                "steps",
                "tracking",
                "progress",
            ),
            *("weights", "encoder"),
        ),
        0,
    ),
    **dict.fromkeys(("sources", "retrieval", "prompts", "teachers", "quality", "students", "evaluation", "report"), 1),
    "tasks": 2,
    **dict.fromkeys(("experiment", "cluster", "stages", "flow", "indexing", "prediction", "doctor", "launch"), 3),
    "ray_jobs": 4,
}
"""Each part of the system: a module or package of `pipeline`, and `ray_jobs`."""
SIBLINGS = {1}
"""Layers whose parts may not import each other."""
MAY_IMPORT = {("tasks", "prompts"), ("tasks", "retrieval"), ("tasks", "sources")}
"""What a task may import of layer 1: it states what is asked, of which passages, and on what it is judged."""
MAY_USE_RAY = {
    "pipeline.teachers.pool",
    "pipeline.students.train",
    "pipeline.cluster",
    "pipeline.flow",
    "pipeline.prediction.score",
    "pipeline.stages.retrieve",
    "pipeline.stages.trials",
    "pipeline.students.trial",
}
HEAVY = {
    *("torch", "transformers", "sentence_transformers", "datasets", "sklearn", "scipy", "pandas", "matplotlib"),
    *("mlflow", "ray", "vllm", "faiss", "bm25s", "numba", "lxml", "onnx", "onnxruntime", "huggingface_hub"),
    *("spacy", "sacrebleu", "mauve"),
}


def read_modules(root: Path) -> dict[str, ast.Module]:
    """Return the syntax tree of each module of the project under its dotted name."""
    found = {}
    for path in sorted([*root.glob("pipeline/**/*.py"), *root.glob("ray_jobs/**/*.py")]):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_text())
    return found


def find_imports(tree: ast.AST) -> Iterator[str]:
    """Yield the dotted name of all that is imported anywhere; `from a import b` may be of a module a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide which part is meant"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def find_imports_at_top(tree: ast.Module) -> Iterator[str]:
    """Yield what importing the module imports: functions' bodies and type-checking blocks left out."""
    pending: list[ast.AST] = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            pending += node.orelse
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from find_imports(node)
        pending += ast.iter_child_nodes(node)


def name_part(module: str) -> str | None:
    """Return the part of the system that a module belongs to; None for another library, and for the bare package."""
    parts = module.split(".")
    if parts[0] == "ray_jobs":
        return "ray_jobs"
    return parts[1] if parts[0] == "pipeline" and len(parts) > 1 and parts[1] != "__version__" else None


def find_wrong_imports(modules: dict[str, ast.Module]) -> list[str]:
    """Return a line for each import that points up, or to a sibling."""
    wrong = []
    for module, tree in modules.items():
        importer = name_part(module)
        if importer is None:
            continue
        for imported in find_imports(tree):
            target = name_part(imported)
            if target in (None, importer):
                continue
            points_up = LAYERS[target] > LAYERS[importer]
            is_sibling = LAYERS[target] == LAYERS[importer] and LAYERS[target] in SIBLINGS
            is_reach = importer == "tasks" and LAYERS[target] == 1 and (importer, target) not in MAY_IMPORT
            if points_up or is_sibling or is_reach:
                wrong.append(f"{module} imports {imported}")
    return wrong


def find_users(modules: dict[str, ast.Module], library: str) -> set[str]:
    return {name for name, tree in modules.items() if any(i.split(".")[0] == library for i in find_imports(tree))}


def find_heavy_at_top(modules: dict[str, ast.Module]) -> list[str]:
    return [
        f"{name} imports {imported}"
        for name, tree in modules.items()
        for imported in find_imports_at_top(tree)
        if imported.split(".")[0] in HEAVY
    ]


MODULES = read_modules(ROOT)


def test_the_modules_are_found():
    assert len([name for name in MODULES if name.startswith("pipeline.")]) >= 45
    assert len([name for name in MODULES if name.startswith("ray_jobs.")]) >= 6


def test_every_part_has_a_layer_and_every_layer_its_parts():
    assert {name_part(name) for name in MODULES} - {None} == set(LAYERS)


def test_imports_point_down_and_never_to_a_sibling():
    assert find_wrong_imports(MODULES) == []


def test_no_module_imports_itself_through_others():
    names = set(MODULES)
    graph = {
        module: {
            target
            for imported in find_imports(tree)
            for target in (imported, imported.rpartition(".")[0])
            if target in names and target != module and target != "pipeline"
        }
        for module, tree in MODULES.items()
    }
    assert sum(map(len, graph.values())) > 100
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"modules import each other in a circle: {error.args[1]}")


def test_ray_stays_at_the_edges():
    users = find_users(MODULES, "ray")
    assert users >= {"pipeline.teachers.pool", "pipeline.cluster"}
    assert {name for name in users if not name.startswith("ray_jobs.")} <= MAY_USE_RAY


def test_heavy_libraries_are_imported_where_they_are_used():
    assert find_heavy_at_top(MODULES) == []


def test_importing_everything_loads_no_heavy_library():
    """What a module imports may import what it likes; here nothing does."""
    script = (
        "import importlib, sys\n"
        f"for name in {[name for name in MODULES if name.startswith('pipeline')]}: importlib.import_module(name)\n"
        f"loaded = [name for name in sys.modules if name.startswith('pipeline.')]\n"
        f"print(sorted({HEAVY} & set(sys.modules)), len(loaded))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    loaded, n_modules = done.stdout.strip().rsplit(" ", 1)
    assert loaded == "[]"
    assert int(n_modules) >= 45


@pytest.mark.parametrize(
    ("module", "line", "is_wrong"),
    [
        ("pipeline/records.py", "from pipeline.tasks import TASKS", True),
        ("pipeline/quality/text.py", "from pipeline.teachers.ledger import Ledger", True),
        ("pipeline/quality/text.py", "import pipeline.teachers.ledger", True),
        ("pipeline/quality/text.py", "from pipeline import teachers", True),
        ("pipeline/quality/text.py", "def f():\n    from pipeline.flow import run", True),
        ("pipeline/tasks/new.py", "from pipeline.quality.text import normalise", True),
        ("pipeline/flow.py", "from ray_jobs import run", True),
        ("pipeline/tasks/new.py", "from pipeline.prompts.replies import Parsed", False),
        ("pipeline/quality/text.py", "from pipeline.quality.card import describe", False),
        ("pipeline/quality/text.py", "from pipeline import __version__", False),
        ("pipeline/report/html.py", "from pipeline.tracking import redact", False),
        ("ray_jobs/new.py", "from pipeline.launch import launch", False),
    ],
)
def test_the_layer_check_sees_a_wrong_import_and_lets_a_right_one_pass(tmp_path, module, line, is_wrong):
    path = tmp_path / module
    path.parent.mkdir(parents=True)
    path.write_text(f"{line}\n")
    assert bool(find_wrong_imports(read_modules(tmp_path))) == is_wrong


@pytest.mark.parametrize(
    ("source", "is_heavy"),
    [
        ("import torch", True),
        ("import torch.nn as nn", True),
        ("from sklearn.metrics import f1_score", True),
        ("try:\n    import ray\nexcept ImportError:\n    ray = None", True),
        ("class A:\n    import mlflow", True),
        ("if TYPE_CHECKING:\n    import torch", False),
        ("if TYPE_CHECKING:\n    pass\nelse:\n    import torch", True),
        ("def f():\n    import torch", False),
        ("import numpy, pyarrow", False),
        ("import raycast", False),
    ],
)
def test_the_check_for_heavy_imports_sees_those_that_importing_a_module_runs(source, is_heavy):
    assert bool(find_heavy_at_top({"pipeline.new": ast.parse(source)})) == is_heavy
