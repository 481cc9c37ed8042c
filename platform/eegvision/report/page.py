"""Our pages: one file without scripts, light and dark by the reader's setting, on screen and on paper."""

from __future__ import annotations

import html
import os
from collections.abc import Sequence
from pathlib import Path

STYLE = """
:root {
  color-scheme: light dark;
  --ground: #f4f5f7; --card: #ffffff; --ink: #1b1f24; --muted: #68707c; --line: #dfe2e7;
  --green: #00795a; --amber: #a05f00; --red: #b93a00; --tint: #eef2f6; --blue: #0072b2;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #14171b; --card: #1d2126; --ink: #e8eaed; --muted: #9aa3ad; --line: #353b43;
    --green: #2fc59b; --amber: #f0b040; --red: #ff8652; --tint: #252a31; --blue: #4ba6e0;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 16px/1.5 system-ui, -apple-system, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 28px 20px 60px; }
header, section {
  background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 22px 26px; margin: 0 0 18px;
}
header { border-top: 6px solid var(--grade); }
.green { --grade: var(--green); } .amber { --grade: var(--amber); } .red { --grade: var(--red); }
.eyebrow { margin: 0; color: var(--muted); font-size: 13px; letter-spacing: .06em; text-transform: uppercase; }
h1 { margin: 2px 0 4px; font-size: clamp(26px, 4vw, 38px); line-height: 1.15; overflow-wrap: anywhere; }
h2 { margin: 0 0 10px; font-size: 21px; }
h3 { margin: 14px 0 6px; font-size: 15px; color: var(--muted); }
p { margin: 0 0 12px; max-width: 78ch; }
.size, .note, figcaption, .missing { color: var(--muted); }
.note, figcaption { font-size: 13.5px; margin: 4px 0 0; }
.verdict { display: flex; flex-wrap: wrap; align-items: center; gap: 10px 16px; margin: 14px 0 4px; font-size: 19px; }
.badge {
  background: var(--grade); color: var(--card); border-radius: 999px; padding: 5px 22px 7px;
  font-size: 24px; font-weight: 700; letter-spacing: .02em;
}
.why { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 380px), 1fr)); gap: 0 34px; }
.why > p { margin-top: 10px; }
ul { margin: 0 0 8px; padding-left: 20px; } li { margin: 0 0 6px; }
svg { display: block; width: 100%; height: auto; }
figure { margin: 0 0 16px; }
.panels {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 320px), 1fr)); gap: 18px 26px;
  align-items: start;
}
.panels + .missing { margin: 14px 0 0; }
.panels.half { grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); }
.panels.one { grid-template-columns: 1fr; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 380px), 1fr)); gap: 10px 40px; }
.columns h3:first-child, .panels h3:first-child { margin-top: 0; }
.maps { display: grid; grid-template-columns: repeat(auto-fit, minmax(104px, 1fr)); gap: 6px; }
.maps svg { margin: 0 auto; max-width: 190px !important; }
.maps.single { display: block; max-width: 240px; margin: 0 auto; }
.scale { display: flex; align-items: center; gap: 8px; font-size: 13px; color: var(--muted); margin: 6px 0 0; }
.scale span { white-space: nowrap; }
.single .scale { justify-content: center; }
.scale i { flex: 0 1 150px; height: 9px; border-radius: 5px; }
.diverging { background: linear-gradient(90deg, #053061, #4393c3, #f7f7f7, #d6604d, #67001f); }
.sequential { background: linear-gradient(90deg, #440154, #3b528b, #21918c, #5ec962, #fde725); }
table { border-collapse: collapse; font-size: 14.5px; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: 6px 12px 6px 0; border-bottom: 1px solid var(--line); }
tr:last-child > * { border-bottom: 0; }
thead th { color: var(--muted); font-weight: 600; font-size: 13px; }
tbody th, .plain > tr > th { font-weight: 600; white-space: nowrap; }
.plain td { overflow-wrap: anywhere; }
.plain th { color: var(--muted); }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.findings .check { white-space: nowrap; font-weight: 600; }
.findings .red, .findings .amber { background: color-mix(in srgb, var(--grade) 8%, transparent); }
.findings td:first-child, .findings th:first-child { padding-left: 8px; }
.dot { display: inline-block; width: 11px; height: 11px; border-radius: 50%; margin-right: 9px; }
.dot { background: var(--grade); }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(96px, 1fr)); gap: 12px; }
.pictures figure { margin: 0; text-align: center; }
.pictures img { width: 100%; aspect-ratio: 1; object-fit: contain; border-radius: 6px; background: var(--tint); }
.pictures figcaption { font-size: 12.5px; line-height: 1.25; overflow-wrap: anywhere; }
.narrow-only { display: none; }
.grid { margin: 0 0 26px; }
.grid:last-child { margin-bottom: 0; }
.grid h3, .run h3 { color: var(--ink); font-size: 16px; margin: 18px 0 4px; }
.grid .caption { color: var(--muted); font-size: 13.5px; margin: 0 0 8px; max-width: 110ch; }
.grid figcaption ul { list-style: none; padding: 0; margin: 8px 0 0; }
.grid figcaption li { margin: 0 0 3px; max-width: 120ch; }
.wide { overflow-x: auto; }
.scores { width: auto; min-width: min(100%, 560px); font-size: 14px; }
.scores th, .scores td { padding: 5px 10px 5px 0; }
.scores th + th, .scores td + td, .scores th + td { padding-left: 10px; }
.scores thead th { vertical-align: bottom; line-height: 1.25; }
.scores thead .number { white-space: normal; }
.scores thead tr + tr th { padding-top: 0; font-weight: 400; }
.scores thead tr:first-child:not(:last-child) th:not([rowspan="2"]) { border-bottom: 0; }
.scores thead tr:last-child > *, .scores thead th[rowspan="2"] { border-bottom: 1.5px solid var(--muted); }
.scores thead th[colspan]:not([colspan="1"]) { text-align: center; }
.scores .nowrap { white-space: nowrap; }
.scores tbody th { white-space: normal; max-width: 44ch; overflow-wrap: break-word; }
.grid .scores tbody th { min-width: 15ch; }
.scores .words { text-align: left; overflow-wrap: break-word; }
.scores small { display: block; color: var(--muted); font-size: 12px; }
.scores .paper { color: var(--blue); }
.scores s { color: var(--red); }
.scores .level > * { color: var(--muted); font-weight: 400; border-bottom: 0; padding-top: 3px; padding-bottom: 3px; }
.scores tbody tr:not(.level):has(+ .level) > * { border-bottom: 1.5px solid var(--muted); }
.warn { color: var(--red); font-weight: 600; }
details { margin: 10px 0; } summary { cursor: pointer; font-weight: 600; }
pre {
  background: var(--tint); border-radius: 8px; padding: 10px 14px; margin: 6px 0 12px; overflow-x: auto;
  font: 13px/1.45 ui-monospace, Menlo, Consolas, monospace; white-space: pre-wrap; overflow-wrap: anywhere;
}
code { font: 0.9em ui-monospace, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
nav { display: flex; flex-wrap: wrap; gap: 4px 16px; margin: 14px 0 0; font-size: 14px; }
nav a { color: var(--blue); text-decoration: none; }
@media (max-width: 700px) {
  .scores, .scores tbody, .scores tr, .scores th[scope] { display: block; width: 100%; max-width: none; }
  .scores thead { display: none; }
  .scores tr { padding: 9px 0; border-bottom: 1px solid var(--line); }
  .scores tbody tr > *, .scores tbody tr:not(.level):has(+ .level) > * { border: 0; padding: 1px 0; }
  .scores td { display: flex; justify-content: space-between; gap: 12px; text-align: right; white-space: normal; }
  .scores td:empty { display: none; }
  .scores .words { text-align: right; }
  .scores td::before { content: attr(data-name); color: var(--muted); font-size: 13px; text-align: left; }
  .scores small { display: inline; margin-left: 6px; }
  .scores td > span { flex: 1; }
  main { padding: 12px 10px 40px; } header, section { padding: 16px 14px; border-radius: 10px; }
  .wide-only { display: none; } .narrow-only { display: block; }
  .maps { grid-template-columns: repeat(3, 1fr); }
  .findings thead { display: none; }
  .findings, .findings tbody, .findings tr, .findings td { display: block; }
  .findings tr { padding: 10px; border-bottom: 1px solid var(--line); }
  .findings td { border: 0; padding: 0; text-align: left; white-space: normal; }
  .findings td:first-child { padding-left: 0; }
  .findings .number { display: inline-block; margin-right: 14px; color: var(--muted); font-size: 13px; }
  .findings .number:empty { display: none; }
  .findings .number::before { content: attr(data-name) " "; }
}
@media print {
  details:not([open]) { display: none; } nav { display: none; }
  pre { font-size: 10.5px; }
  body { background: #fff; font-size: 13.5px; } main { max-width: none; padding: 0; }
  header, section { border-radius: 0; padding: 10px 0; border-width: 0 0 1px; }
  header { border-top-width: 6px; }
  header, figure, tr, li, svg, .panels > *, .maps, .scale { break-inside: avoid; }
  h2, h3, section > p { break-after: avoid; }
  table { font-size: 12.5px; } th, td { padding-top: 4px; padding-bottom: 4px; }
  .columns, .why { grid-template-columns: 1fr 1fr; gap: 10px 28px; }
  thead { display: table-header-group; }
  .panels.half { grid-template-columns: 1fr 1fr; }
  .half .wide-only { display: none; } .half .narrow-only { display: block; }
  .badge, .dot, .scale i { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""


def escaped(value: object) -> str:
    """Return text that HTML takes for text."""
    return html.escape(str(value))


def section(title: str, body: str, anchor: str = "") -> str:
    """Return a part of a page."""
    place = f' id="{anchor}"' if anchor else ""
    return f"<section{place}><h2>{title}</h2>{body}</section>"


def write_page(path: Path, title: str, sections: Sequence[str]) -> Path:
    """Write a page as one file, whole or not at all, and return its path."""
    text = (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escaped(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{STYLE}</style></head>\n<body><main>\n" + "\n".join(sections) + "\n</main></body></html>\n"
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)  # noqa: PTH105
    return path
