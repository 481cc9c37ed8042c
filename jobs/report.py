"""Write the report of one or several runs: an HTML page, and beside it CSV, LaTeX tables and figures.

    python jobs/report.py --experiment demo --out report.html
    python jobs/report.py --experiment palazzo-pl nice-things --out both.html

Reads the runs' folders; nothing is computed anew and no cluster is needed.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import _checkout  # noqa: F401  (before eegvision)

from eegvision.cli import print_line, run_job


@dataclass(frozen=True, kw_only=True)
class Options:
    """Write the report of one or several runs."""

    experiment: tuple[str, ...]
    """Names of the runs or sweeps."""
    out: Path = Path("report.html")
    """The page; CSV, tables, figures and configurations go beside it under the same name."""


def main(options: Options) -> None:
    """Write the page and say where it is."""
    from eegvision.report.study_page import study_page

    print_line(f"reading {', '.join(options.experiment)} ...")
    written = study_page(options.experiment, options.out)
    print_line(f"\nreport              {written.page.absolute()}")
    print_line(f"all numbers         {written.rows.absolute()}")
    print_line(f"tables and figures  {written.folder.absolute()}")


if __name__ == "__main__":
    sys.exit(run_job(Options, main))
