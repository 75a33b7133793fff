// Draws the figures of the exact benchmark one after the other, those in view first.
"use strict";
(() => {
  const { byId, data, onPrint, scaleToSheet } = page;
  const waiting = data("figure-data");
  for (const spec of waiting) byId(spec.id).style.height = `${spec.layout.height}px`; // nothing moves while drawing

  function draw(spec) {
    const node = byId(spec.id);
    if (matchMedia("(pointer: coarse)").matches) spec.layout.dragmode = false; // a finger scrolls the page
    window.Plotly.newPlot(node, spec.data, spec.layout, { displayModeBar: false, responsive: true });
    node.on("plotly_afterplot", () => scaleToSheet(node));
    scaleToSheet(node);
  }

  function drawNext() {
    if (!waiting.length) {
      document.documentElement.dataset.drawn = "yes";
      return;
    }
    draw(waiting.shift());
    setTimeout(drawNext, 0);
  }

  onPrint(() => {
    while (waiting.length) draw(waiting.shift());
  });
  drawNext();
})();
