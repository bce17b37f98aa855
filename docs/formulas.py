r"""Formulas become MathML while the site is built, so that a reader needs no network.

The Markdown extension `arithmatex` marks every formula as `\(...\)` or `\[...\]`; browsers
draw MathML by themselves.
"""

import html
import re

import latex2mathml.converter


_FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<tex>.*?)\\[)\]]</(?P=tag)>',
    re.DOTALL,
)


# Browsers stretch delimiters by themselves, and the converter does not know all sizes.
_SIZES = re.compile(r"\\[bB]ig[lr]?(?![a-z])")


def on_page_content(page_html: str, **_) -> str:
    """Called by MkDocs with the body of each page."""
    return _FORMULA.sub(_mathml, page_html)


def _mathml(match: re.Match) -> str:
    display = "block" if match["tag"] == "div" else "inline"
    # One line, so that a space written as `\\ ` may stand at the end of a line.
    tex = " ".join(html.unescape(match["tex"]).split("\n")).strip()
    tex = _SIZES.sub("", tex)
    formula = latex2mathml.converter.convert(tex, display=display)

    # The dot above is an accent to few fonts; the combining dot is one to all.
    formula = formula.replace("&#x002D9;", "&#x00307;").replace("&#x02D9;", "&#x00307;")

    # A command that the converter does not know is copied as it is.
    if "\\" in html.unescape(re.sub("<[^>]*>", "", formula)):
        raise ValueError(f"no MathML for a command in the formula {tex}")
    return f'<{match["tag"]} class="formula">{formula}</{match["tag"]}>'
