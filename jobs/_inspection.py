"""Options that the jobs which look into a trained model share."""

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Inspected:
    """Which model is looked at, on which side of its data."""

    run: str
    """Name of the run or sweep."""
    trial: int | None = None
    """Number of the trial; by default the best one on validation."""
    side: Literal["val", "test"] = "val"
    """Pictures to look at; models were chosen on val, and test is opened with a line in the ledger."""
    again: str | None = None
    """Why the test set is opened although another model of this run was scored on it; goes into the ledger."""

    def given(self) -> dict[str, Any]:
        """Return what an analysis takes of these, by its own names."""
        return {"name": self.run, "trial": self.trial, "side": self.side, "again": self.again}


@dataclass(frozen=True, kw_only=True)
class Inspection(Inspected):
    """The same, and what each worker on the cluster may use."""

    cpus_per_worker: float = 1.0
    """CPUs of each worker that holds the model."""
    gpus_per_worker: float | None = None
    """GPUs of each worker, fractions allowed; by default 1 where the cluster has GPUs, else 0."""

    def given(self) -> dict[str, Any]:
        """Return what an analysis takes of these, by its own names."""
        return {**super().given(), "cpus": self.cpus_per_worker, "gpus": self.gpus_per_worker}
