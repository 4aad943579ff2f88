"""Docstrings as griffe reads them: their headings are Google's, but for ``Example:`` and ``Source:``."""

import re
from typing import Any

import griffe


class Sections(griffe.Extension):
    """An example is a section of examples; a source is named in bold."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            text = re.sub(r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = re.sub(r"^Source: ", "**Source.** ", text, flags=re.MULTILINE)
