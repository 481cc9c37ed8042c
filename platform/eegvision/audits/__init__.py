"""The audit of a run: the battery of controls over Ray, and a verdict per control and overall.

`plan` derives the configurations to train, `measure` turns trained models into evidence, `record.run_audit` runs all of
it and leaves `RUN/audit.json`. What the numbers mean is decided in `evaluate.audit`.
"""

from dataclasses import dataclass

from eegvision.vocab import InputError


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What an audit may spend."""

    seeds: int = 3
    """Seeds of every training, >= 1."""
    passes: int | None = None
    """Passes of every training; by default as many as the audited model was trained for."""
    cpus: float = 1.0
    """CPUs of each training."""
    gpus: float | None = None
    """GPUs of each training, fractions allowed; by default 1 where the cluster has GPUs, else 0."""

    def __post_init__(self) -> None:
        for name in ("seeds", "passes"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise InputError(f"{name} is {value}; expected at least 1")
