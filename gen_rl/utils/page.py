"""Pieces of a self-contained HTML page: one file, no script, no request.

Text is escaped here, in the function that places it.
"""

import base64
from collections.abc import Mapping
import html

import numpy as np
from PIL import Image

from gen_rl.utils import image as image_lib
from gen_rl.utils import svg

MAX_PIXELS = 256  # wider pictures are shrunk to this, except whole sheets


def document(title: str, body: str) -> str:
  """The page; `body` is HTML, `title` text."""
  return (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    f'<title>{html.escape(title)}</title><style>{STYLE}</style></head>\n'
    f'<body><main>{body}</main></body></html>\n'
  )


def section(title: str, content: str) -> str:
  """A heading over HTML content; nothing where there is no content."""
  if not content:
    return ''
  return f'<section><h2>{html.escape(title)}</h2>{content}</section>\n'


def facts(css: str, rows: Mapping) -> str:
  """Terms and their values as text, laid out by the class."""
  items = ''.join(
    f'<div><dt>{html.escape(str(k))}</dt><dd>{html.escape(str(v))}</dd></div>'
    for k, v in rows.items()
  )
  return f'<dl class="{css}">{items}</dl>'


def picture(pixels, alt: str, css: str = '') -> str:
  """[h w c] as an <img> that carries its own PNG; small ones stay crisp."""
  pixels = image_lib.to_uint8(pixels)
  if css != 'sheet' and max(pixels.shape[:2]) > MAX_PIXELS:
    shrunk = Image.fromarray(pixels)
    shrunk.thumbnail((MAX_PIXELS, MAX_PIXELS), Image.Resampling.LANCZOS)
    pixels = np.asarray(shrunk)
  data = base64.b64encode(image_lib.encode_png(pixels)).decode()
  small = ' px' if max(pixels.shape[:2]) < MAX_PIXELS else ''
  return (
    f'<img class="{css}{small}" alt="{html.escape(alt)}" '
    f'src="data:image/png;base64,{data}">'
  )


def strip(label: str, media, correct=None, reward=None) -> str:
  """One row of pictures with what was thought of them.

  Args:
    label: stands before the row.
    media: [n h w c].
    correct: [n] True (solid green border), False (dashed red) or None.
    reward: [n] or None; printed under the pictures.

  Returns:
    A <div>.
  """
  cells = []
  for i, pixels in enumerate(media):
    ok = None if correct is None or correct[i] is None else bool(correct[i])
    css = '' if ok is None else 'ok' if ok else 'no'
    says = label if ok is None else f'{label}, {"correct" if ok else "wrong"}'
    under = ''
    if reward is not None:
      under = f'<span>{svg.number(float(reward[i]))}</span>'
    cells.append(f'<div>{picture(pixels, says, css)}{under}</div>')
  return (
    f'<div class="strip"><p>{label}</p><div class="pics" '
    f'style="--n:{len(media)}">{"".join(cells)}</div></div>'
  )


STYLE = """
:root{color-scheme:light dark;--paper:#fff;--ink:#1c2026;--muted:#69707a;
--line:#e3e6ea;--soft:#f5f6f8;--ok:#169146;--no:#d62828;
--c0:#2563c9;--c1:#d9730d;--c2:#15856a;--c3:#a03cb4;--c4:#b8860b;--c5:#c2335f;
--c6:#4a9ec4;--c7:#6b7280}
@media(prefers-color-scheme:dark){:root{--paper:#14171b;--ink:#e7eaee;
--muted:#98a1ac;--line:#2b3138;--soft:#1d2126;--ok:#3fb96b;--no:#f0605f;
--c0:#6ea2f5;--c1:#f0a04b;--c2:#4cc3a0;--c3:#d183e2;--c4:#dcb84a;--c5:#f07a9c;
--c6:#8fd4f0;--c7:#a7afba}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",
Arial,sans-serif;-webkit-text-size-adjust:100%}
main{max-width:1080px;margin:0 auto;padding:44px 24px 80px}
h1{font-size:34px;line-height:1.15;letter-spacing:-.015em;margin:2px 0 12px;
overflow-wrap:anywhere}
h2{font-size:20px;letter-spacing:-.005em;margin:0 0 16px}
h3{font-size:14px;font-weight:600;margin:0}
section{margin-top:48px;padding-top:22px;border-top:1px solid var(--line)}
.eyebrow{margin:0;color:var(--muted);font-size:13px;letter-spacing:.06em}
.verdict{margin:0;max-width:46em;font-size:18px}
.note{color:var(--muted);font-size:14px;max-width:56em;margin:12px 0 0}
.tiles{display:grid;grid-template-columns:repeat(6,1fr);gap:1px;margin:26px 0 0;
background:var(--line);border:1px solid var(--line)}
.tiles div{background:var(--paper);padding:12px 14px}
dt{color:var(--muted);font-size:13px}
dd{margin:0;font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
.tiles dd{font-size:21px;font-weight:600;letter-spacing:-.01em}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
.result{width:100%;max-width:680px}
th,td{padding:7px 0 7px 20px;text-align:right;font-weight:400;
white-space:nowrap;border-bottom:1px solid var(--line)}
th:first-child{text-align:left;padding-left:0}
thead th{color:var(--muted);font-size:13px}
.total th,.total td{font-weight:650;border-top:2px solid var(--ink)}
.plots{display:grid;grid-template-columns:1fr 1fr;gap:34px 36px}
figure{margin:0;min-width:0}
figcaption p{margin:2px 0 6px;font-size:13px;min-height:1.5em}
.plots figure{display:flex;flex-direction:column;justify-content:space-between}
.key{display:inline-block;margin-right:14px;color:var(--muted);
font-variant-numeric:tabular-nums}
.key b{color:var(--ink);font-weight:600}
.key::before{content:"";display:inline-block;width:14px;height:3px;
margin-right:6px;vertical-align:middle;background:var(--c)}
.s0{--c:var(--c0)}.s1{--c:var(--c1)}.s2{--c:var(--c2)}
.s3{--c:var(--c3)}.s4{--c:var(--c4)}.s5{--c:var(--c5)}
.s6{--c:var(--c6)}.s7{--c:var(--c7)}
svg{display:block;width:100%;height:auto}
svg path{fill:none;stroke:var(--c);stroke-width:2;stroke-linejoin:round;
stroke-linecap:round}
svg path.faint{stroke-width:1;opacity:.32}
svg circle{fill:var(--c)}
svg .axis{stroke:var(--muted)}svg .tick{stroke:var(--line)}
svg .label{fill:var(--muted);font-size:12px;
font-variant-numeric:tabular-nums}
.cards{display:grid;grid-template-columns:1fr 1fr;gap:30px 36px;
margin-top:22px}
.card figcaption{font-weight:600;line-height:1.35;margin-bottom:8px;
overflow-wrap:anywhere}
.strip{display:grid;grid-template-columns:56px 1fr;align-items:start;
margin-top:8px}
.strip p{margin:0;font-size:13px;color:var(--muted)}
.pics{display:grid;grid-template-columns:repeat(var(--n),minmax(0,112px));
gap:8px}
.pics span{display:block;font-size:12px;color:var(--muted);line-height:1.5;
font-variant-numeric:tabular-nums}
img{display:block;max-width:100%}
.pics img{width:100%;height:auto;border:3px solid var(--line)}
img.px{image-rendering:pixelated}
.pics img.ok{border-color:var(--ok)}
.pics img.no{border-color:var(--no);border-style:dashed}
.mark{display:inline-block;padding:0 7px;border:2px solid var(--ok);
line-height:1.4;color:var(--ink)}
.mark.no{border:2px dashed var(--no)}
pre{margin:6px 0 18px;padding:12px 14px;background:var(--soft);
overflow-x:auto;font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,
"DejaVu Sans Mono",monospace}
.facts{display:grid;grid-template-columns:repeat(3,1fr);gap:14px 28px;margin:0}
summary{cursor:pointer}
@media(max-width:760px){main{padding:26px 16px 56px}h1{font-size:27px}
.verdict{font-size:17px}.tiles{grid-template-columns:repeat(2,1fr)}
.plots,.cards{grid-template-columns:minmax(0,1fr)}
.facts{grid-template-columns:1fr 1fr}th,td{padding-left:12px;font-size:15px}
.strip{grid-template-columns:minmax(0,1fr)}.strip p{margin-bottom:2px}}
@media print{section{break-inside:avoid}}
"""
