"""Text that strangers wrote, on its way to a terminal or into a message."""

_MOST = 120


def printable(text: str) -> str:
    r"""Return text whose characters all show: what moves a cursor, hides, turns the direction or is no character is escaped.

    Ends of lines stay.

    Example:
      >>> print(printable("a\x1b[2Jb\u202ec\x00"))
      a\x1b[2Jb\u202ec\x00
    """
    return text if text.isprintable() else "".join(c if c == "\n" or c.isprintable() else _escaped(c) for c in text)


def shown(name: object, most: int = _MOST) -> str:
    r"""Return a foreign name in one line of a bearable length.

    Args:
      name: a key, a path, a dtype.
      most: how many characters of it are shown; of a longer one, the beginning and the end.

    Example:
      >>> shown("a\nb"), shown("x" * 1000, 9)
      ('a\\nb', 'xxxxxx...xxx (1000 characters)')
    """
    text = str(name)
    if len(text) > most:
        text = f"{text[: 2 * most // 3]}...{text[-(most // 3) :]} ({len(text)} characters)"
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()
