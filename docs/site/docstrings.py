"""How docstrings of this project become Markdown: what Markdown would misread."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension

LIST = re.compile(r"^( *)(\S.*)\n(?=\1- )", re.M)
COMMAND = re.compile(r"^(?=python -m |kfh )(.+(?:\n {2,}.+)*)", re.M)


class Docstrings(Extension):
    """`Example:` is a section with doctests; commands are code; a list needs a blank line above."""

    def on_object(self, *, obj: Any, **_: Any) -> None:
        """Rewrite the docstring of a module, class or function as it is loaded."""
        if obj.docstring is None:
            return
        text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.M)
        text = LIST.sub(r"\1\2\n\n", text)
        obj.docstring.value = COMMAND.sub(
            lambda match: "\n".join(f"    {line}" for line in match[1].split("\n")), text
        )
