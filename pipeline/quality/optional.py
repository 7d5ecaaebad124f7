"""Packages that only some measures call: whether they are here, and what is said where they aren't."""

from importlib.metadata import PackageNotFoundError, version

from pipeline.errors import NotMeasuredError

HOW_TO_INSTALL = {
    "spacy": "install the extra `quality`",
    "mauve-text": "install the extra `mauve`; beside faiss-gpu, `pip install --no-deps mauve-text`",
}


def find_version(package: str) -> str | None:
    """Return the version of an installed package; None where it isn't."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def require(package: str) -> None:
    """Return if a package is installed.

    Raises:
        NotMeasuredError: It isn't.
    """
    if find_version(package) is None:
        raise NotMeasuredError(f"the package {package} is not installed; {HOW_TO_INSTALL[package]}")
