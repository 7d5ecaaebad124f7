"""Errors: one root, and whole on the other side of a process border."""

import ast
import pickle
from pathlib import Path

import pytest

from pipeline import errors
from pipeline.errors import RaystillError

ERRORS = [value for value in vars(errors).values() if isinstance(value, type) and value.__module__ == errors.__name__]


def test_all_errors_derive_from_the_root():
    assert len(ERRORS) >= 7
    assert all(issubclass(error, RaystillError) for error in ERRORS)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_an_error_is_the_same_after_pickling(error):
    message = "no file /data/x.tsv; put it there"
    copy = pickle.loads(pickle.dumps(error(message)))
    assert type(copy) is error
    assert str(copy) == message
    assert copy.args == (message,)


def test_errors_stand_in_one_module():
    root = Path(errors.__file__).parent
    paths = sorted(root.rglob("*.py"))
    assert len(paths) >= 45
    elsewhere = [
        f"{path.relative_to(root)}: {node.name}"
        for path in paths
        if path.name != "errors.py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
        and any(ast.unparse(base).endswith(("Error", "Exception")) for base in node.bases)
    ]
    assert elsewhere == []
