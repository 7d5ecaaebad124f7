"""Jinja templates, beside the tasks that own them (`pipeline/tasks/templates/<task>/`).

A name that a template uses and nobody gave is an error: an empty hole in a prompt would cost tokens and show nowhere.
"""

from collections.abc import Iterable
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from pipeline.identity import digest


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("pipeline.tasks"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
    )


def render(template: str, **values: object) -> str:
    """Return a rendered template.

    Raises:
        jinja2.UndefinedError: The template uses a name that was not given.
    """
    return _environment().get_template(template).render(**values).strip()


def render_source(source: str, **values: object) -> str:
    """Return a rendered template whose source is given, as in a configuration.

    Raises:
        jinja2.TemplateError: The source is no template, or uses a name that was not given.
    """
    return _compile(source).render(**values).strip()


@cache
def _compile(source: str) -> Template:
    return _environment().from_string(source)


def digest_templates(templates: Iterable[str]) -> str:
    """Return a digest of templates' sources."""
    environment = _environment()
    loader = environment.loader
    assert loader is not None
    return digest({name: loader.get_source(environment, name)[0] for name in templates})
