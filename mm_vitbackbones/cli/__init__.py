"""The commands: one module each, and what they share. They use the whole package, and nothing uses them."""

import contextlib

from mm_vitbackbones.errors import UserError
from mm_vitbackbones.limits import share_with_opencv

with contextlib.suppress(UserError):  # the command itself reports it
    share_with_opencv()
