"""The frame of the report: one HTML document that loads nothing, its style sheet for light and dark, and its script.

Without the script everything is there to read; with it, tables can be sorted.
"""

from __future__ import annotations

import base64
import hashlib
from html import escape

_STYLE = """
:root {
  color-scheme: light dark;
  --page: #f6f7f8; --card: #ffffff; --ink: #171c22; --muted: #5a6572; --line: #e3e7eb; --track: #eef1f4;
  --plain: #a7b2be; --accent: #2456d3; --bar: #5a8af5; --accent-soft: #e9effd;
  --good: #0a8a63; --bad: #cc4125; --open: #7a8694;
  --s0: #2456d3; --s1: #d9730d; --s2: #0a8a7d; --s3: #9a3fb5; --s4: #6b7280; --s5: #b3861b;
  --shade0: #bccdf3; --shade1: #f6cf9f; --shade2: #cfc6ea; --shade3: #b5dfcd;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #101317; --card: #181d23; --ink: #e9edf1; --muted: #9ba7b4; --line: #2b323a; --track: #232a32;
    --plain: #5f6c7a; --accent: #7ea6ff; --bar: #4a7be6; --accent-soft: #1d2940;
    --good: #3fcf9a; --bad: #ff7f66; --open: #8e9aa7;
    --s0: #7ea6ff; --s1: #ffa552; --s2: #45cdbf; --s3: #d48bec; --s4: #a3adb8; --s5: #e3c05f;
    --shade0: #2c3d61; --shade1: #5a4023; --shade2: #403a5c; --shade3: #23493d;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); line-height: 1.5;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1140px; margin: 0 auto; padding: 32px 20px 48px; }
h1 { font-size: 1.55rem; line-height: 1.25; margin: 0 0 20px; letter-spacing: -.01em; }
h2 { font-size: 1.15rem; margin: 40px 0 4px; letter-spacing: -.005em; }
h3 { font-size: .95rem; margin: 0 0 12px; font-weight: 600; }
p { margin: 0; } .lead { color: var(--muted); margin: 0 0 14px; max-width: 75ch; font-size: .93rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  padding: 18px 20px; min-width: 0; }
.grid { display: grid; gap: 16px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); }
.wide { grid-column: 1 / -1; }
.grid > .card:only-child:not(.wide) { max-width: 700px; }
.grid.small > .card:only-child { max-width: 480px; }
.grid.small { grid-template-columns: repeat(auto-fit, minmax(min(100%, 320px), 1fr)); }
.grid > .card > svg { max-width: 640px; }
.grid.small > .card > svg { max-width: 440px; margin-inline: auto; }
.hero { display: grid; gap: 16px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr)); }
.hero .card:first-child { background: var(--accent-soft); border-color: transparent; }
.figure { font-size: 3.4rem; font-weight: 700; line-height: 1.05; letter-spacing: -.03em; margin: 2px 0 6px; }
.figure small { font-size: 1.1rem; font-weight: 600; letter-spacing: 0; margin-left: .35em; }
.figure.good { color: var(--good); } .figure.bad { color: var(--bad); }
.hero .claim { font-weight: 600; } .hero .detail { color: var(--muted); font-size: .9rem; margin-top: 4px; }
svg { display: block; width: 100%; height: auto; overflow: visible; font-family: inherit; }
svg text { fill: var(--ink); font-size: 14px; }
svg .tick { fill: var(--muted); font-size: 12px; font-variant-numeric: tabular-nums; }
svg .axis-title { fill: var(--muted); font-size: 13px; }
svg .number { font-variant-numeric: tabular-nums; fill: var(--muted); }
svg .strong { font-weight: 650; } svg .number.strong { fill: var(--ink); }
.track { fill: var(--track); } .bar.plain { fill: var(--plain); } .bar.strong { fill: var(--bar); }
.whisker { stroke: var(--ink); stroke-width: 1.5; fill: none; }
.rail, .grid-line { stroke: var(--line); fill: none; }
.zero { stroke: var(--muted); stroke-width: 1.5; fill: none; }
.interval { stroke-width: 3; fill: none; stroke: var(--open); } .dot { fill: var(--open); }
.interval.good { stroke: var(--good); } .dot.good { fill: var(--good); }
.interval.bad { stroke: var(--bad); } .dot.bad { fill: var(--bad); }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.bars.good { stroke: var(--good); } .bars.bad { stroke: var(--bad); }
.line.s0 { stroke: var(--s0); } .dot.s0, .key.s0 { fill: var(--s0); background: var(--s0); }
.line.s1 { stroke: var(--s1); } .dot.s1, .key.s1 { fill: var(--s1); background: var(--s1); }
.line.s2 { stroke: var(--s2); } .dot.s2, .key.s2 { fill: var(--s2); background: var(--s2); }
.line.s3 { stroke: var(--s3); } .dot.s3, .key.s3 { fill: var(--s3); background: var(--s3); }
.line.s4 { stroke: var(--s4); } .dot.s4, .key.s4 { fill: var(--s4); background: var(--s4); }
.line.s5 { stroke: var(--s5); } .dot.s5, .key.s5 { fill: var(--s5); background: var(--s5); }
.shade0 { fill: var(--shade0); background: var(--shade0); }
.shade1 { fill: var(--shade1); background: var(--shade1); }
.shade2 { fill: var(--shade2); background: var(--shade2); }
.shade3 { fill: var(--shade3); background: var(--shade3); }
.key[class*=shade] { height: 12px; border-radius: 3px; vertical-align: -1px; }
svg + .legend { margin: 10px 0 0; }
.hint { fill: transparent; } .hint:hover { fill: var(--ink); fill-opacity: .1; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 16px; list-style: none; padding: 0; margin: 0 0 10px;
  font-size: .86rem; } .legend b { font-variant-numeric: tabular-nums; font-weight: 600; }
.key { display: inline-block; width: 14px; height: 4px; border-radius: 2px; margin-right: 6px;
  vertical-align: 3px; }
.note { color: var(--muted); font-size: .86rem; margin-top: 10px; }
.pill { font-size: .78rem; font-weight: 600; border-radius: 99px; padding: 1px 9px; border: 1px solid;
  margin-left: 6px; }
.pill.good { color: var(--good); } .pill.bad { color: var(--bad); }
.starved { fill: none; stroke: var(--bad); stroke-width: 2; }
.bar.good { fill: var(--good); } .bar.bad { fill: var(--bad); } .bar.open { fill: var(--open); }
.dashed { stroke-dasharray: 5 4; }
.frames { display: grid; gap: 16px; grid-template-columns: repeat(auto-fill, minmax(min(100%, 210px), 1fr)); }
.frames figure { margin: 0; min-width: 0; } .frames b { color: var(--ink); }
.frames figcaption { font-size: .82rem; color: var(--muted); margin-top: 5px;
  font-variant-numeric: tabular-nums; }
.shots { display: flex; gap: 3px; } .shots img { flex: 1 1 0; min-width: 0; width: 100%; border-radius: 6px; }
video { display: block; width: 100%; border-radius: 8px; background: #181c22; }
dl { display: grid; gap: 12px 24px; margin: 0;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 210px), 1fr)); }
dt { color: var(--muted); font-size: .8rem; } dd { margin: 0; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; max-width: 100%; background: no-repeat right/48px 100% local
  linear-gradient(to left, var(--card) 40%, transparent), no-repeat right/12px 100% scroll
  linear-gradient(to left, var(--line), transparent); } /* a shadow where there is more to the right */
.scroll:focus-visible { outline: 2px solid var(--accent); }
table { border-collapse: separate; border-spacing: 0; width: 100%; font-size: .9rem; }
th, td { text-align: right; padding: 6px 10px; border-bottom: 1px solid var(--line);
  font-variant-numeric: tabular-nums; white-space: nowrap; }
th.words, td.words { text-align: left; }
th:first-child, td:first-child { position: sticky; left: 0; background: var(--card); padding-left: 0;
  min-width: min(9em, 30vw); max-width: 40vw; white-space: normal; overflow-wrap: anywhere; }
thead th { color: var(--muted); font-weight: 600; vertical-align: bottom; white-space: normal; min-width: 6.5em; }
tbody tr:last-child td { border-bottom: 0; }
tfoot td { font-weight: 600; border-top: 1px solid var(--line); border-bottom: 0; }
th button { all: unset; cursor: pointer; } th button:hover { color: var(--ink); }
th button:focus-visible { outline: 2px solid var(--accent); }
th button::after { content: "\\2195"; opacity: .45; margin-left: .35em; }
th[aria-sort=ascending] button::after { content: "\\2191"; opacity: 1; }
th[aria-sort=descending] button::after { content: "\\2193"; opacity: 1; }
a { color: var(--accent); } svg a text { fill: var(--accent); text-decoration: underline; }
.filmed { stroke: var(--ink); stroke-width: 2; } a:hover .filmed, a:focus-visible .filmed { stroke-width: 4; }
.card { scroll-margin-top: 12px; } .card:target { outline: 3px solid var(--accent); }
ul.notes { margin: 0; padding-left: 1.2em; } ul.notes li + li { margin-top: 6px; }
@media (max-width: 560px) { main { padding: 20px 12px 32px; } .card { padding: 14px; }
  .figure { font-size: 2.8rem; }
  svg text { font-size: 15px; } svg .tick { font-size: 13px; }
  .small svg text { font-size: 12.5px; } .small svg .tick { font-size: 10.5px; } }
@media print { body { background: #fff; } .card { break-inside: avoid; } }
"""

# Heads become buttons that sort the rows by what their cells' data-order says, else by text; what says nothing stays
# last. What stands in a foot is no row.
_SCRIPT = """
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  table.querySelectorAll("thead th").forEach((head, column) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.onclick = () => {
      const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      const isNumber = head.className === "number";
      const key = (row) => isNumber ? row.cells[column].dataset.order : row.cells[column].textContent || undefined;
      body.append(...[...body.rows].sort((one, two) => {
        const [a, b] = [key(one), key(two)];
        if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
        return sign * (isNumber ? a - b : a.localeCompare(b, "en", {numeric: true}));
      }));
    };
  });
}
"""

# Nothing may be fetched: a page that asked for something else would show a hole, here and offline alike. And no other
# script may run: a task's name is from outside.
_DIGEST = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode("ascii")
_POLICY = "; ".join(
    [
        *("default-src 'none'", "style-src 'unsafe-inline'", "media-src data:", "img-src data:"),
        f"script-src 'sha256-{_DIGEST}'",
    ]
)


def document(title: str, body: str) -> str:
    """The whole page; `title` is text, `body` is markup."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n<h1>{escape(title)}</h1>\n{body}\n</main>\n<script>{_SCRIPT}</script>\n</body>\n</html>\n"
    )


def section(title: str, lead: str, cards: list[str], grid: str = "grid") -> str:
    """A headed section of cards, or nothing where there are none; `cards` are markup."""
    if not cards:
        return ""
    return (
        f'<section><h2>{escape(title)}</h2><p class="lead">{escape(lead)}</p>'
        f'<div class="{grid}">{"".join(cards)}</div></section>\n'
    )


def card(
    title: str,
    content: str,
    note: str = "",
    pill: tuple[str, str] | None = None,
    wide: bool = False,
    name: str = "",
    link: str = "",
) -> str:
    """A card with a title, markup and an optional note.

    `pill` is (class, text) beside the title; a wide card takes the whole row; links lead to `#name`; the title
    leads to `link`, an address within the page.
    """
    badge = f' <span class="pill {pill[0]}">{escape(pill[1])}</span>' if pill else ""
    foot = f'<p class="note">{escape(note)}</p>' if note else ""
    kind = "card wide" if wide else "card"
    anchor = f' id="{escape(name)}"' if name else ""
    head = f'<a href="{escape(link)}">{escape(title)}</a>' if link else escape(title)
    return f'<div class="{kind}"{anchor}><h3>{head}{badge}</h3>{content}{foot}</div>'
