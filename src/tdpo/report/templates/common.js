// What the pages of a report share. Model text only ever becomes text nodes.
"use strict";
const page = (() => {
  const byId = (id) => document.getElementById(id);
  const data = (id) => (byId(id) ? JSON.parse(byId(id).textContent) : null);

  function element(tag, className, ...children) {
    const node = document.createElement(tag);
    if (className) node.className = className;
    node.append(...children.filter((child) => child !== null && child !== undefined));
    return node;
  }

  function scaleToSheet(node) {
    for (const svg of node.querySelectorAll("svg.main-svg")) {
      svg.setAttribute("viewBox", `0 0 ${svg.getAttribute("width")} ${svg.getAttribute("height")}`);
    }
  }

  // A figure as the page's data describe it.
  function drawFigure(spec) {
    const node = byId(spec.id);
    if (matchMedia("(pointer: coarse)").matches) spec.layout.dragmode = false; // a finger scrolls the page
    window.Plotly.newPlot(node, spec.data, spec.layout, { displayModeBar: false, responsive: true });
    node.on("plotly_afterplot", () => scaleToSheet(node));
    scaleToSheet(node);
  }

  // One figure after the other, so that the page can be used meanwhile; all at once where it is printed.
  function drawInTurn(figures, draw) {
    for (const spec of figures) byId(spec.id).style.height = `${spec.layout.height}px`; // nothing moves while drawing
    const waiting = figures.slice();
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
  }

  // Sheets show everything: figures that wait are drawn, and what is folded away is opened.
  function onPrint(drawAll) {
    let opened = [];
    addEventListener("beforeprint", () => {
      drawAll();
      opened = [...document.querySelectorAll("details:not([open])")];
      for (const details of opened) details.open = true;
    });
    addEventListener("afterprint", () => {
      for (const details of opened) details.open = false;
    });
  }

  function mean(values) {
    const known = values.filter((value) => value !== null);
    return known.length ? known.reduce((sum, value) => sum + value, 0) / known.length : null;
  }

  function signed(value, digits = 2) {
    return value.toFixed(digits).replace("-", "\u2212");
  }

  function rewardChip(value, name, scale) {
    if (value === null) return element("span", "reward", "no reward");
    const { centre, span } = scale;
    const share = Math.min(Math.abs(value - centre) / span, 1);
    const side = share < 0.02 ? "" : value > centre ? " up" : " down";
    const chip = element("span", `reward${side}`, signed(value));
    chip.style.setProperty("--share", share.toFixed(2));
    chip.title = name;
    return chip;
  }

  function highlighted(text, words) {
    const pieces = document.createDocumentFragment();
    const folded = text.toLowerCase();
    let from = 0;
    while (words.length && folded.length === text.length) {
      let next = -1;
      let length = 0;
      for (const word of words) {
        const found = folded.indexOf(word, from);
        if (found >= 0 && (next < 0 || found < next || (found === next && word.length > length))) {
          next = found;
          length = word.length;
        }
      }
      if (next < 0) break;
      pieces.append(text.slice(from, next), element("mark", "", text.slice(next, next + length)));
      from = next + length;
    }
    pieces.append(text.slice(from));
    return pieces;
  }

  function swatch(index) {
    const template = byId(`swatch-${index}`);
    return template ? template.content.firstElementChild.cloneNode(true) : "";
  }

  function shuffled(items) {
    const order = items.slice();
    for (let i = order.length - 1; i > 0; i -= 1) {
      const j = Math.floor(Math.random() * (i + 1));
      [order[i], order[j]] = [order[j], order[i]];
    }
    return order;
  }

  return {
    byId, data, drawFigure, drawInTurn, element, highlighted, mean, onPrint, rewardChip, scaleToSheet, shuffled, signed,
    swatch,
  };
})();
