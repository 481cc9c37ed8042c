"""Options that the jobs which train a fixed list of configurations share."""

from dataclasses import dataclass

from eegvision.vocab import InputError


@dataclass(frozen=True, kw_only=True)
class Trainings:
    """How often each configuration is trained, and what a training may use."""

    seeds: int = 3
    """Trainings of each configuration, from `seed` on."""
    cpus_per_training: float = 1.0
    """CPUs of each training."""
    gpus_per_training: float | None = None
    """GPUs of each training, fractions allowed; by default 1 where the cluster has GPUs."""
    again: str | None = None
    """Why the test set is opened although other models of this run were scored on it; goes into the ledger."""

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise InputError(f"--seeds {self.seeds}: give at least one")
