"""The templates of the pages, which lie in this folder."""

from __future__ import annotations

import jinja2


def template(name: str) -> jinja2.Template:
    """A page to fill in: what it is given is escaped, and a name that it is not given is an error."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("vlp.evaluation.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(name)
