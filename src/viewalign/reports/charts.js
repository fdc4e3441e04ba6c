"use strict";
// Draws every chart in the colours of the page, again when the colour scheme changes.
const dark = matchMedia("(prefers-color-scheme: dark)");
const options = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] };

function read(text) {
  const style = getComputedStyle(document.documentElement);
  return JSON.parse(text, (key, value) =>
    key.endsWith("color") && String(value).startsWith("--") ? style.getPropertyValue(value).trim() : value,
  );
}

// A moving average of a line, with the weight of the values before; gaps stay.
function smoothed(values, weight) {
  let mean = null;
  return values.map((value) => (value === null ? null : (mean = mean === null ? value : weight * mean + (1 - weight) * value)));
}

function adjust(data, layout) {
  const weight = Number(document.querySelector(".smoothing")?.value ?? 0);
  if (weight > 0)
    for (const trace of data) if (trace.mode?.includes("lines") && !trace.fill) trace.y = smoothed(trace.y, weight);
  if (document.querySelector(".logarithmic")?.checked) {
    const positive = data.some((trace) => trace.y.some((value) => value > 0));
    if (positive) Object.assign(layout.yaxis, { type: "log", autorange: true, range: undefined });
  }
}

function draw() {
  for (const chart of document.querySelectorAll(".chart")) {
    const { data, layout } = read(chart.querySelector("script").textContent);
    if (chart.classList.contains("curves")) adjust(data, layout);
    if (matchMedia("(pointer: coarse)").matches) layout.dragmode = false; // a finger scrolls the page
    Plotly.react(chart.querySelector(".plot"), data, layout, options);
  }
}

async function load() {
  const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), (c) => c.charCodeAt(0));
  const library = document.createElement("script");
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  library.textContent = await new Response(stream).text();
  document.head.append(library);
  draw();
  dark.addEventListener("change", draw);
  for (const control of document.querySelectorAll(".tools input")) control.addEventListener("input", draw);
}

load();
