"""The style sheet of the HTML page: one column of calm type, light and dark, screen and paper."""

from __future__ import annotations

CSS = """
:root{color-scheme:light dark;--bg:#faf9f7;--surface:#fff;--ink:#1c2024;--muted:#5b646d;--line:#e2e1dc;--track:#eeede9;
--dense:#b4bac1;--pale:#d9dcdf;--accent:#1d6a87;--good:#17744a;--good-bg:#e6f3ec;--bad:#b02a1e;--bad-bg:#fbeae7;--loss:#b5762a;
--s0:#1d6a87;--s1:#4a93ad;--s2:#86bccd;--s3:#c3a35f;--s4:#9b7fb0;--s5:#8a929a}
@media (prefers-color-scheme:dark){:root{--bg:#121518;--surface:#1a1e22;--ink:#e7e9eb;--muted:#9ba5ae;--line:#2b3137;
--track:#262c31;--dense:#66707a;--pale:#353c43;--accent:#5db4d1;--good:#5cc690;--good-bg:#152a20;--bad:#ff8f80;
--bad-bg:#341a17;--loss:#d9a05b;--s0:#5db4d1;--s1:#3b88a3;--s2:#2a5f73;--s3:#c8a860;--s4:#a98cc0;--s5:#7d868e}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",Arial,sans-serif;font-variant-numeric:tabular-nums}
main,header,footer{max-width:60rem;margin:0 auto;padding:0 1.5rem}
header{padding-top:3rem}
.eyebrow{margin:0;color:var(--muted);font-size:.8125rem}
h1{margin:.2rem 0 0;font-size:1.9rem;line-height:1.2;font-weight:650;letter-spacing:-.015em;overflow-wrap:anywhere}
.meta{margin:.4rem 0 0;color:var(--muted)}
.verdict{display:flex;gap:.85rem;align-items:flex-start;margin:1.6rem 0 0;padding:1rem 1.15rem;border-radius:8px}
.verdict svg{flex:none;margin-top:.1rem}
.verdict strong{display:block;font-size:1.125rem;line-height:1.4}
.verdict p{margin:.1rem 0 0}
.verdict ul{margin:.5rem 0 0;padding-left:1.1rem}
.verdict li{overflow-wrap:anywhere}
.ok{background:var(--good-bg)}.ok strong,.ok svg,.pass{color:var(--good)}
.no{background:var(--bad-bg)}.no strong,.no svg,.fail{color:var(--bad)}
section{margin:3rem 0 0}
h2{margin:0 0 .25rem;font-size:1.25rem;font-weight:650;letter-spacing:-.01em}
h3{margin:0;font-size:1rem;font-weight:600}h3 small{font-size:.875rem;font-weight:400;color:var(--muted)}
.lead{margin:0 0 1.1rem;color:var(--muted);max-width:44rem}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(13rem,1fr));gap:1rem}
.card{background:var(--surface);border:1px solid var(--line);border-radius:8px;padding:1rem 1.1rem .8rem}
.card .what{margin:0;color:var(--muted);font-size:.875rem}
.big{margin:.9rem 0 .1rem;font-size:2.1rem;line-height:1.15;font-weight:650;letter-spacing:-.02em;color:var(--accent)}
.big.worse{color:var(--bad)}.big.none{color:var(--muted);font-size:1.125rem;font-weight:500;letter-spacing:0}
.says{margin:0 0 .7rem;font-size:.875rem;color:var(--muted)}
.bars{display:grid;grid-template-columns:1fr auto;gap:.15rem .7rem;font-size:.875rem}
.bars svg{grid-column:1/-1;margin-bottom:.45rem}
.bars span:nth-child(3n+1){color:var(--muted)}
svg{display:block}
.track{fill:var(--track)}.dense{fill:var(--dense)}.kept,.now{fill:var(--accent)}.plot .dense{fill:var(--pale)}
.gain{fill:var(--good)}.loss{fill:var(--loss)}.grid{stroke:var(--line)}.mark{stroke:var(--ink);stroke-width:2}
svg text{fill:var(--muted);font-size:12px}
.s0{fill:var(--s0)}.s1{fill:var(--s1)}.s2{fill:var(--s2)}.s3{fill:var(--s3)}.s4{fill:var(--s4)}.s5{fill:var(--s5)}
.scroll{overflow-x:auto}
table{width:100%;border-collapse:collapse;font-size:.9375rem}
th,td{padding:.5rem .9rem .5rem 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}
th:last-child,td:last-child{padding-right:0}
thead th{color:var(--muted);font-weight:500;font-size:.8125rem;white-space:nowrap}
tbody th{font-weight:500}
.n{text-align:right;white-space:nowrap}
td small,th small{display:block;color:var(--muted);font-weight:400;font-size:.8125rem}
.name{overflow-wrap:anywhere}
.name code{font-size:.875rem}
code{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}
.also{margin:1rem 0 0;font-size:.9375rem;color:var(--muted)}.also code{font-size:.875rem;color:var(--ink)}
.figure{margin:1.5rem 0 0}
.figure>p{margin:.1rem 0 .8rem;font-size:.875rem;color:var(--muted)}
.link{display:grid;grid-template:"name move value"/8rem 1fr 10.5rem;gap:.1rem 1rem;align-items:center;padding:.2rem 0;
font-size:.9375rem}
.link svg{grid-area:move}.link>:last-child{grid-area:value;text-align:right}
.link small{color:var(--muted);font-size:inherit}
.plot{display:grid;grid-template-columns:auto 1fr;gap:.6rem}
.few{max-width:32rem}
.axis{display:flex;flex-direction:column;justify-content:space-between;height:150px;font-size:12px;line-height:1;
color:var(--muted);text-align:right}
.key{display:flex;flex-wrap:wrap;gap:.3rem 1.2rem;margin:.7rem 0 0;padding:0;list-style:none;font-size:.875rem}
.key li{display:flex;align-items:center;gap:.45rem}
details{margin-top:.6rem;font-size:.875rem}
summary{cursor:pointer;color:var(--muted)}
summary:focus-visible{outline:2px solid var(--accent);outline-offset:3px}
dl{display:grid;grid-template-columns:minmax(8rem,auto) 1fr;gap:.35rem 1.4rem;margin:0;font-size:.9375rem}
dt{color:var(--muted)}
dd{margin:0;overflow-wrap:anywhere}
footer{margin-top:3.5rem;padding-bottom:3rem;color:var(--muted);font-size:.8125rem}
@media (max-width:34rem){main,header,footer{padding-left:1rem;padding-right:1rem}header{padding-top:1.75rem}
h1{font-size:1.5rem}section{margin-top:2.4rem}.wide,th small.wide{display:none}th,td{padding-right:.6rem}
.link{grid-template:"name value" "move move"/auto 1fr;padding:.35rem 0}
dl{grid-template-columns:1fr;gap:0}dd{margin-bottom:.5rem}}
@media print{:root{--bg:#fff;--surface:#fff;--ink:#000;--muted:#444;--line:#ccc;--track:#eee;--dense:#aaa;--pale:#ddd;
--accent:#1d6a87;--good:#17744a;--good-bg:#fff;--bad:#b02a1e;--bad-bg:#fff}
*{print-color-adjust:exact;-webkit-print-color-adjust:exact}body{font-size:10.5pt}
header{padding-top:0}main,header,footer{max-width:none;padding:0}.verdict{border:1px solid}
.card,.figure,tr,.verdict{break-inside:avoid}h2,h3{break-after:avoid}summary{display:none}.scroll{overflow:visible}}
"""
