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

function draw() {
  for (const chart of document.querySelectorAll(".chart")) {
    const { data, layout } = read(chart.querySelector("script").textContent);
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
}

load();
