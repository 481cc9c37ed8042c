"""Tables and cards of runs and sweeps, as text."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from eegvision import pseudonyms
from eegvision.config import RunConfig
from eegvision.evaluate.statistics import significance_line
from eegvision.ingest.shards import Manifest
from eegvision.overrides import flatten

_TABLE_COLUMNS = 120
# How the entries of a preparation step are said.
_UNITS = {"hz": "Hz", "s": "s", "ms": "ms", "m": "m"}
_RANGES = (("from", "to"), ("low", "high"), ("min", "max"), ("start", "stop"))
_SAID_BY_VALUE = ("file", "formats", "kind", "scale", "taken")
_MOST_LISTED = 6


class Trial(Protocol):
    """What a report needs of a trial; metrics are those of its best pass, item i of the history is pass i + 1."""

    @property
    def number(self) -> int: ...
    @property
    def status(self) -> str: ...
    @property
    def config(self) -> RunConfig: ...
    @property
    def attempts(self) -> int: ...
    @property
    def passes(self) -> int: ...
    @property
    def metrics(self) -> Mapping[str, float]: ...
    @property
    def history(self) -> Sequence[Mapping[str, float]]: ...
    @property
    def seconds(self) -> float: ...
    @property
    def message(self) -> str: ...


def sweep_table(
    trials: Sequence[Trial],
    *,
    metric: str,
    chance: Mapping[str, float],
    n_segments: int,
    n_images: int,
    p: Mapping[int, float] | None = None,
) -> str:
    """Return the ranked trials as text of at most 120 columns; last comes what guessing scores, and seldom scores.

    The significance line is that of `statistics.significance_line` over pictures, divided among all trials.

    Args:
        trials: best first.
        metric: what they were ranked by.
        chance: level of guessing by metric.
        n_segments: validation segments.
        n_images: validation pictures (the gallery).
        p: by number of the trial, corrected for having tried them all (`nulls.answer_permutation`).
    """
    p = p or {}
    scored = [trial for trial in trials if trial.metrics]
    columns = [
        ["rank", *[str(rank) for rank in range(1, len(scored) + 1)], *["-"] * (len(trials) - len(scored)), "", ""],
        ["trial", *[str(trial.number) for trial in trials], "", ""],
        ["status", *[trial.status for trial in trials], "chance", "line"],
        ["passes", *[str(trial.passes) for trial in trials], "", ""],
    ]
    heads = {"val/top1": "top-1 %", "val/top5": "top-5 %", "val/class_top1": "class %", "val/accuracy": "right %"}
    for name, head in heads.items():
        if any(name in trial.metrics for trial in trials):
            cells = [f"{100 * trial.metrics[name]:.1f}" if name in trial.metrics else "-" for trial in trials]
            line = significance_line(n_images, chance[name], comparisons=len(trials))
            columns.append([head, *cells, f"{100 * chance[name]:.1f}", f"{100 * line:.1f}" if line <= 1 else "-"])
            if name in ("val/top1", "val/accuracy") and p:
                columns.append(["p", *[_p_text(p.get(trial.number)) for trial in trials], "", ""])
    if metric == "val/loss":
        columns.append(["loss", *[f"{t.metrics[metric]:.3f}" if t.metrics else "-" for t in trials], "", ""])
    columns.append(["time", *[_clock(trial.seconds) for trial in trials], "", ""])
    left_out = []
    for head, cells in _varying(trials).items():
        fits = sum(_width(column) + 2 for column in columns) + _width([head, *cells]) <= _TABLE_COLUMNS
        columns.append([head, *cells, "", ""]) if fits and not left_out else left_out.append(head)
    notes = [
        f"{n_segments} validation segments of {n_images} pictures; best first by {metric}, each trial at its best pass",
        f"line: what guessing reaches in 5 % of sweeps of {len(trials)} trials"
        + (f"; p: pictures trade identities, corrected for all {len(trials)} trials" if p else "")
        + ". Each trial's best pass, and the first trial, were chosen on these very pictures: only the test set can "
        "confirm them (jobs/evaluate.py)",
        *[f"trial {trial.number} {trial.status}: {trial.message}" for trial in trials if trial.message],
    ]
    if left_out:
        notes.append(f"also varied: {', '.join(left_out)}")
    wrapped = [textwrap.fill(note, _TABLE_COLUMNS, subsequent_indent="  ") for note in notes]
    return "\n".join([*_aligned(columns), *wrapped])


def write_csv(trials: Sequence[Trial], path: Path, *, chance: Mapping[str, float]) -> None:
    """Write one row per trial, best first: outcome, all metrics with their level of guessing, all settings."""
    import pandas as pd

    rows = [
        {"rank": rank, "trial": trial.number, "status": trial.status, "attempts": trial.attempts}
        | {"passes": trial.passes, "seconds": trial.seconds}
        | dict(trial.metrics)
        | {f"chance {name}": level for name, level in chance.items()}
        | pseudonyms.public(trial.config.flat())
        | {"message": trial.message}
        for rank, trial in enumerate(trials, start=1)
    ]
    pd.DataFrame(rows).to_csv(path, index=False)


def dataset_card(manifest: Manifest, *, segments_in: Mapping[str, int] | None = None, notes: Sequence[str] = ()) -> str:
    """Return what a reader must know of a data set before believing a score, as Markdown.

    Subjects and anything else that lists them are counted, not named: cards travel further than the data.

    Args:
        manifest: of the data set.
        segments_in: number of segments by split name, when it was split.
        notes: leaks the split cannot exclude, one sentence each.
    """
    lines = [
        f"# Data set {manifest.name}",
        "",
        "| | |",
        "|---|---|",
        *[f"| {k} | {_cell(v)} |" for k, v in facts(manifest).items()],
    ]
    lines += ["", "## Steps so far", ""]
    lines += [f"{number}. {step}" for number, step in enumerate(steps(manifest), start=1)] or ["None recorded."]
    lines += ["", "## Left out", ""]
    lines += [f"- {reason}: {count}" for reason, count in sorted(manifest.dropped.items()) if count] or ["Nothing."]
    if segments_in:
        lines += ["", "## Split", "", "| part | segments |", "|---|---|"]
        lines += [f"| {name} | {count} |" for name, count in segments_in.items()]
    if notes:
        lines += ["", "What the split cannot exclude:", "", *[f"- {note}" for note in notes]]
    lines += ["", "## Classes", "", ", ".join(map(str, manifest.classes)) or "None."]
    return "\n".join(lines) + "\n"


def facts(manifest: Manifest) -> dict[str, str]:
    """Return what a data set is in a few words each; subjects are counted, not named."""
    channels = manifest.channels
    return {
        "made from": manifest.dialect,
        "licence": manifest.licence,
        "fingerprint": f"`{manifest.fingerprint}`",
        "segments": f"{manifest.n_segments}",
        "pictures": f"{manifest.n_images} in {len(manifest.classes)} classes",
        "subjects": f"{len(manifest.subjects)}",
        "channels": f"{len(channels)} ({', '.join(channels[:6])}{', ...' if len(channels) > 6 else ''})",
        "sampling rate": f"{manifest.sfreq_hz:g} Hz",
        "window": f"{1000 * manifest.t_min_s:g} to {1000 * (manifest.t_min_s + manifest.n_times / manifest.sfreq_hz):g}"
        f" ms after onset ({manifest.n_times} samples)",
        "unit": manifest.unit,
        "order audit": manifest.grade,
        "shards": f"{len(manifest.shards)}",
    }


def steps(manifest: Manifest) -> list[str]:
    """Return every preparation step in a line."""
    return [_step(step) for step in manifest.steps]


def _aligned(columns: Sequence[Sequence[str]]) -> list[str]:
    """Return the rows of a table whose columns are given; words to the left, numbers to the right."""
    texts = []
    for column in columns:
        is_number = all(cell[:1] in "0123456789-<" for cell in column[1:] if cell)
        align = str.rjust if is_number else str.ljust
        texts.append([align(cell, _width(column)) for cell in column])
    rows = ["  ".join(row).rstrip() for row in zip(*texts, strict=True)]
    return [rows[0], "-" * max(map(len, rows)), *rows[1:]]


def varied(trials: Sequence[Trial]) -> dict[str, list[Any]]:
    """Return the settings that were set apart in some trials as {path: a value per trial}, the main ones first.

    What only follows from another choice is left out (a loss brings its own temperature), and so is a setting that
    repeats another one (both embeddings have one size). A trial without the setting has None.
    """
    flat = [pseudonyms.public(trial.config.flat()) for trial in trials]
    given = [flatten(trial.config.to_dict()) for trial in trials]
    main = ["eeg.encoder", "image.encoder", "eeg.embed_dim", "loss.name", "optim.lr"]
    found: dict[str, list[Any]] = {}
    for path in [*main, *[path for path in dict.fromkeys(path for own in flat for path in own) if path not in main]]:
        values = [own.get(path) for own in flat]
        if len({str(own[path]) for own in given}) > 1 and values not in found.values():
            found[path] = values
    return found


def setting_name(path: str) -> str:
    """Return a short heading for a setting: `eeg` for `eeg.encoder`, `dim`, `loss`, else the name without its group."""
    group, _, name = path.rpartition(".")
    return group if name in ("encoder", "name") else name.replace("embed_dim", "dim")


def _varying(trials: Sequence[Trial]) -> dict[str, list[str]]:
    """Return what varies between trials as {heading: a text per trial}."""
    found: dict[str, list[str]] = {}
    for path, values in varied(trials).items():
        texts = list(map(short, values))
        if texts not in found.values():
            head = setting_name(path)
            found[path if head in found else head] = texts
    return found


def short(value: object) -> str:
    """Return a setting's value in few characters."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return (
            f"{value:.2g}"
            if abs(value) >= 0.01 or not value
            else f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-")
        )
    return str(value)


def _p_text(p: float | None) -> str:
    if p is None:
        return "-"
    return f"{p:.3f}" if p >= 0.001 else "<0.001"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _width(column: Sequence[str]) -> int:
    return max(map(len, column))


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _step(step: Mapping[str, Any]) -> str:
    """Return one preparation step in a line, `name: what was done`."""
    left = {key: value for key, value in step.items() if key != "step" and value is not None}
    before, after = left.pop("unit_before", None), left.pop("unit_after", None)
    texts = [] if before == after else [f"{before} → {after}"]
    aside = str(left.pop("basis", ""))
    by = left.pop("by", "")
    while left:
        key = next(iter(left))
        texts.append(_span(left, key) or _part(key, left.pop(key), is_people=step["step"] == "subjects"))
    if aside and texts:
        texts.append(f"known from {'' if aside.startswith('the ') else 'the '}{aside}")
    elif aside:
        texts.append(aside)
    texts = [text for text in [*texts, by and f"by {by}"] if text]
    said = ", ".join(texts)
    if not said:
        return str(step["step"])
    # A second colon would part the line at the wrong place.
    return f"{step['step']} ({said})" if ": " in said else f"{step['step']}: {said}"


def _span(left: dict[str, Any], key: str) -> str:
    """Take both ends of a range such as from_s and to_s, or the only one, out of `left` and return it in words."""
    end, _, name = key.partition("_")
    for ends in _RANGES:
        if name and end in ends:
            low, high = (left.pop(f"{e}_{name}", None) for e in ends)
            break
    else:
        return ""
    before, after = ("sample ", "") if name == "sample" else ("", f" {_UNITS.get(name, name.replace('_', ' '))}")
    if low is None or high is None:
        return f"{'up to' if low is None else 'from'} {before}{_amount(high if low is None else low)}{after}"
    return f"{before}{_amount(low)} to {_amount(high)}{after}"


def _part(key: str, value: Any, *, is_people: bool) -> str:
    """Return one entry of a step in words; people are counted, whatever their number."""
    words = key.replace("_", " ")
    stem, _, suffix = key.rpartition("_")
    if isinstance(value, list | tuple):
        if is_people or key == "subjects" or len(value) > _MOST_LISTED:
            noun = f"{len(value)} {words}"
            return noun.removesuffix("s") if len(value) == 1 else noun
        unit = _UNITS.get(suffix, "") if stem else ""
        listed = ", ".join(_amount(item) for item in value) + (f" {unit}" if unit else "")
        return listed if key in _SAID_BY_VALUE else f"{stem.replace('_', ' ') if unit else words} {listed}"
    if isinstance(value, Mapping):
        return f"{words} ({', '.join(f'{name} {_amount(entry)}' for name, entry in value.items())})"
    if key == "what":  # "down" and "up" are seen from the rates; what follows is not
        return str(value).partition(": ")[2]
    if key == "on_bad":
        return {"fail": "none may be faulty", "drop": "faulty ones left out"}.get(value, f"{words} {value}")
    if key in _SAID_BY_VALUE:
        return str(value)
    noun, *rest = words.split(" ")
    if isinstance(value, int) and not isinstance(value, bool) and noun.endswith("s"):
        return " ".join([_amount(value), noun.removesuffix("s") if value == 1 else noun, *rest])
    if stem and suffix in _UNITS:
        stem = "" if stem == "new" else f"{stem.replace('_', ' ')} "
        return f"{stem}{_amount(value)} {_UNITS[suffix]}"
    return f"{words} {_amount(value)}"


def _amount(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)
