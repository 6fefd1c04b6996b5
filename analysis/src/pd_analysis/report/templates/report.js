"use strict";
(() => {
  const root = document.documentElement;
  const all = (selector, from = document) => [...from.querySelectorAll(selector)];
  const element = (name, text) => Object.assign(document.createElement(name), { textContent: text });

  // Theme: the reader's own, until the button says otherwise.
  const dark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  const button = document.getElementById("theme");
  button.hidden = false;
  button.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; draw(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw());

  // Tables: a click on a head sorts, a word in the box filters.
  const value = (cell) => {
    const text = (cell?.textContent ?? "").trim().replace(/,(?=\d{3})/g, "");
    const found = /^[+−-]?\d+(\.\d+)?(e[+-]?\d+)?/.exec(text);
    return found ? Number(found[0].replace("−", "-")) : text;
  };
  const order = (a, b) => typeof a === typeof b ? (typeof a === "number" ? a - b : a.localeCompare(b)) : typeof a === "number" ? -1 : 1;
  for (const figure of all("figure.table")) {
    const body = figure.querySelector("tbody");
    const rows = [...body.rows];
    if (rows.length < 2 || rows.some((row) => [...row.cells].some((cell) => cell.colSpan > 1))) continue;
    all("thead th", figure).forEach((head, column) => {
      const control = element("button", head.textContent);
      control.type = "button";
      head.replaceChildren(control);
      control.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        all("thead th", figure).forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const sorted = [...rows].sort((a, b) => order(value(a.cells[column]), value(b.cells[column])) * (down ? -1 : 1));
        body.replaceChildren(...sorted);
      });
    });
    if (rows.length >= 8) {
      const box = document.createElement("input");
      box.type = "search";
      box.placeholder = WORDS.filter;
      box.setAttribute("aria-label", WORDS.filter);
      box.addEventListener("input", () => {
        const wanted = box.value.toLowerCase();
        for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
      });
      figure.querySelector("figcaption h3").after(box);
    }
  }

  // Explore: one chart over all runs, with Plotly out of the page itself.
  const panel = document.getElementById("explore");
  const data = JSON.parse(document.getElementById("explore-data").textContent);
  const chart = document.getElementById("chart");
  const pick = (name) => document.getElementById(`pick-${name}`);
  const css = (name) => getComputedStyle(root).getPropertyValue(`--plot-${name}`).trim();
  const loads = [...new Set(data.runs.map((run) => run.load))];
  const labels = [...new Set(data.runs.map((run) => run.label))];
  // An axis is worth a chart from two points on.
  const axes = [...new Set(data.runs.map((run) => run.axis))].filter((axis) => axis && new Set(data.runs.filter((run) => run.axis === axis).map((run) => run.place)).size > 1);
  const kinds = { percentiles: WORDS.percentiles, time: WORDS.time, ...Object.fromEntries(axes.map((axis) => [axis, WORDS.along.replace("{axis}", axis)])) };
  const along = () => axes.includes(pick("kind").value);
  const numbers = { goodput: WORDS.goodput, attainment: WORDS.attainment, joules: WORDS.joules };
  const dashes = ["solid", "dash", "dot", "dashdot"];
  const symbols = ["circle", "square", "triangle-up", "diamond", "triangle-down", "cross"];

  const narrow = () => innerWidth < 640;
  const options = (select, pairs) => select.replaceChildren(...pairs.map(([key, text]) => Object.assign(element("option", text), { value: key })));
  options(pick("kind"), Object.entries(kinds));
  options(pick("percentile"), data.percentiles.map((p, index) => [index, `p${p}`]));
  pick("percentile").value = data.percentiles.length - 1;
  options(pick("load"), [["", WORDS.all], ...loads.map((load) => [load, load])]);
  pick("runs").append(...labels.map((label) => {
    const item = element("label", ` ${label}`);
    const box = Object.assign(document.createElement("input"), { type: "checkbox", checked: true, value: label });
    item.prepend(box);
    return item;
  }));
  const metrics = () => {
    const kind = pick("kind").value, before = pick("metric").value;
    const usable = data.metrics.filter((name) => kind !== "time" || name !== "ITL").map((name) => [name, WORDS[name] ?? name]);
    options(pick("metric"), along() ? [...usable, ...Object.entries(numbers)] : usable);
    if ([...pick("metric").options].some((option) => option.value === before)) pick("metric").value = before;
    pick("percentile").parentElement.hidden = !along() || pick("metric").value in numbers;
    pick("load").parentElement.hidden = along() || loads.length < 2;
  };
  const chosen = () => {
    const on = new Set(all("input:checked", pick("runs")).map((box) => box.value));
    const load = along() ? "" : pick("load").value;
    return data.runs.filter((run) => on.has(run.label) && (load === "" || run.load === load));
  };
  const look = (run) => {
    const at = labels.indexOf(run.label);
    return { line: { color: css(run.colour), dash: dashes[at % dashes.length], width: 2.2 },
      marker: { color: css(run.colour), symbol: symbols[at % symbols.length], size: 7 } };
  };
  const stretch = (p) => -Math.log10(1 - Math.min(p, 99.9) / 100);
  const traces = {
    percentiles: (metric) => ({
      x: WORDS.percentile, ticks: [0, 50, 90, 95, 99, 99.9],
      list: chosen().filter((run) => run.curves[metric].length).map((run) => ({
        ...look(run), name: run.name, mode: "lines", x: data.percents.map(stretch), y: run.curves[metric],
        customdata: data.percents, hovertemplate: "p%{customdata}: %{y:.4~g} ms" })) }),
    time: (metric) => ({
      x: WORDS.seconds,
      list: chosen().map((run) => ({ ...look(run), name: run.name, mode: "markers",
        marker: { ...look(run).marker, size: 4, opacity: 0.6 }, x: run.dots.t, y: run.dots[metric], hovertemplate: "%{x:.2f} s: %{y:.4~g} ms" })) }),
    along: (metric) => ({
      x: pick("kind").value,
      list: labels.flatMap((label) => [...new Set(chosen().filter((run) => run.label === label).map((run) => run.shape))].map((shape) => {
        const runs = chosen().filter((run) => run.label === label && run.shape === shape && run.axis === pick("kind").value && run.place !== null).sort((a, b) => a.place - b.place);
        const y = runs.map((run) => metric in numbers ? run[metric] : run.at[metric][Number(pick("percentile").value)]);
        return runs.length ? { ...look(runs[0]), name: `${label}, ${shape}`, mode: "lines+markers", x: runs.map((run) => run.place), y,
          hovertemplate: "%{x:.4~g}: %{y:.4~g}" } : null;
      })).filter(Boolean) }),
  };
  const draw = () => {
    if (!window.Plotly) return;
    metrics();
    const kind = pick("kind").value, metric = pick("metric").value;
    const { x, ticks, list } = traces[along() ? "along" : kind](metric);
    const limit = data.limits[metric.toLowerCase()];
    const below = 19 * list.length; // in a narrow window, where the legend has its own rows under the chart
    const axis = { gridcolor: css("grid"), zeroline: false, linecolor: css("grey"), tickcolor: css("grey") };
    const layout = {
      paper_bgcolor: css("paper"), plot_bgcolor: css("paper"), font: { color: css("ink"), family: getComputedStyle(document.body).fontFamily, size: 13 },
      margin: narrow() ? { l: 64, r: 8, t: 12, b: 52 + below } : { l: 64, r: 20, t: 20, b: 52 }, height: narrow() ? 340 + below : 400, legend: narrow() ? { orientation: "h", yref: "container", y: 0, yanchor: "bottom", font: { size: 11 } } : { orientation: "h", y: 1.12 }, hovermode: kind === "time" ? "closest" : "x unified",
      hoverlabel: { bgcolor: css("paper"), bordercolor: css("grey"), font: { color: css("ink") } },
      showlegend: true,
      xaxis: { ...axis, title: { text: x }, ...(ticks ? { tickvals: ticks.map(stretch), ticktext: ticks.map((p) => p ? `p${p}` : "min") } : {}) },
      yaxis: { ...axis, title: { text: metric in numbers ? numbers[metric] : `${WORDS[metric] ?? metric}${along() ? ` p${data.percentiles[Number(pick("percentile").value)]}` : ""}, ms` }, rangemode: "tozero" },
      shapes: limit ? [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: limit, y1: limit, line: { color: css("ink"), width: 1, dash: "dot" } }] : [],
      annotations: data.simulated ? [{ text: WORDS.simulated, xref: "paper", yref: "paper", x: 0.5, y: 0.5, showarrow: false, textangle: -14,
        font: { size: 56, color: css("grey") }, opacity: 0.16 }] : [],
    };
    window.Plotly.react(chart, list, layout, { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["lasso2d", "select2d"] });
    chart.dataset.drawn = String(list.length);
  };
  const unpack = async () => {
    const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
  };
  panel.hidden = false;
  all('a[href="#explore"]').forEach((link) => { link.hidden = false; });
  panel.addEventListener("change", draw);
  unpack().then(draw).catch((error) => { chart.textContent = `${WORDS.broken} ${error}`; });
})();
