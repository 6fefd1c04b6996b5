"""The variables of `.env`."""

from pathlib import Path

from dotenv import dotenv_values

FILE = Path(__file__).parents[2] / ".env"


def dotenv() -> dict[str, str]:
    """Every variable and its value as it is written, or ""."""
    return {name: value or "" for name, value in dotenv_values(FILE, interpolate=False).items()}
