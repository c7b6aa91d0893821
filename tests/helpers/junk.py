"""Values that arguments of several kinds have no use for."""

from __future__ import annotations

import math

JUNK = (None, "", "2", {}, object(), [[1]], math.nan, math.inf, -7, 2.5)
"""What fits no argument and no field, except where the type says so."""
NO_INTEGER = (*JUNK, True, 2.0, [2])
NO_LIST = (*JUNK, True, 5, "2222", b"22", [1, 2.0], [1, True], [1, None], [1, "1"], [[1], [2]])
NO_NUMBER = (*JUNK[:7], True, [0.1], 1j)
NO_BOOL = (*JUNK, 1, 0, "yes", [True])
