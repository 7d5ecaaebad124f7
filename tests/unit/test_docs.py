"""What is public says what it is for."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PATHS = sorted([*ROOT.glob("pipeline/**/*.py"), *ROOT.glob("ray_jobs/**/*.py")])
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def find_public(tree: ast.Module) -> Iterator[Definition]:
    """Yield the public functions and classes of a module, and the public methods of those classes."""
    for node in tree.body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from find_public(ast.Module(node.body, []))


def find_undocumented(tree: ast.Module) -> list[str]:
    found = [] if ast.get_docstring(tree) else ["the module"]
    return found + [node.name for node in find_public(tree) if not ast.get_docstring(node)]


def test_the_modules_and_what_is_public_in_them_are_found():
    assert len(PATHS) >= 51
    assert sum(1 for path in PATHS for _ in find_public(ast.parse(path.read_text()))) >= 150


@pytest.mark.parametrize("path", PATHS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_and_all_that_is_public_in_it_has_a_docstring(path):
    assert find_undocumented(ast.parse(path.read_text())) == []


def test_what_lacks_a_docstring_is_seen():
    source = "def f(): pass\nclass A:\n    '''Say.'''\n    def g(self): pass\n    def _h(self): pass\ndef _i(): pass"
    assert find_undocumented(ast.parse(source)) == ["the module", "f", "g"]
