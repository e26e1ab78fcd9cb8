"""The frame of every page: one file, readable without scripts, on a phone and in dark mode."""

from __future__ import annotations

import html

__all__ = ["format_duration", "make_document"]

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2328; --soft: #5c6770; --line: #d5dbe0; --paper: #fff;
  --a: #2b8a4b; --b: #d1742a; --c: #2a78b5; --d: #8592a0; --e: #8a5fbf; --f: #b03a57; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8eb; --soft: #9ba6af; --line: #3a444c;
  --paper: #14191d; --a: #58b878; --b: #e69a5c; --c: #66aee0; --d: #94a1ad; --e: #b795e6;
  --f: #e07f97; } }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 1.5rem auto; padding: 0 1rem;
  color: var(--ink); background: var(--paper); overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; max-width: 44rem; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .4rem; }
p, li { max-width: 42rem; } .note { color: var(--soft); font-size: .9rem; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .8rem;
  margin: 1rem 0; } .facts div { border-top: 3px solid var(--a); padding-top: .3rem; }
.facts b { display: block; font-size: 1.3rem; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; } svg { display: block; width: 100%; max-width: 48rem; height: auto; }
svg text { font: 12px system-ui, sans-serif; fill: var(--soft); }
svg text.title { fill: var(--ink); }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .5rem; text-align: right; border-bottom: 1px solid var(--line); }
th { font-weight: 600; white-space: normal; vertical-align: bottom; } td { white-space: nowrap; }
.fits { width: 100%; max-width: 44rem; overflow-wrap: normal; }
.fits th:first-child, .fits td:first-child { text-align: left; white-space: normal;
  padding-left: 0; }
.fits small { display: block; color: var(--soft); }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1rem; font-size: .85rem; margin: .3rem 0; }
.legend i { display: inline-block; width: .8rem; height: .8rem; margin-right: .35rem; }
.bars { max-width: 44rem; font-size: .85rem; } .bar { display: flex; margin-bottom: .5rem; }
.bar i { height: 1rem; }
.strip { display: grid; grid-template-columns: repeat(auto-fill, minmax(10rem, 1fr));
  gap: 1rem .8rem; }
.large { grid-template-columns: repeat(auto-fill, minmax(min(26rem, 100%), 1fr)); }
figure { margin: 0; } figcaption { font-size: .8rem; color: var(--soft); }
.shown { display: flex; gap: 2%; }
figure img { flex: 1; min-width: 0; max-width: 100%; height: auto; border: 1px solid var(--soft);
  align-self: start; }
.large .shown { flex-wrap: wrap; row-gap: .4rem; } .large img { flex: 0 0 32%; }
figure img.small { image-rendering: pixelated; }
summary { cursor: pointer; } select { font: inherit; }
@media (max-width: 36rem) { svg text { font-size: 20px; } th, td { padding: .25rem .3rem; } }
"""


def make_document(title: str, body: str, script: str = "") -> str:
    """Return a page as HTML; nothing in it is fetched.

    Args:
        title: Of the window.
        body: HTML.
        script: Run at the end; the page must be readable without it.
    """
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style></head>\n"
        f"<body>\n{body}{f'<script>{script}</script>' if script else ''}</body></html>\n"
    )


def format_duration(seconds: float) -> str:
    """Return seconds in a readable unit: 12 s, 3.4 min, 5.6 h."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
