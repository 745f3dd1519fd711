"""SASLprep (RFC 4013): one spelling for user names and passwords that look the same, with Python's own tables of RFC 3454."""

from __future__ import annotations

import stringprep
import unicodedata
from typing import Final

_PROHIBITED: Final = (
    stringprep.in_table_c12,
    stringprep.in_table_c21_c22,
    stringprep.in_table_c3,
    stringprep.in_table_c4,
    stringprep.in_table_c5,
    stringprep.in_table_c6,
    stringprep.in_table_c7,
    stringprep.in_table_c8,
    stringprep.in_table_c9,
    stringprep.in_table_a1,  # as in a stored string, section 2.5
)


def saslprep(text: str) -> str:
    """``ValueError``: a character that is not allowed, or directions that are mixed (RFC 3454 section 6)."""
    mapped = "".join(" " if stringprep.in_table_c12(one) else one for one in text if not stringprep.in_table_b1(one))
    prepared = unicodedata.ucd_3_2_0.normalize("NFKC", mapped)
    if any(table(one) for one in prepared for table in _PROHIBITED):
        raise ValueError("the text has a character that SASLprep (RFC 4013) does not allow")
    if any(stringprep.in_table_d1(one) for one in prepared):
        ends = stringprep.in_table_d1(prepared[0]) and stringprep.in_table_d1(prepared[-1])
        if not ends or any(stringprep.in_table_d2(one) for one in prepared):
            raise ValueError("the text mixes directions as SASLprep (RFC 4013) does not allow")
    return prepared
