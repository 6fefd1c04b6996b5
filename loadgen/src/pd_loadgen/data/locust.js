// What Locust's own page gets of the load generator's: a bar above everything, which covers nothing, and TTFT and TPOT on the Charts tab.
"use strict";
(() => {
  const base = document.currentScript.dataset.base, METRICS = {TTFT: "time to first token", TPOT: "time per output token"};
  const bar = document.getElementById("pd-bar"), simulated = bar.querySelector(".simulated");
  const box = document.createElement("section");
  box.id = "pd-charts";
  box.innerHTML = Object.entries(METRICS).map(([name, what]) =>
    `<figure><figcaption><b>${name} (ms)</b> <span>${what}</span> <u><i style="background:var(--p50)"></i>p50</u> <u><i style="background:var(--p99)"></i>p99</u></figcaption><div data-metric="${name}"></div></figure>`).join("");

  // Locust's theme is its own switch, so the page is asked how dark it is.
  function theme() {
    const [r, g, b] = (getComputedStyle(document.body).backgroundColor.match(/[\d.]+/g) || [255, 255, 255]).map(Number);
    box.classList.toggle("dark", .3 * r + .6 * g + .1 * b < 128);
  }
  // Locust draws its charts on canvases or as SVG below elements with this attribute; React may make them anew at any time.
  function place() {
    const first = document.querySelector("#root [_echarts_instance_]");
    const wanted = new URLSearchParams(location.search).get("tab") === "charts" && first;
    if (!wanted) { box.remove(); return; }
    if (first.previousElementSibling !== box) first.before(box);
    theme();
  }
  async function show() {
    let got; try { got = await (await fetch(base + "figures")).json(); } catch { return; }
    simulated.hidden = !got.simulated;
    for (const place of box.querySelectorAll("[data-metric]")) place.innerHTML = PDCharts.chart(place.dataset.metric, got.figures);
  }
  new MutationObserver(place).observe(document.getElementById("root"), {childList: true, subtree: true, attributes: true, attributeFilter: ["class", "style"]});
  show(); setInterval(() => { place(); show(); }, 2000);
})();
