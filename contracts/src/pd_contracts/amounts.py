"""What a number of a record can be. One beyond these was damaged, and would only overflow further on."""

from typing import Annotated

import msgspec

Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]  # a float holds it exactly
Number = Annotated[float, msgspec.Meta(ge=-1e15, le=1e15)]  # seconds, watts, millijoules, milliseconds
