"""A few trials and a manifest, small enough to check by hand; imported as `report.trials`."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from eegvision.config import RunConfig
from eegvision.ingest.shards import Manifest, Shard
from eegvision.vocab import Montage

CHANCE = {"val/top1": 0.25, "val/top5": 1.0, "val/class_top1": 0.5}
HISTORY = [
    {"train/loss": 2.0, "val/loss": 2.0, "val/top1": 0.25, "val/top5": 0.9, "val/class_top1": 0.5},
    {"train/loss": 1.0, "val/loss": 1.5, "val/top1": 0.5, "val/top5": 0.95, "val/class_top1": 0.75},
    {"train/loss": 0.5, "val/loss": 1.25, "val/top1": 0.3, "val/top5": 1.0, "val/class_top1": 0.6},
]
MANIFEST = Manifest(
    name="demo",
    dialect="simulated",
    licence="CC0 | public domain",
    montage=Montage(channels=("Oz", "Pz")),
    sfreq_hz=250.0,
    t_min_s=0.04,
    n_times=100,
    unit="uV",
    steps=({"step": "cut", "start_sample": 10}, {"step": "subjects", "kept": ["marker-a", "marker-b"]}),
    classes=("cat", "dog"),
    n_segments=16,
    n_images=4,
    subjects=("marker-a", "marker-b"),
    dropped={"too short": 3, "flat": 0},
    audit={"grade": "amber", "findings": [], "purge_s": 0.0},
    shards=(Shard(path="segments/part-00000.parquet", rows=16, sha256="0" * 64),),
    fingerprint="abc123abc123",
)


@dataclass(frozen=True, kw_only=True)
class Row:
    number: int
    settings: Mapping[str, object] = field(default_factory=dict)
    status: str = "finished"
    attempts: int = 1
    history: tuple[dict[str, float], ...] = tuple(HISTORY)
    seconds: float = 75.0
    message: str = ""

    @property
    def config(self):
        return RunConfig().with_overrides(self.settings)

    @property
    def passes(self):
        return len(self.history)

    @property
    def metrics(self):
        return max(self.history, key=lambda done: done["val/top1"], default={})


GOOD = Row(number=2, settings={"loss.name": "info_nce", "eeg.embed_dim": 64, "image.embed_dim": 64, "optim.lr": 5e-4})
POOR = Row(number=1, status="stopped early", history=(HISTORY[0],), seconds=3700.0)
DEAD = Row(number=3, status="failed", history=(), message="the disk is full")
TRIALS = [GOOD, POOR, DEAD]
