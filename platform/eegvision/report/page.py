"""The style sheet of our pages: light and dark by the reader's setting, on screen and on paper."""

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
@media (max-width: 700px) {
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
