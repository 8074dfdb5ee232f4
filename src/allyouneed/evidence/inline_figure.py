"""A figure's SVG text, made safe to stand in a page beside other figures."""

import re
import xml.etree.ElementTree as ElementTree

from markupsafe import Markup

_SVG = "{http://www.w3.org/2000/svg}"
_HREFS = ("href", "{http://www.w3.org/1999/xlink}href")
_DRAWN = {
    *("svg", "g", "defs", "use", "title", "desc", "text", "tspan", "image", "clipPath", "mask", "marker", "pattern"),
    *("path", "rect", "circle", "ellipse", "line", "polyline", "polygon", "linearGradient", "radialGradient", "stop"),
}


def inline_figure(svg: str, prefix: str, label: str) -> Markup:
    """Make SVG text safe to stand in a page beside other figures.

    Only shapes, text and embedded pictures are kept: no scripts, no style sheets (but one rule for all elements, such
    as matplotlib writes), no address outside the figure. Every id begins with the prefix.

    Args:
        svg: the figure.
        prefix: unique in the page.
        label: the figure in words.

    Raises:
        ValueError: the text is not SVG.
    """
    try:
        root = ElementTree.fromstring(svg)
    except ElementTree.ParseError as error:
        raise ValueError(f"the figure of {prefix} is not SVG: {error}") from error
    if root.tag != f"{_SVG}svg":
        raise ValueError(f"the figure of {prefix} is not SVG: its root is {root.tag!r}")
    everywhere = [
        rule[1]
        for style in root.iter(f"{_SVG}style")
        if (rule := re.fullmatch(r"\s*\*\s*\{([^{}]*)\}\s*", style.text or ""))
    ]
    root.set("style", ";".join([root.get("style", ""), *everywhere]).strip(";"))
    _keep_drawing(root, f"{prefix}-")
    for name in ("width", "height"):
        root.attrib.pop(name, None)
    root.attrib |= {"role": "img", "aria-label": label}
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _keep_drawing(element: ElementTree.Element, prefix: str) -> None:
    element.tag = element.tag.removeprefix(_SVG)
    kept = {name.rpartition("}")[2]: _kept(name, value, prefix) for name, value in element.attrib.items()}
    element.attrib.clear()
    element.attrib.update({name: value for name, value in kept.items() if value is not None})
    for child in list(element):
        if isinstance(child.tag, str) and child.tag.startswith(_SVG) and child.tag.removeprefix(_SVG) in _DRAWN:
            _keep_drawing(child, prefix)
        else:
            element.remove(child)


def _kept(name: str, value: str, prefix: str) -> str | None:
    """Give an attribute's value as it is kept; None drops the attribute."""
    if name in _HREFS:
        if value.startswith("#"):
            return f"#{prefix}{value[1:]}"
        return value if re.match(r"data:image/(png|jpeg);base64,", value) else None
    if name.lower().startswith(("{", "on")):
        return None
    if name == "id":
        return prefix + value
    value = re.sub(r"url\(\s*[\"']?#([^)\"']*)[\"']?\s*\)", rf"url(#{prefix}\1)", value)
    return None if re.search(r"url\((?!#)|\\|@|image(-set)?\(", value, re.IGNORECASE) else value
