// Curves of latencies over time, as SVG: on the load generator's own page and on Locust's Charts tab.
"use strict";
const PDCharts = (() => {
  const number = (v, digits = 1) => v == null ? "–" : v.toLocaleString("en", {minimumFractionDigits: digits, maximumFractionDigits: digits});
  function step(top) { const p = 10 ** Math.floor(Math.log10(top / 4)); return [1, 2, 5, 10].map(m => m * p).find(v => v >= top / 4); }

  // `figures` is what `figures` answers; colours come from the CSS variables --line, --red, --p50, --p99 and, of the ground, --card.
  function chart(name, figures) {
    const W = 520, H = 210, L = 48, R = 12, T = 10, B = 26, bins = figures.bins, width = figures.width_s;
    const points = q => bins.map((b, i) => [i, b[name][q]]).filter(p => p[1] != null);
    const p50 = points("p50"), p99 = points("p99"), limit = figures.limits_ms[name.toLowerCase()];
    if (!p99.length) return `<svg viewBox="0 0 ${W} ${H}" role="img" aria-label="${name}: no token yet"><text x="${W / 2}" y="${H / 2}" text-anchor="middle" style="font-size:13px">no token yet</text></svg>`;
    const top = Math.max(...p99.map(p => p[1]), limit || 0, 0.1) * 1.05, rise = step(top), most = rise * Math.ceil(top / rise), span = Math.max(bins.length, 10);
    const x = i => L + (i + .5) * (W - L - R) / span, y = v => H - B - v / most * (H - T - B);
    let out = "";
    for (let v = 0; v <= most * 1.001; v += rise) { out += `<line x1="${L}" x2="${W - R}" y1="${y(v)}" y2="${y(v)}" stroke="var(--line)"/><text x="${L - 6}" y="${y(v) + 4}" text-anchor="end">${number(v, rise < 1 ? rise < .1 ? 2 : 1 : 0)}</text>`; }
    const go = step(span * width), per = (W - L - R) / (span * width);
    for (let t = 0; t <= span * width * 1.001; t += go) out += `<text x="${L + t * per}" y="${H - 8}" text-anchor="${t * per > W - L - R - 12 ? "end" : t ? "middle" : "start"}">${number(t, go < 1 ? 1 : 0)} s</text>`;
    if (limit) out += `<line x1="${L}" x2="${W - R}" y1="${y(limit)}" y2="${y(limit)}" stroke="var(--red)" stroke-dasharray="5 4"/>`;
    for (const [line, colour] of [[p99, "var(--p99)"], [p50, "var(--p50)"]]) {
      out += `<polyline fill="none" stroke="${colour}" stroke-width="2" stroke-linejoin="round" points="${line.map(p => x(p[0]) + "," + y(p[1])).join(" ")}"/>`;
      if (line.length < 30) for (const p of line) out += `<circle cx="${x(p[0])}" cy="${y(p[1])}" r="2.5" fill="${colour}"/>`;
    }
    // Last, on ground of its own: a curve must not strike it through.
    if (limit) out += `<text x="${W - R}" y="${y(limit) - 4}" text-anchor="end" style="fill:var(--red);paint-order:stroke;stroke:var(--card);stroke-width:5px;stroke-linejoin:round">limit</text>`;
    return `<svg viewBox="0 0 ${W} ${H}" role="img" aria-label="${name} over time">${out}</svg>`;
  }
  return {number, chart};
})();
