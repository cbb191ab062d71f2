"""What jsonargparse says about a value that does not fit, in jamgym's words."""

from __future__ import annotations

import re

from jamgym.errors import nearest

_ONE_TYPE = re.compile(r'Parser key "([^"]+)": Expected an? (.+?)\. Got value: (.*)')
_SEVERAL_TYPES = re.compile(
    r'Parser key "([^"]+)": Does not validate against any of the Union subtypes Subtypes: \[(.+)\] Errors: '
    r".* Given value: (.*)"
)


def tidy(message: str) -> str:
    r"""Return one line that names the setting, its value and what is expected.

    Another message, or one of another version of jsonargparse, only loses its line breaks.

    >>> tidy('Parser key "k":\n  Expected a <class \'int\'>. Got value: five')
    "k is 'five'; expected int."
    >>> tidy('Parser key "policies":\n  Expected a <class \'tuple\'>. Got value: silence')
    "policies is 'silence'; expected tuple. Write a list: '[silence]'."
    """
    text = " ".join(line.strip() for line in message.splitlines() if line.strip())
    found = _ONE_TYPE.match(text) or _SEVERAL_TYPES.match(text)
    if not found:
        return text
    name, types, value = found.groups()
    expected = types.replace("typing.", "").replace(", <class 'NoneType'>", " or null")
    expected = re.sub(r"<class '([^']+)'>", r"\1", expected)
    return f"{name} is {value!r}; expected {expected}.{_hint(expected, value)}"


def _hint(expected: str, value: str) -> str:
    if expected.startswith("Literal["):
        close = nearest(value, re.findall(r"'([^']*)'", expected))
        return f" Did you mean {close!r}?" if close else ""
    if "tuple" in expected and not value.startswith(("[", "{")):
        return f" Write a list: '[{value}]'."
    return ""
