"""What pd-analysis reads from the environment."""

from typing import Annotated

import msgspec


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of pd-analysis; options of the same name override them."""

    results_dir: Annotated[str, msgspec.Meta(description="folder of runs, read when no run is named", min_length=1)] = (
        "results"
    )
    log_level: Annotated[str, msgspec.Meta(description="DEBUG, INFO, WARNING or ERROR")] = "INFO"
