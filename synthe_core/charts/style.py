"""The style sheet, colours and marks of the reports."""

from __future__ import annotations

# Colours: Okabe and Ito 2008, made for colour-blind readers, without the yellow that is too pale on white.
STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1c1f23; --faint: #5c6370; --rule: #d9dde3; --shade: 0 114 178;
  --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #cc79a7; --c4: #e69f00; --c5: #56b4e9; --c6: #1c1f23 }
@media (prefers-color-scheme: dark) {
  :root { --paper: #15181c; --ink: #e6e8eb; --faint: #9aa2ad; --rule: #343a42; --shade: 86 180 233;
    --c0: #3d94d6; --c1: #ef7d2e; --c2: #1fbd90; --c5: #9fd6f7; --c6: #e6e8eb } }
body { background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto;
  max-width: 78rem; padding: 0 1rem }
h1 { font-size: 1.6rem; margin: 0 }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .25rem; border-top: 1px solid var(--rule); padding-top: 1.25rem }
p { margin: .25rem 0 1rem }
p, figcaption, footer, summary { color: var(--faint) }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .5rem 0 1rem; font-size: .85rem }
th, td { padding: .3rem .65rem; text-align: right; border-bottom: 1px solid var(--rule); white-space: nowrap }
th { font-weight: 600; vertical-align: bottom }
th:first-child, td:first-child { text-align: left }
tbody th { font-weight: 500 }
tbody small { opacity: .75 }
td.a { background: rgb(var(--shade) / var(--s)) }
.charts { display: grid; gap: 1.5rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)) }
figure { margin: 0 }
svg { width: 100%; height: auto; font-size: 12.5px }
svg text { fill: var(--ink) }
.grid { stroke: var(--rule); fill: none }
.chance { stroke: var(--faint); stroke-dasharray: 5 4; fill: none }
.line { stroke: currentColor; stroke-width: 2; fill: none }
.bar { stroke: currentColor; stroke-width: 1.5; fill: none }
.lead { stroke: currentColor; stroke-width: 1; opacity: .35; fill: none }
.mark { fill: currentColor; stroke: var(--paper); stroke-width: 1 }
details { margin: .5rem 0 }
summary { cursor: pointer }
footer { border-top: 1px solid var(--rule); margin-top: 3rem; padding-top: 1rem; font-size: .875rem }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1.25rem }
dd { margin: 0; overflow-wrap: anywhere }
""" + "\n".join(f".c{i} {{ color: var(--c{i}) }}" for i in range(7))

COLOURS = 7  # of the page's style sheet; with five marks, 35 models look different
MARKS = (
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z",
    "M-4 -4h8v8h-8z",
    "M0 -5.5L5.5 0L0 5.5L-5.5 0z",
    "M0 -5L5 4H-5z",
    "M0 5L-5 -4H5z",
)
