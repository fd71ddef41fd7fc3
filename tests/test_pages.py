import base64

import jinja2
import numpy as np
import pytest

from maa_jax.pages import data_uri, render, templates


@pytest.fixture
def from_macros():
    """Renders an expression with the shared macros in scope."""

    def render_expression(expression, **values):
        source = '{% from "macros.html" import histogram, player, table %}{{ ' + expression + " }}"
        return templates().from_string(source).render(values)

    return render_expression


def test_foreign_text_is_escaped(from_macros):
    caption = '<script>alert("rain & wind")</script>'
    text = from_macros("player('data:,', about) ~ table([[about]])", about=caption)
    assert "<script" not in text
    assert text.count("&lt;script&gt;alert(&#34;rain &amp; wind&#34;)") == 2


def test_a_table_has_its_headings_and_names_its_rows(from_macros):
    text = from_macros("table([['rain', 3]], ['source', 'recordings'])")
    assert '<th scope="col">recordings</th>' in text
    assert '<th scope="row">rain</th><td>3</td>' in text


def test_the_bars_of_a_histogram_stand_for_its_counts(from_macros):
    bins = [(0.0, 0.5, 1), (0.5, 1.0, 4)]
    text = from_macros("histogram(bins, 0.5, [0.0, 1.0], 'scores')", bins=bins)
    assert 'class="rejected" x="10.0" y="140.0" width="349.0" height="40.0"' in text
    assert 'class="accepted" x="360.0" y="20.0" width="349.0" height="160.0"' in text
    assert "<title>0.500 to 1.000: 4</title>" in text


def test_a_histogram_of_nothing_has_no_bars(from_macros):
    text = from_macros("histogram([(0.0, 1.0, 0)], 0.5, [], 'scores')")
    assert 'height="0.0"' in text


def test_a_value_that_a_template_lacks_is_an_error():
    with pytest.raises(jinja2.UndefinedError, match="headline"):
        render("enhancement.html", name="enhanced/demo")


def test_a_data_uri_holds_its_content():
    content = np.random.default_rng(0).bytes(100)
    kind, encoded = data_uri(content, "audio/flac").split(";base64,")
    assert kind == "data:audio/flac"
    assert base64.b64decode(encoded) == content
