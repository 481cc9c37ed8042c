"""The quality page of a data set: one HTML file without scripts that tells whether its scores can be believed."""

from __future__ import annotations

import base64
import dataclasses
import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from eegvision.ingest import quality as samples
from eegvision.ingest.order import Audit, Finding
from eegvision.ingest.quality import Quality
from eegvision.report import panels
from eegvision.report.page import escaped, section, write_page

MAX_PICTURES = 24
_THUMBNAIL_PX = 132
_N_MAPS = 6
_PEAK = 2.0  # times the power around: what is called a power-line peak
_MOST_VISITS = 24  # rows of the table of subjects and sessions
# Unit of the data set -> how it is shown: name and factor.
_SHOWN: dict[str, tuple[str, float]] = {
    "V": ("µV", 1e6),
    "uV": ("µV", 1.0),
    "T": ("fT", 1e15),
    "zscore": ("z-score", 1.0),
}
_VERDICTS = {
    "green": "Nothing in the order of presentation gives the answer away.",
    "amber": "Usable with care: follow the advice below.",
    "red": "Do not believe scores from these data as they are: time alone names the class.",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Portrait:
    """What a quality page shows.

    `facts` are rows of a table (see `tables.facts`), `notes` further sentences, `steps` what was done to the samples,
    `dropped` counts by reason. `segments` has the columns subject, session, block, order, onset_s and image_id;
    `images` has image_id and label. `pictures` are captions and encoded files, of which the first 24 are shown.
    `positions_m` may be empty.
    """

    name: str
    facts: Mapping[str, str]
    notes: Sequence[str] = ()
    steps: Sequence[str] = ()
    dropped: Mapping[str, int]
    classes: Sequence[str]
    positions_m: Sequence[Sequence[float]] = ()
    segments: pa.Table
    images: pa.Table
    audit: Audit
    quality: Quality
    pictures: Sequence[tuple[str, bytes]] = ()


def quality_page(path: Path, portrait: Portrait) -> Path:
    """Write the page as one file, whole or not at all, and return its path; the same portrait gives the same bytes."""
    stored_unit = portrait.quality.unit
    portrait = dataclasses.replace(portrait, quality=_in_shown_unit(portrait.quality))
    sections = [
        _header(portrait),
        section("Order of presentation", _order(portrait)),
        section("What the data set is", _facts(portrait)),
        section("Evoked responses", _evoked(portrait)),
        section("Channels", _channels(portrait)),
        section("Samples", _amplitudes(portrait, stored_unit)),
        section("Classes, subjects, sessions", _counts(portrait)),
    ]
    if portrait.pictures:
        sections.append(section("Sample pictures", _pictures(portrait.pictures[:MAX_PICTURES])))
    return write_page(path, f"{portrait.name}: data set quality", sections)


def _in_shown_unit(quality: Quality) -> Quality:
    """Return the same numbers in the unit they are shown in."""
    unit, factor = _SHOWN.get(quality.unit, (quality.unit, 1.0))
    powers = {"sum_GC": 1, "square_GC": 2, "low_GC": 1, "high_GC": 1, "evoked_SCT": 1, "power_CF": 2}
    scaled = {name: getattr(quality, name) * factor**power for name, power in powers.items()}
    return dataclasses.replace(quality, unit=unit, **scaled)


def _header(portrait: Portrait) -> str:
    audit, quality = portrait.audit, portrait.quality
    told = [finding for finding in audit.findings if finding.grade != "green"]
    told.sort(key=lambda finding: finding.grade != "red")
    if told:
        reasons = "".join(f"<li>{escaped(finding.sentence)}</li>" for finding in told)
        remedies = "".join(
            f"<li>{escaped(remedy)}</li>" for remedy in dict.fromkeys(f.remedy for f in told if f.remedy)
        )
        why = f"<div><h3>Why</h3><ul>{reasons}</ul></div><div><h3>What to do</h3><ul>{remedies}</ul></div>"
    else:
        why = f"<p>All {len(audit.findings)} checks of the order of presentation passed.</p>"
    n_bad = len({bad.channel for bad in samples.summary(quality).bad})
    size = (
        f"{_count(quality.n_segments, 'segment')} of {_count(portrait.images.num_rows, 'picture')} seen by "
        f"{_count(len(quality.subjects), 'subject')}, {_count(len(quality.channels), 'channel')} at "
        f"{quality.sfreq_hz:g} Hz. {_count(sum(portrait.dropped.values()), 'record')} left out, "
        f"{_count(n_bad, 'channel')} with faults somewhere."
    )
    return (
        f'<header class="{audit.grade}"><p class="eyebrow">Data set quality</p><h1>{escaped(portrait.name)}</h1>'
        f'<p class="size">{size}</p><div class="verdict"><span class="badge">{audit.grade}</span>'
        f'<strong>{_VERDICTS[audit.grade]}</strong></div><div class="why">{why}</div></header>'
    )


def _order(portrait: Portrait) -> str:
    intro = (
        "<p>The EEG drifts slowly, whatever is shown. If pictures of one class follow each other, the drift of the "
        "moment names the class, and a model can score high without having read anything from the brain. Each check "
        "compares the data with classes in random order.</p>"
    )
    head = "<tr><th>check</th><th>what it says</th><th>found</th><th>at random</th><th>p</th></tr>"
    rows = "".join(_finding(finding) for finding in portrait.audit.findings)
    table = f'<table class="findings"><thead>{head}</thead><tbody>{rows}</tbody></table>'
    return intro + _staircase(portrait) + table


def _finding(finding: Finding) -> str:
    cells = [
        ("found", _number(finding.value)),
        ("at random", _number(finding.expected)),
        ("p", "" if finding.p is None else f"{finding.p:.2g}"),
    ]
    numbers = "".join(f'<td class="number" data-name="{name}">{text}</td>' for name, text in cells)
    return (
        f'<tr class="{finding.grade}"><td class="check"><span class="dot" title="{finding.grade}"></span>'
        f"{escaped(finding.check)}</td><td>{escaped(finding.sentence)}</td>{numbers}</tr>"
    )


def _staircase(portrait: Portrait) -> str:
    """Draw class over presentation order of the recording with the most segments among those whose order is known."""
    segments = portrait.segments
    label_of = dict(zip(portrait.images["image_id"].to_pylist(), portrait.images["label"].to_pylist(), strict=True))
    label_N = np.array([label_of[image] for image in segments["image_id"].to_pylist()])
    subject_N, session_N = np.array(segments["subject"].to_pylist()), segments["session"].to_numpy()
    when_N = segments["order"].to_numpy().astype(np.float64)
    if (when_N < 0).any():
        when_N = segments["onset_s"].to_numpy()
    usable_N = np.isfinite(when_N) & (label_N >= 0)
    if not usable_N.any():
        return (
            '<p class="missing">There is no picture of class over time: the order, or the classes, are not known.</p>'
        )
    visits, count = np.unique(
        np.column_stack([subject_N[usable_N], session_N[usable_N].astype(str)]), axis=0, return_counts=True
    )
    subject, session = visits[count.argmax()].tolist()
    rows = np.flatnonzero(usable_N & (subject_N == subject) & (session_N.astype(str) == session))
    rows = rows[np.argsort(when_N[rows], kind="stable")]
    block_N = segments["block"].to_numpy()[rows]
    edges = [] if (block_N < 0).any() else np.flatnonzero(np.diff(block_N)) + 1
    place_N, label_N = np.arange(len(rows)), label_N[rows]
    n_classes = len(np.unique(label_N))
    drawn = _fitted(
        1, lambda end, width: panels.class_over_time(f"order{end}", place_N, label_N, list(edges), n_classes, width)
    )
    where = f"{escaped(subject)}, session {session}" if session != "-1" else escaped(subject)
    caption = f"Each dot is a presentation ({where}). Classes in blocks make a staircase, mixed classes a cloud."
    if len(edges):
        caption += " Lines part the blocks." if len(edges) <= 120 else ""
    return f"<figure>{drawn}<figcaption>{caption}</figcaption></figure>"


def _facts(portrait: Portrait) -> str:
    rows = "".join(f"<tr><th>{escaped(k)}</th><td>{escaped(v.strip('`'))}</td></tr>" for k, v in portrait.facts.items())
    dropped = {reason: count for reason, count in sorted(portrait.dropped.items()) if count}
    if dropped:
        left_out = "".join(
            f'<tr><td>{escaped(reason)}</td><td class="number">{n:,}</td></tr>' for reason, n in dropped.items()
        )
        left_out = f'<table class="plain">{left_out}</table>'
    else:
        left_out = "<p>Nothing.</p>"
    notes = "".join(f"<li>{escaped(note)}</li>" for note in portrait.notes)
    notes = f"<h3>To know</h3><ul>{notes}</ul>" if notes else ""
    steps = "".join(f"<li>{escaped(step)}</li>" for step in portrait.steps)
    steps = f"<h3>Steps so far</h3><ol>{steps}</ol>" if steps else ""
    table = f'<table class="plain">{rows}</table>'
    return f'<div class="columns"><div>{table}</div><div><h3>Left out</h3>{left_out}{notes}{steps}</div></div>'


def _evoked(portrait: Portrait) -> str:
    quality = portrait.quality
    by_region = samples.evoked_by_region(quality)
    stacked = np.stack([evoked_ST.mean(axis=0) for evoked_ST in by_region.values()])
    spread = np.stack([evoked_ST.std(axis=0) for evoked_ST in by_region.values()])
    low, high = float((stacked - spread).min()), float((stacked + spread).max())
    margin = 0.06 * (high - low) or 1.0
    unit = quality.unit
    limits = (low - margin, high + margin)
    beside = {1: 1, 2: 2, 4: 2}.get(len(by_region), 3)
    drawn = [
        _fitted(beside, partial(_evoked_of, region, quality.times_s, evoked_ST, unit, limits))
        for region, evoked_ST in by_region.items()
    ]
    n = len(quality.subjects)
    text = f"<p>Mean over all segments{f'; the band is one standard deviation over {n} subjects' if n > 1 else ''}. "
    text += "An answer of the visual system rises after about 80 ms, first over the back of the head.</p>"
    return text + _beside(beside, drawn) + _maps(portrait)


def _evoked_of(
    region: str,
    times_s: np.ndarray,
    evoked_ST: np.ndarray,
    unit: str,
    limits: tuple[float, float],
    end: str,
    width: float,
) -> str:
    return panels.evoked(f"evoked-{region}{end}", region, times_s, evoked_ST, unit, limits, width)


def _fitted(beside: int, draw: Callable[[str, float], str]) -> str:
    """Draw a panel for its place: a third of a wide page, or, by an ending of the name and a width, one per screen."""
    if beside == 3:
        return draw("", panels.PANEL_PX)
    width_px = {1: 3.05, 2: 1.5}[beside] * panels.PANEL_PX
    wide, narrow = draw("-wide", width_px), draw("-narrow", panels.PANEL_PX)
    return f'<div class="wide-only">{wide}</div><div class="narrow-only">{narrow}</div>'


def _beside(beside: int, parts: Sequence[str]) -> str:
    """Put panels made for it beside each other."""
    inner = "".join(f"<div>{part}</div>" for part in parts)
    return f'<div class="panels {("one", "half", "third")[beside - 1]}">{inner}</div>'


def _maps(portrait: Portrait) -> str:
    quality = portrait.quality
    n_known = len(portrait.positions_m)
    if not n_known:
        return '<p class="missing">No scalp maps: the electrodes\' positions are not known.</p>'
    if not panels.can_map(portrait.positions_m):
        return (
            f'<p class="missing">No scalp maps: {_count(n_known, "electrode")} tell too little of what lies between '
            f"them; a map needs {panels.FEWEST_MAPPED} or more, spread out.</p>"
        )
    place_C2 = panels.flat_positions(portrait.positions_m)
    mean_CT = (quality.evoked_SCT / quality.n_S[:, None, None]).mean(axis=0)
    last = quality.n_times - 1
    first = min(int(np.searchsorted(quality.times_s, 0.0)), last)
    at = np.unique(np.linspace(first, last, _N_MAPS + 2).round().astype(int)[1:-1])
    top = float(np.abs(mean_CT[:, at]).max()) or 1.0
    maps = [
        panels.scalp(
            f"map-{number}", f"{1000 * quality.times_s[t]:.0f} ms", place_C2, mean_CT[:, t], (-top, top), "RdBu_r"
        )
        for number, t in enumerate(at.tolist())
    ]
    return f'<h3>On the scalp</h3><div class="maps">{"".join(maps)}</div>' + _scale(
        -top, top, quality.unit, "diverging"
    )


def _scale(low: float, high: float, unit: str, kind: str) -> str:
    return f'<p class="scale"><span>{low:.3g}</span><i class="{kind}"></i><span>{high:.3g} {_in(unit)}</span></p>'


def _channels(portrait: Portrait) -> str:
    quality, found = portrait.quality, samples.summary(portrait.quality)
    unit = quality.unit
    bad = {entry.channel for entry in found.bad}
    has_map = panels.can_map(portrait.positions_m)
    beside = 3 if has_map else 2
    parts = [
        _fitted(
            beside, lambda end, width: panels.spreads(f"spreads{end}", quality.channels, found.std_C, bad, unit, width)
        )
    ]
    if has_map:
        # A broken channel may not take the whole scale.
        low, high = np.quantile(found.std_C, [0.03, 0.97]).tolist()
        place_C2 = panels.flat_positions(portrait.positions_m)
        shown_C = np.clip(found.std_C, low, high)
        head = panels.scalp("map-std", "standard deviation", place_C2, shown_C, (low, high), "viridis")
        parts.append(f'<div class="maps single">{head}{_scale(low, high, unit, "sequential")}</div>')
    if found.bad:
        rows = "".join(
            f"<tr><th>{escaped(entry.channel)}</th><td>{escaped(entry.reason)}</td><td>{_where(entry.visits)}</td></tr>"
            for entry in sorted(found.bad, key=lambda entry: (entry.channel, entry.reason))
        )
        listed = (
            '<table class="plain"><thead><tr><th>channel</th><th>fault</th><th>where</th></tr></thead>'
            f"<tbody>{rows}</tbody></table>"
        )
    else:
        listed = "<p>No channel stands out in any session.</p>"
    parts.append(f"<h3>Faults</h3>{listed}")
    return _beside(beside, parts)


def _where(visits: Sequence[str]) -> str:
    if not visits:
        return "everywhere"
    more = f" and {len(visits) - 3} more" if len(visits) > 3 else ""
    return escaped("; ".join(visits[:3]) + more)


def _amplitudes(portrait: Portrait, stored_unit: str) -> str:
    quality, found = portrait.quality, samples.summary(portrait.quality)
    unit = quality.unit
    edges_B = samples.AMPLITUDE_EDGES * _SHOWN.get(stored_unit, ("", 1.0))[1]
    hz, power = quality.frequencies_hz, samples.power_by_region(quality)
    drawn = [
        _fitted(2, lambda end, width: panels.amplitudes(f"amplitudes{end}", edges_B, quality.amplitude_B, unit, width)),
        _fitted(2, lambda end, width: panels.spectrum(f"spectrum{end}", hz, power, unit, samples.LINES_HZ, width)),
    ]
    sentences = [f"Both are taken from {quality.n_sampled:,} of {quality.n_segments:,} segments, drawn at random."]
    if not found.line_hz:
        sentences.append("The spectrum ends below the power line's frequencies.")
    elif peaks := [line_hz for line_hz in samples.LINES_HZ if _stands_out(quality, line_hz)]:
        if found.line_hz in peaks:
            share = 100 * float(np.median(found.line_C))
            sentences.append(f"{share:.2g} % of the power of a typical channel lies at {found.line_hz:g} Hz.")
        else:
            sentences.append(f"A small power-line peak at {peaks[0]:g} Hz.")
    else:
        sentences.append("No power-line peak.")
    sentences.append(f"Samples lie between {found.low_C.min():.4g} and {found.high_C.max():.4g} {_in(unit)}.")
    return f"<p>{' '.join(sentences)}</p>" + _beside(2, drawn)


def _stands_out(quality: Quality, line_hz: float) -> bool:
    """Tell whether a typical channel has a peak at a line frequency: twice the power on either side of it."""
    hz = quality.frequencies_hz
    step_hz = float(hz[1] - hz[0])
    away_F = np.abs(hz - line_hz)
    at_F = away_F <= max(1.0, 1.5 * step_hz)
    # A filter's edge has low power on one side only.
    sides = [~at_F & (away_F <= max(5.0, 5 * step_hz)) & (sign * (hz - line_hz) > 0) for sign in (-1, 1)]
    if hz[-1] < line_hz or not at_F.any():
        return False
    around_C = np.max([np.median(quality.power_CF[:, side_F], axis=1) for side_F in sides if side_F.any()], axis=0)
    ratio_C = quality.power_CF[:, at_F].max(axis=1) / np.maximum(around_C, 1e-300)
    return float(np.median(ratio_C)) >= _PEAK


def _counts(portrait: Portrait) -> str:
    quality = portrait.quality
    label_of = dict(zip(portrait.images["image_id"].to_pylist(), portrait.images["label"].to_pylist(), strict=True))
    all_counted = Counter(label_of[image] for image in portrait.segments["image_id"].to_pylist())
    counted = {label: count for label, count in sorted(all_counted.items()) if label >= 0}
    parts = []
    if counted:
        names, count_K = [str(portrait.classes[label]) for label in counted], np.array(list(counted.values()))
        drawn = _fitted(2, lambda end, width: panels.balance(f"balance{end}", names, count_K, width))
        parts.append(
            f'{drawn}<p class="note">{len(counted)} of {len(portrait.classes)} classes occur, '
            f"with {_span(int(count_K.min()), int(count_K.max()))} segments.</p>"
        )
    else:
        parts.append('<p class="missing">The pictures have no classes.</p>')
    counts = quality.n_G.tolist()
    rows = [
        f'<tr><td>{escaped(subject)}</td><td class="number">{session if session >= 0 else "?"}</td>'
        f'<td class="number">{n:,}</td></tr>'
        for (subject, session), n in zip(quality.visits, counts, strict=True)
    ]
    if len(rows) > _MOST_VISITS:
        rows = [*rows[:_MOST_VISITS], f'<tr><td colspan="3">and {len(rows) - _MOST_VISITS} more</td></tr>']
    table = (
        '<table class="plain"><thead><tr><th>subject</th><th class="number">session</th>'
        f'<th class="number">segments</th></tr></thead><tbody>{"".join(rows)}</tbody></table>'
    )
    note = f'<p class="note">{_span(min(counts), max(counts))} segments per subject and session.</p>'
    return _beside(2, [*parts, table + note])


def _in(unit: str) -> str:
    """Return what follows a number; only units of physics do so without brackets."""
    return f"({unit})" if unit in ("z-score", "whitened") else unit


def _span(least: int, most: int) -> str:
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def _pictures(pictures: Sequence[tuple[str, bytes]]) -> str:
    figures = "".join(
        f'<figure><img alt="{escaped(caption)}" src="{_thumbnail(encoded)}">'
        f"<figcaption>{escaped(caption)}</figcaption></figure>"
        for caption, encoded in pictures
    )
    return f'<div class="pictures">{figures}</div>'


def _thumbnail(encoded: bytes) -> str:
    from PIL import Image

    with Image.open(io.BytesIO(encoded)) as picture:
        small = picture.convert("RGB")
    small.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 100 else f"{value:.3g}"
