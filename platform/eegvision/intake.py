"""From recordings to a data set and the page that shows what is in it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from eegvision import cluster, fanout
from eegvision.ingest import assemble, shards
from eegvision.ingest.order import Audit
from eegvision.ingest.places import Place
from eegvision.ingest.shards import Manifest
from eegvision.ingest.sources import Recording
from eegvision.report import tables
from eegvision.report.quality import MAX_PICTURES, Portrait, quality_page
from eegvision.runs import sole_owner
from eegvision.vocab import home

Say = Callable[[str], None]

PAGE_NAME = "quality.html"

_WORTH_RAY_BYTES = 512 << 20  # below, one process is done before Ray has started


def ingest(recording: Recording, out: Place, *, say: Say) -> Manifest:
    """Write a recording as a data set, its parts over the cluster where that pays, with its page; say how it goes.

    Raises:
        InputError: as `assemble.write`; finished parts are kept and the same call goes on.
        RunInUseError: another process is writing a data set of this name.
    """
    with sole_owner(home() / "locks" / out.name):
        return _ingest(recording, out, say)


def _ingest(recording: Recording, out: Place, say: Say) -> Manifest:
    header, parts = recording.header, recording.parts
    n_rows = sum(part.rows for part in parts)
    n_bytes = 4 * n_rows * len(header.montage.channels) * header.n_times
    each: assemble.Each = assemble.in_turn
    if len(parts) > 1 and (cluster.is_connected() or "RAY_ADDRESS" in os.environ or n_bytes >= _WORTH_RAY_BYTES):
        cluster.enter(say)
        each = partial(fanout.spread, peak_bytes=lambda work: work.part.peak_bytes)
    n_before = assemble.n_finished(out)
    say(
        f"going on with {out}: {n_before} of {counted(len(parts), 'part')} were finished"
        if n_before
        else f"writing {out}: {counted(len(parts), 'part')} ..."
    )
    progress: fanout.Progress | None = None

    def done(n_parts: int, rows: int) -> None:
        nonlocal progress
        if progress is None:
            progress = fanout.Progress(n_rows, "segment", say, before=rows)
        progress.at(rows, also=f" ({n_parts} of {len(parts)} parts)")

    manifest = assemble.write(out, recording, each=each, done=done)
    draw(out, manifest)
    return manifest


def draw(root: Place, manifest: Manifest) -> None:
    """Make the quality page of a data set, beside its manifest."""
    with tempfile.TemporaryDirectory() as folder:
        page = quality_page(Path(folder) / PAGE_NAME, portrait(root, manifest))
        (root / PAGE_NAME).write(page.read_bytes())


def page_of(root: Place) -> Path:
    """Return a local file with the quality page of a data set, fetched where the data set is in a bucket."""
    if root.is_local:
        return Path(root.path) / PAGE_NAME
    local = home() / "pages" / f"{root.name}.html"
    local.parent.mkdir(parents=True, exist_ok=True)
    local.write_bytes((root / PAGE_NAME).read())
    return local


def portrait(root: Place, manifest: Manifest) -> Portrait:
    """Collect what the page shows; nothing is measured again."""
    images = shards.read_images(root, manifest)
    return Portrait(
        name=manifest.name,
        facts=tables.facts(manifest),
        notes=manifest.facts,
        steps=tables.steps(manifest),
        dropped=manifest.dropped,
        classes=manifest.classes,
        positions_m=manifest.montage.positions_m,
        segments=shards.read_segments(root, manifest),
        images=images,
        audit=Audit.from_dict(manifest.audit),
        quality=assemble.read_quality(root / assemble.QUALITY_NAME),
        pictures=_pictures(root, manifest, images),
    )


def counted(n: int, one: str, many: str = "") -> str:
    """Return a number with its noun."""
    return f"{n} {one if n == 1 else many or one + 's'}"


def _pictures(root: Place, manifest: Manifest, images: pa.Table) -> list[tuple[str, bytes]]:
    """Return a few pictures spread over the data set, with captions."""
    rows = np.unique(np.linspace(0, len(images) - 1, MAX_PICTURES).astype(int))
    first, found = 0, []
    for shard in manifest.shards:
        if shard.path.startswith("images/"):
            own = rows[(rows >= first) & (rows < first + shard.rows)] - first
            if len(own):
                with (root / shard.path).parquet() as file:
                    table = file.read(columns=["image_id", "label_name", "encoded"]).take(own)
                found += [(row["label_name"] or row["image_id"], row["encoded"]) for row in table.to_pylist()]
            first += shard.rows
    return found


def say_what_is_in(root: Place, manifest: Manifest, say: Say) -> None:
    """Say in a few lines what a data set holds, what was left out, and whether its order can be trusted."""
    segments, channels = counted(manifest.n_segments, "segment"), counted(manifest.n_chans, "channel")
    subjects, pictures = counted(len(manifest.subjects), "subject"), counted(manifest.n_images, "picture")
    say(f"{segments} of {channels} x {manifest.n_times} samples at {manifest.sfreq_hz:g} Hz ({manifest.unit})")
    say(f"{subjects}, {pictures} of {counted(len(manifest.classes), 'class', 'classes')}")
    for reason, count in manifest.dropped.items():
        say(f"left out        {count} ({reason})")
    for fact in manifest.facts:
        say(f"note            {fact}")
    audit = Audit.from_dict(manifest.audit)
    say(f"order audit     {audit.grade}")
    for finding in audit.findings:
        if finding.grade != "green":
            say(f"  {finding.grade:<12}  {finding.sentence}")
    for remedy in dict.fromkeys(finding.remedy for finding in audit.findings if finding.remedy):
        say(f"  {'what to do':<12}  {remedy}")
    say(f"report          {page_of(root)}")
