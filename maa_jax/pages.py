"""HTML pages that need no other file: Jinja2 templates filled with text, sounds and pictures."""

import base64
from typing import Any

import jinja2

TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("maa_jax"),  # maa_jax/templates/
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render(template: str, **values: Any) -> str:
    """Returns a page.

    Args:
      template: file name in `maa_jax/templates/`.
      **values: what the template refers to; strings are escaped.

    Raises:
      jinja2.UndefinedError: the template refers to something that is not given.
    """
    return TEMPLATES.get_template(template).render(values)


def data_uri(content: bytes, mime: str) -> str:
    """Returns an address that holds `content` itself, for the `src` of an image or a sound."""
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"
