"""What channel importance leaves behind: `importance.csv`, `views.csv`, `summary.json`, figures and a table to read.

Two numbers stand beside each other everywhere. `importance` is Eq. 5-7: what the match with the own picture loses
without the channel; whatever all pictures share is in it too. `specific` is the same for the own picture less the mean
of the side's pictures: what speaks of this picture. Clusters are tested on `specific`, which is 0 on average for a
model that does not tell pictures apart.

Axes: N samples, K stretches of time (the whole segment, then intervals), C channels, G groups, U units.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from eegvision import runs
from eegvision.analyses.channels import ChannelAverages, ChannelImportance, Noise, average
from eegvision.analyses.windows import Ranked, ViewScore, view_score
from eegvision.evaluate.clusters import Clusters, both_neighbours, channel_neighbours, cluster_test
from eegvision.report import channel_figures
from eegvision.stream import Store
from eegvision.vocab import InputError

ALPHA = 0.05
_MIN_SUBJECTS, _MIN_CLASSES = 6, 8  # 2 / 2^5 = 0.06: five subjects can never be beyond chance
_SHOWN = 8  # channels in the table that is printed
_TOP_KS = (1, 5)


@dataclass(frozen=True, kw_only=True, eq=False)
class Stretch:
    """Importance in one stretch of time, samples sorted by id; no interval stands for whole segments."""

    interval_s: tuple[float, float] | None
    own: ChannelImportance
    specific: ChannelImportance

    @property
    def name(self) -> str:
        """What it is called in tables."""
        return "whole segment" if self.interval_s is None else f"{self.interval_s[0]:g} to {self.interval_s[1]:g} s"


@dataclass(frozen=True, kw_only=True, eq=False)
class Circumstances:
    """What the numbers must be read with; `row_N` are the samples, sorted by id, `groups` names each one's groups."""

    row_N: np.ndarray
    store: Store
    groups: Mapping[str, np.ndarray]
    noise: Noise
    seed: int
    notes: list[str]


@dataclass(frozen=True, kw_only=True)
class Report:
    """What is shown at the end, and what MLflow gets."""

    text: str
    metrics: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Units:
    """What counts as a sample of others like it when clusters are tested, of each sample, and why."""

    kind: str
    of_N: np.ndarray
    why: str

    @property
    def number(self) -> int:
        """How many there are."""
        return len(np.unique(self.of_N))


def units_of(subject_N: np.ndarray, label_N: np.ndarray, image_N: np.ndarray) -> Units:
    """Return the units of cluster tests: subjects if there are 6, else classes if there are 8, else pictures.

    Pictures of one class are alike to an encoder even before training: with pictures of few classes as units, effects
    of networks without training pass for certain. Five subjects have 16 patterns of signs, so p could not fall below
    0.06.
    """
    n_subjects, n_classes = len(np.unique(subject_N)), len(np.unique(label_N))
    has_classes = bool((label_N >= 0).all())
    if n_subjects >= _MIN_SUBJECTS:
        return Units(kind="subject", of_N=subject_N, why="what holds for them holds for others like them")
    few = f"{n_subjects} {'subject is' if n_subjects == 1 else 'subjects are'} too few"
    if has_classes and n_classes >= _MIN_CLASSES:
        return Units(kind="class", of_N=label_N, why=f"{few}, and pictures of one class are alike")
    classes = f"{n_classes} classes" if has_classes else "no classes"
    why = f"{few}, and so are {classes}; pictures of one class are alike, so p may come out too small"
    return Units(kind="picture", of_N=image_N, why=why)


@dataclass(kw_only=True)
class _Collected:
    """What is gathered stretch by stretch, small whatever the number of samples."""

    stretches: list[dict[str, Any]] = field(default_factory=list)
    averages: list[dict[str, tuple[ChannelAverages, ChannelAverages]]] = field(default_factory=list)
    unit_mean_KUC: list[np.ndarray] = field(default_factory=list)


def write(
    folder: Path,
    stretches: Iterable[Stretch],
    views: Sequence[tuple[str, list[Ranked]]],
    circumstances: Circumstances,
    about: Mapping[str, Any],
) -> Report:
    """Write tables, summary and figures into a folder and return what to show; the same input, the same bytes.

    Args:
        stretches: the whole segment, then the intervals; each is dropped before the next one is asked for.
        views: kind and chunks of every view.
        about: which model, data and settings.
    """
    store, row_N, notes = circumstances.store, circumstances.row_N, list(circumstances.notes)
    units = units_of(store.subject_N[row_N], store.label_N[row_N], store.image_N[row_N])
    got = _Collected()
    for stretch in stretches:
        assert stretch.own.segment_ids == tuple(store.segment_id_N[row_N].tolist()), "chunks of other samples"
        _collect(got, stretch, store.image_N[row_N], units.of_N, circumstances.groups)
    tests = _tests(got, units, circumstances, notes)
    scores = [(kind, k, view_score(parts, top_k=k)) for kind, parts in views for k in _TOP_KS]
    channels = store.manifest.channels
    _write_importance(folder / "importance.csv", got, tests, channels)
    if scores:
        _write_views(folder / "views.csv", scores)
    first = [(kind, score) for kind, k, score in scores if k == 1]
    _draw(folder / "figures", got, tests, first, circumstances, notes)
    summary = _summary(got, tests, units, scores, circumstances, about, notes)
    runs.write_whole(folder / "summary.json", json.dumps(summary, indent=1))
    text = _text(got, tests, units, first, circumstances, about, notes)
    runs.write_whole(folder / "table.txt", text)
    return Report(text=text, metrics=_metrics(got, tests, first, channels))


def _collect(
    got: _Collected, stretch: Stretch, image_N: np.ndarray, unit_N: np.ndarray, groups: Mapping[str, np.ndarray]
) -> None:
    got.averages.append(
        {
            kind: (average(stretch.own, image_N, group_N), average(stretch.specific, image_N, group_N))
            for kind, group_N in groups.items()
        }
    )
    _, index_N, count_U = np.unique(unit_N, return_inverse=True, return_counts=True)
    mean_UC = np.zeros((len(count_U), len(stretch.own.channels)))
    np.add.at(mean_UC, index_N, stretch.specific.importance_NC)
    got.unit_mean_KUC.append(mean_UC / count_U[:, None])
    got.stretches.append(
        {
            "name": stretch.name,
            "interval_s": stretch.interval_s,
            "encoded": stretch.own.encoded,
            "compatibility": float(stretch.own.compatibility_N.mean()),
            "specific_compatibility": float(stretch.specific.compatibility_N.mean()),
        }
    )


# ---- beyond chance


@dataclass(frozen=True, kw_only=True, eq=False)
class _Tests:
    """Clusters of channels of whole segments, and of channels and intervals; None where they cannot be tested."""

    whole: Clusters | None
    intervals: Clusters | None

    def p_KC(self, n_stretches: int) -> np.ndarray | None:
        """Return the p of each channel's cluster in each stretch; None where nothing was tested."""
        if self.whole is None:
            return None
        if self.intervals is None:
            return self.whole.p_X[None]
        return np.concatenate([self.whole.p_X[None], self.intervals.p_X.reshape(-1, n_stretches - 1).T])


def _tests(got: _Collected, units: Units, circumstances: Circumstances, notes: list[str]) -> _Tests:
    if units.number < 2:
        notes.append(f"nothing is tested against chance: one {units.kind} is no sample")
        return _Tests(whole=None, intervals=None)
    montage = circumstances.store.manifest.montage
    try:
        edge_E2 = channel_neighbours(montage.positions_m)
    except InputError as error:
        notes.append(f"every channel is tested by itself, corrected for all: {error}")
        edge_E2 = np.empty((0, 2), dtype=np.int64)
    unit_U = np.arange(units.number)
    whole = cluster_test(got.unit_mean_KUC[0], unit_U, edge_E2, seed=circumstances.seed)
    if len(got.stretches) == 1:
        return _Tests(whole=whole, intervals=None)
    mean_UCK = np.stack(got.unit_mean_KUC[1:], axis=2)
    n_chans, n_times = mean_UCK.shape[1:]
    both_E2 = both_neighbours(
        edge_E2, n_chans, _successive([each["interval_s"] for each in got.stretches[1:]]), n_times
    )
    return _Tests(
        whole=whole,
        intervals=cluster_test(mean_UCK.reshape(len(unit_U), -1), unit_U, both_E2, seed=circumstances.seed),
    )


def _successive(intervals_s: Sequence[tuple[float, float]]) -> np.ndarray:
    """Return pairs of intervals that touch or overlap."""
    pairs = [
        (a, b)
        for a in range(len(intervals_s))
        for b in range(a + 1, len(intervals_s))
        if max(intervals_s[a][0], intervals_s[b][0]) <= min(intervals_s[a][1], intervals_s[b][1]) + 1e-9
    ]
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def _cluster_entries(found: Clusters | None, channels: Sequence[str], intervals: Sequence[str]) -> list[dict[str, Any]]:
    """Return every cluster, the least likely first, with the places in it."""
    if found is None:
        return []
    entries = []
    for number in np.argsort(found.p_K, kind="stable").tolist():
        places = np.flatnonzero(found.cluster_X == number).tolist()
        named = [
            {"channel": channels[x // max(1, len(intervals))]}
            | ({"interval": intervals[x % len(intervals)]} if intervals else {})
            for x in places
        ]
        entries.append({"p": float(found.p_K[number]), "mass": float(found.mass_K[number]), "places": named})
    return entries


# ---- tables


def _number(value: float) -> str:
    return "" if not np.isfinite(value) else f"{value:.8g}"


def _write_importance(path: Path, got: _Collected, tests: _Tests, channels: Sequence[str]) -> None:
    head = (
        "group_kind", "group", "interval", "encoded", "channel", "importance", "error", "draw_error", "specific",
        "specific_error", "specific_draw_error", "p_cluster", "n_segments", "n_pictures",
    )  # fmt: skip
    lines: list[str] = [",".join(head)]
    p_KC = tests.p_KC(len(got.stretches))
    for k, (stretch, by_kind) in enumerate(zip(got.stretches, got.averages, strict=True)):
        p_C = None if p_KC is None else p_KC[k]
        for kind, (own, specific) in by_kind.items():
            for g, group in enumerate(own.groups):
                for c, channel in enumerate(channels):
                    values = [
                        _number(table[g, c])
                        for each in (own, specific)
                        for table in (each.mean_GC, each.error_GC, each.draw_error_GC)
                    ]
                    p = "" if kind != "all" or p_C is None else _number(p_C[c])
                    counts = (str(own.n_segments_G[g]), str(own.n_units_G[g]))
                    names = map(_quoted, (kind, group, stretch["name"], stretch["encoded"], channel))
                    lines.append(",".join((*names, *values, p, *counts)))
    runs.write_whole(path, "\n".join(lines) + "\n")


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if any(sign in text for sign in ',"\n') else text


def _view_row(kind: str, score: ViewScore) -> dict[str, Any]:
    return {
        "kind": kind,
        "view": score.view.name,
        "encoded": score.encoded,
        "top_k": score.top_k,
        "accuracy": score.accuracy,
        "low": score.low,
        "high": score.high,
        "level": score.level,
        "draw_error": score.draw_error,
        "chance": score.chance,
        "margin": float(score.margin_N.mean()),
        "n_draws": score.n_draws,
        "n_segments": len(score.segment_ids),
        "n_pictures": score.n_images,
    }


def _write_views(path: Path, scores: Sequence[tuple[str, int, ViewScore]]) -> None:
    rows = [_view_row(kind, score) for kind, _, score in scores]
    part = path.with_name(f"{path.name}.part")
    with part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(rows[0])
        writer.writerows(
            [_number(value) if isinstance(value, float) else value for value in row.values()] for row in rows
        )
    part.rename(path)


def _noise_text(noise: Noise) -> str:
    draws = f"{noise.n_draws} draw{'s' * (noise.n_draws != 1)} of noise"
    if noise.is_filtered:
        return f"{draws}, low-passed at {noise.cutoff_hz:g} Hz"
    return f"{draws}, white: {noise.cutoff_hz:g} Hz is not below half the rate of {noise.sfreq_hz:g} Hz"


def _summary(
    got: _Collected,
    tests: _Tests,
    units: Units,
    scores: Sequence[tuple[str, int, ViewScore]],
    circumstances: Circumstances,
    about: Mapping[str, Any],
    notes: Sequence[str],
) -> dict[str, Any]:
    store, row_N, noise = circumstances.store, circumstances.row_N, circumstances.noise
    channels, intervals = store.manifest.channels, [each["name"] for each in got.stretches[1:]]
    return {
        **about,
        "n_segments": len(row_N),
        "n_pictures": len(np.unique(store.image_N[row_N])),
        "n_subjects": len(np.unique(store.subject_N[row_N])),
        "channels": list(channels),
        "noise": {**vars(noise), "is_filtered": noise.is_filtered},
        "stretches": got.stretches,
        "units": {"kind": units.kind, "number": units.number, "why": units.why},
        "clusters": {
            "whole segment": _cluster_entries(tests.whole, channels, ()),
            "intervals": _cluster_entries(tests.intervals, channels, intervals),
        },
        "views": [_view_row(kind, score) for kind, _, score in scores],
        "notes": list(notes),
    }


def _metrics(
    got: _Collected, tests: _Tests, scores: Sequence[tuple[str, ViewScore]], channels: Sequence[str]
) -> dict[str, float]:
    own, specific = got.averages[0]["all"]
    metrics = {f"channel/{name}": float(value) for name, value in zip(channels, own.mean_GC[0], strict=True)}
    metrics |= {f"specific/{name}": float(value) for name, value in zip(channels, specific.mean_GC[0], strict=True)}
    metrics["compatibility"] = got.stretches[0]["compatibility"]
    if tests.whole is not None:
        metrics["channels_in_clusters"] = float((tests.whole.p_X < ALPHA).sum())
    for kind, score in scores:
        if kind in ("all", "spatial", "spectral"):
            metrics[f"top1/{score.view.name.partition(' (')[0].replace(' ', '_')}"] = score.accuracy
    return metrics


# ---- figures


def _draw(
    folder: Path,
    got: _Collected,
    tests: _Tests,
    scores: Sequence[tuple[str, ViewScore]],
    circumstances: Circumstances,
    notes: list[str],
) -> None:
    manifest = circumstances.store.manifest
    place_C3, channels, n = manifest.montage.positions_m, manifest.channels, len(got.stretches)
    p_KC = tests.p_KC(n)
    try:
        for kind, name in (("class", "classes"), ("subject", "subjects"), ("category", "categories")):
            if kind in got.averages[0]:
                own = got.averages[0][kind][0]
                channel_figures.class_scalps_figure(own.groups, own.mean_GC, place_C3, folder / name, channels=channels)
        for target, name in ((0, "intervals"), (1, "intervals_specific")):
            mean_KC = np.stack([each["all"][target].mean_GC[0] for each in got.averages])
            is_marked_KC = p_KC < ALPHA if target == 1 and p_KC is not None else None
            if n > 1:
                channel_figures.interval_scalps_figure(
                    mean_KC[0],
                    [each["interval_s"] for each in got.stretches[1:]],
                    mean_KC[1:],
                    place_C3,
                    folder / name,
                    significant_C=None if is_marked_KC is None else is_marked_KC[0],
                    significant_KC=None if is_marked_KC is None else is_marked_KC[1:],
                    channels=channels,
                )
    except InputError as error:
        notes.append(f"no maps of the head: {error}")
    of_kind = {kind: [score for each, score in scores if each == kind] for kind, _ in scores}
    for kind, name in (("spatial", "regions"), ("spectral", "bands")):
        if of_kind.get(kind):
            channel_figures.views_figure([*of_kind["all"], *of_kind[kind]], kind, folder / name)
    if scores:
        channel_figures.windows_figure(
            of_kind["growing"],
            of_kind["shrinking"],
            of_kind["sliding"],
            folder / "windows",
            sfreq_hz=manifest.sfreq_hz,
            t_min_s=manifest.t_min_s,
        )


# ---- what is printed


def _aligned(rows: Sequence[Sequence[str]], *, n_left: int = 1) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if at < n_left else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _p_text(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else "<0.001"


def _text(
    got: _Collected,
    tests: _Tests,
    units: Units,
    scores: Sequence[tuple[str, ViewScore]],
    circumstances: Circumstances,
    about: Mapping[str, Any],
    notes: Sequence[str],
) -> str:
    store, row_N = circumstances.store, circumstances.row_N
    n_images, n_subjects = (len(np.unique(values[row_N])) for values in (store.image_N, store.subject_N))
    lines = [
        f"{about['run']}, trial {about['trial']}: what its channels are worth on the {about['side']} side "
        f"({len(row_N)} segments of {n_images} pictures, {n_subjects} subject{'s' * (n_subjects != 1)})",
        "",
        *_channel_lines(got, tests, store.manifest.channels),
        "",
        *_stretch_lines(got, tests, store.manifest.channels),
    ]
    if scores:
        lines += ["", *_view_lines(scores)]
    lines += [
        "",
        "importance: compatibility with the own picture that is lost with noise in the channel's place (Eq. 5-7)",
        "specific: the same with the own picture less the mean of the side's; 0 if pictures are not told apart",
        f"+-: standard errors over pictures, draws included; {_noise_text(circumstances.noise)}",
        f"p: of the channel's cluster, on specific, corrected for all places; units: {units.number} "
        f"{units.kind}{'es' if units.kind == 'class' else 's'} ({units.why})",
        *(f"note: {note}" for note in notes),
    ]
    if about["side"] == "val":
        lines.append("note: the model was chosen on these very pictures, which flatters it")
    if about["dataset"]["grade"] == "red":
        lines.append("note: the data set's order audit is red: what channels tell may be when, not what")
    return "\n".join(lines)


def _channel_lines(got: _Collected, tests: _Tests, channels: Sequence[str]) -> list[str]:
    own, specific = got.averages[0]["all"]
    p_KC = tests.p_KC(len(got.stretches))
    rows: list[Sequence[str]] = [("channel", "importance", "+-", "specific", "+-", "p")]
    order_C = np.argsort(-own.mean_GC[0], kind="stable")
    for c in order_C[:_SHOWN].tolist():
        values = [f"{table[0, c]:.4f}" for table in (own.mean_GC, own.error_GC, specific.mean_GC, specific.error_GC)]
        rows.append((channels[c], *values, "-" if p_KC is None else _p_text(p_KC[0, c])))
    lines = _aligned(rows)
    if len(channels) > _SHOWN:
        lines.append(f"and {len(channels) - _SHOWN} more, down to {own.mean_GC[0].min():.4f} ({channels[order_C[-1]]})")
    if p_KC is not None:
        lines.append(
            f"{int((p_KC[0] < ALPHA).sum())} of {len(channels)} channels are in clusters beyond chance (p < 0.05)"
        )
    return lines


def _stretch_lines(got: _Collected, tests: _Tests, channels: Sequence[str]) -> list[str]:
    p_KC = tests.p_KC(len(got.stretches))
    rows = [("seen", "encoded", "compatibility", "specific", "strongest channels", "p")]
    for k, (stretch, by_kind) in enumerate(zip(got.stretches, got.averages, strict=True)):
        mean_C = by_kind["all"][0].mean_GC[0]
        strongest = ", ".join(channels[c] for c in np.argsort(-mean_C, kind="stable")[:3])
        rows.append(
            (
                stretch["name"],
                stretch["encoded"],
                f"{stretch['compatibility']:.3f}",
                f"{stretch['specific_compatibility']:.3f}",
                strongest,
                "-" if p_KC is None else _p_text(p_KC[k].min()),
            )
        )
    return _aligned(rows, n_left=2)


def _view_lines(scores: Sequence[tuple[str, ViewScore]]) -> list[str]:
    whole = next(score for kind, score in scores if kind == "all")
    shown = f"{100 * whole.accuracy:.1f} [{100 * whole.low:.1f}, {100 * whole.high:.1f}]"
    lines = [f"top-1 %, 95 % intervals: {shown} with all; chance {100 * whole.chance:.1f}"]
    rows = [("", "alone", "without")]
    for kind in ("spatial", "spectral"):
        parts: dict[str, dict[str, str]] = {}
        for own, score in scores:
            if own == kind:
                which, _, part = score.view.name.partition(" ")
                cell = f"{100 * score.accuracy:.1f} [{100 * score.low:.1f}, {100 * score.high:.1f}]"
                parts.setdefault(part, {})[which] = cell
        rows += [(part, cells.get("only", "-"), cells.get("without", "-")) for part, cells in parts.items()]
    return lines + _aligned(rows)
