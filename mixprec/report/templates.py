"""Templates to pages: the one place that calls jinja2. Texts from files stay texts, in HTML and in scripts."""

from __future__ import annotations

import json
from typing import Any

import jinja2
from markupsafe import Markup

from mixprec.core.escaping import visible
from mixprec.report.cells import MARGIN
from mixprec.report.formatting import integer, percent, plural, scorer, significant, words
from mixprec.report.grids import OUTLINE
from mixprec.report.style import DARK, LIGHT


def render_page(template: str, **values: Any) -> str:
    """A page of this package's templates, with the filters and colours that all of them use."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mixprec.report", ""),
        autoescape=True,
        finalize=_visible,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "words": words, "plural": plural, "integer": integer, "percent": percent, "significant": significant,
        "scorer": scorer, "script": lambda value: script_json(json.dumps(value, ensure_ascii=False)),
    }  # fmt: skip
    return environment.get_template(template).render(light=LIGHT, dark=DARK, outline=OUTLINE, margin=MARGIN, **values)


def _visible(value: Any) -> Any:
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def script_json(text: str) -> Markup:
    """JSON that can stand inside a script element: no text in it can end the element."""
    safe = text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return Markup(safe)  # HTML entities would not be decoded in a script
