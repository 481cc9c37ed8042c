"""The lines of figures that every benchmark ends with and `run_all.py` collects."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence


def tell(what: str, values: Sequence[float], *, unit: str = "x", target: str | None = None, peer: str) -> None:
    """Print one figure with its spread; the median is held against `target`, such as '>= 10'."""
    spread = {"min": min(values), "median": statistics.median(values), "max": max(values)}
    rounded = {name: float(f"{value:.4g}") for name, value in spread.items()}
    figure = {"what": what, "unit": unit, **rounded, "target": target, "peer": peer}
    print("RESULT " + json.dumps(figure, ensure_ascii=False), flush=True)
