"use strict";
// Under the pointer, a chart tells the step and the values there. Without a script the charts are whole all the same.
for (const chart of document.querySelectorAll("svg[data-hover]")) {
  const data = JSON.parse(chart.dataset.hover);
  const cursor = chart.querySelector(".cursor");
  const box = chart.parentElement.querySelector(".told");
  const [start, stop, low, high] = data.x;
  const nearest = (steps, step) =>
    steps.reduce((best, s, k) => (Math.abs(s - step) < Math.abs(steps[best] - step) ? k : best), 0);
  chart.addEventListener("pointermove", (event) => {
    const frame = chart.getBoundingClientRect();
    const x = ((event.clientX - frame.left) / frame.width) * chart.viewBox.baseVal.width;
    const step = low + ((Math.min(Math.max(x, start), stop) - start) / (stop - start)) * (high - low);
    const told = data.lines.map((line) => {
      const k = nearest(line.s, step);
      return [line.s[k], `${line.name} ${line.v[k]} (step ${line.s[k].toLocaleString("en")})`];
    });
    const at = start + ((told[0][0] - low) / (high - low)) * (stop - start);
    cursor.setAttribute("x1", at);
    cursor.setAttribute("x2", at);
    cursor.style.visibility = "visible";
    box.textContent = told.map((pair) => pair[1]).join(" · ");
  });
  chart.addEventListener("pointerleave", () => {
    cursor.style.visibility = "hidden";
    box.textContent = "";
  });
}
