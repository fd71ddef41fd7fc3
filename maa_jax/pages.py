"""Self-contained HTML pages: Jinja2 templates filled with text, sounds and pictures."""

import base64
import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jinja2


@functools.cache
def templates() -> "jinja2.Environment":
    """Returns the templates in `maa_jax/templates/`, in which every value is escaped."""
    import jinja2  # here, so that programs can name the extra that installs it

    return jinja2.Environment(
        loader=jinja2.PackageLoader("maa_jax"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(template: str, **values: Any) -> str:
    """Returns a page.

    Args:
      template: file name in `maa_jax/templates/`.
      **values: variables of the template.

    Raises:
      jinja2.UndefinedError: the template refers to a variable that is not given.
    """
    return templates().get_template(template).render(values)


def data_uri(content: bytes, mime: str) -> str:
    """Returns a data URI of `content`, for the `src` of an image or a sound."""
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"
