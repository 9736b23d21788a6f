"""One self-contained HTML page with charts: opens from a disk, asks nothing of any network. Pure,
save that plotly's script is read from its package.

Whatever comes from files is escaped: as text in the page, and in the data of charts, which lie as
JSON in a script that browsers do not run.
"""

import functools
import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

LONGEST_NAME = 80
# The page may run what stands in it, and fetch nothing at all.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
)
STYLE = """
:root { color-scheme: light; --ink: #1f2933; --grey: #5b6673; --line: #dde3ea; --bad: #b3360a;
  --warn: #8a5a00; --good: #00704f; }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); margin: 0; background: #f6f8fa; }
main { max-width: 1120px; margin: 0 auto; padding: 24px 20px 60px; }
h1 { font-size: 24px; margin: 0 0 4px; } h2 { font-size: 19px; margin: 36px 0 8px; }
h3 { font-size: 16px; margin: 0; overflow-wrap: anywhere; }
p { margin: 6px 0; } .facts { color: var(--grey); }
.verdict { font-size: 18px; padding: 12px 16px; border-left: 5px solid var(--grey);
  background: #fff; margin: 16px 0; }
.verdict.bad { border-color: var(--bad); } .verdict.good { border-color: var(--good); }
.scroll { overflow-x: auto; background: #fff; border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 7px 12px; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th { font-size: 13px; color: var(--grey); font-weight: 600; white-space: nowrap; }
td.number, th.number { text-align: right; white-space: nowrap; }
tr:last-child td { border-bottom: 0; }
.badge { display: inline-block; padding: 0 9px; border-radius: 10px; font-size: 13px;
  font-weight: 600; white-space: nowrap; border: 1px solid; }
.badge.bad { color: var(--bad); background: #fdeee8; } .badge.warn { color: var(--warn);
  background: #fdf4e0; } .badge.good { color: var(--good); background: #e6f5ef; }
.badge.none { color: var(--grey); background: #eef1f5; }
section.card { background: #fff; border: 1px solid var(--line); border-radius: 8px;
  padding: 14px 18px; margin: 14px 0; }
.head { display: flex; gap: 12px; align-items: center; flex-wrap: wrap; }
.charts { display: flex; flex-wrap: wrap; gap: 12px; } .charts figure { flex: 1 1 440px;
  min-width: 0; margin: 10px 0 0; } figcaption { font-size: 13px; color: var(--grey); }
.chart { height: 270px; } .chart.tall { height: auto; }
details { background: #fff; border: 1px solid var(--line); border-radius: 8px; padding: 8px 16px;
  margin: 16px 0; } summary { cursor: pointer; font-weight: 600; } dt { font-weight: 600;
  margin-top: 8px; } dd { margin: 0 0 0 16px; }
a { color: #0b5cad; }
@media (max-width: 600px) { .charts figure { flex-basis: 100%; } main { padding: 14px 10px 40px; } }
"""
# A chart is drawn when it comes near to what is seen, all of them before printing.
DRAW = """
const known = JSON.parse(document.getElementById("charts").textContent);
const layout = {
  margin: {l: 56, r: 12, t: 8, b: 44}, font: {family: "system-ui, sans-serif", size: 12},
  paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", hovermode: "closest",
  legend: {orientation: "h", y: 1.02, yanchor: "bottom", x: 0}, dragmode: false,
};
function draw(place) {
  if (place.dataset.drawn) return;
  place.dataset.drawn = "1";
  const chart = known[place.id];
  Plotly.newPlot(place, chart.data, {...layout, ...chart.layout},
    {displayModeBar: false, responsive: true});
}
const places = [...document.querySelectorAll(".chart")];
const near = new IntersectionObserver(found => {
  for (const one of found) if (one.isIntersecting) { near.unobserve(one.target); draw(one.target); }
}, {rootMargin: "800px"});
places.forEach(place => near.observe(place));
window.addEventListener("beforeprint", () => places.forEach(draw));
"""


def text(words: object, longest: int = LONGEST_NAME) -> str:
    """Words for the page: escaped, without control characters, cut to a readable length."""
    shown = "".join(c if c.isprintable() else " " for c in str(words))
    if len(shown) > longest:
        shown = shown[: longest - 1] + "…"
    return html.escape(shown)


def badge(word: str, tint: str) -> str:
    """tint: bad, warn, good or none; the word says the same."""
    return f'<span class="badge {tint}">{html.escape(word)}</span>'


def table(header: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int]) -> str:
    """Cells are HTML. numbers: the columns that are set to the right."""

    def line(cells: Sequence[str], tag: str) -> str:
        marked = (
            f"<{tag}{' class=number' if i in numbers else ''}>{cell}</{tag}>"
            for i, cell in enumerate(cells)
        )
        return f"<tr>{''.join(marked)}</tr>"

    body = "\n".join(line(row, "td") for row in rows)
    return (
        f'<div class="scroll"><table><thead>{line(header, "th")}</thead>'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


@dataclass(frozen=True, slots=True)
class Chart:
    """What plotly draws, and what it shows in words. height: pixels, if not the usual ones."""

    data: list[dict[str, Any]]
    layout: dict[str, Any]
    caption: str
    height: int | None = None


class Page:
    """Parts of a page in their order; `written` gives it whole."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.parts: list[str] = []
        self.charts: dict[str, Chart] = {}

    def add(self, *parts: str) -> None:
        """HTML, as it is."""
        self.parts += parts

    def place(self, *charts: Chart) -> str:
        """HTML of charts beside each other."""
        figures = []
        for chart in charts:
            number = f"chart-{len(self.charts)}"
            self.charts[number] = chart
            tall = f' style="height:{chart.height}px"' if chart.height else ""
            figures.append(
                f'<figure><div class="chart" id="{number}"{tall} role="img" '
                f'aria-label="{html.escape(chart.caption)}"></div>'
                f"<figcaption>{html.escape(chart.caption)}</figcaption></figure>"
            )
        return f'<div class="charts">{"".join(figures)}</div>'

    def written(self) -> Iterator[str]:
        """The page in pieces."""
        yield (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{html.escape(self.title)}</title><style>{STYLE}</style></head><body><main>\n"
        )
        yield "\n".join(self.parts)
        yield "\n</main>\n"
        if self.charts:
            yield f"<script>{_plotly()}</script>\n"
            yield f'<script type="application/json" id="charts">{self._data()}</script>\n'
            yield f"<script>{DRAW}</script>\n"
        yield "</body></html>\n"

    def _data(self) -> str:
        charts = {n: {"data": c.data, "layout": c.layout} for n, c in self.charts.items()}
        plain = orjson.dumps(charts, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)
        return plain.decode().replace("<", "\\u003c")  # no value can end the script


@functools.cache
def _plotly() -> str:
    from plotly import offline  # some 4 MB, and a second to import: only for a page with charts

    return str(offline.get_plotlyjs())
