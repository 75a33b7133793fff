// Frontiers and training curves of a study, drawn from its numbers so that a reader can change axes and strengths.
const study = (() => {
  const { byId, data, onPrint, scaleToSheet } = page;
  const numbers = data("study-data");
  const arms = new Map(numbers.arms.map((arm) => [arm.name, arm]));
  const state = { distance: "reverse_kl", root: false, diversity: "", strengths: "chosen", axis: "steps", hidden: new Set() };
  let strengthOf = () => "";

  // Text for Plotly, which reads a small markup of its own.
  const plotText = (text) =>
    text.replace(/[&<>]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;" })[c]).replace(/%\{/g, "% {");

  function show(value) {
    const size = Math.abs(value);
    if (size < 1e-12) return "0";
    const digits = size >= 100 ? 0 : size >= 9.995 ? 1 : size >= 0.095 ? 2 : size >= 1e-4 ? 1 - Math.floor(Math.log10(size)) : -1;
    return (digits < 0 ? value.toExponential(1) : value.toFixed(digits)).replace(/-/g, "\u2212");
  }

  const between = ([, low, high]) => (low === undefined ? "" : ` [${show(low)}, ${show(high)}]`);

  // A long title takes two lines where one would be cut off.
  function axisTitle(text) {
    const narrow = matchMedia("(max-width: 480px)").matches && text.length > 40;
    return narrow ? plotText(text).replace(" (", "<br>(") : plotText(text);
  }

  function blank(height) {
    const layout = structuredClone(numbers.layout);
    return { ...layout, height, ...(matchMedia("(pointer: coarse)").matches ? { dragmode: false } : {}) };
  }

  // ---- frontiers -------------------------------------------------------------------------------------------
  const frontiers = numbers.frontiers;

  function metricOf(figure) {
    if (figure.group === "kl") return state.distance;
    return figure.group === "diversity" && state.diversity ? state.diversity : figure.metric;
  }

  // Error bars of one direction; a value without limits gets none, and `scale` is the axis'.
  function bars(values, scale, tint) {
    return {
      type: "data", symmetric: false, color: `${tint}99`, thickness: 1.25, width: 0,
      array: values.map(([value, , high]) => (high === undefined ? 0 : Math.max(scale(high) - scale(value), 0))),
      arrayminus: values.map(([value, low]) => (low === undefined ? 0 : Math.max(scale(value) - scale(low), 0))),
    };
  }

  function frontierTraces(figure, metric, scale) {
    const task = frontiers.tasks[figure.task];
    const known = task.points.filter((point) => point.values[metric] && point.values[task.y]);
    const reference = known.find((point) => point.arm === frontiers.reference);
    const place = (point) => [scale(point.values[metric][0]), point.values[task.y][0]];
    const lines = [];
    const marks = [];
    for (const arm of numbers.arms) {
      const own = known.filter((point) => point.arm === arm.name);
      if (!own.length || state.hidden.has(arm.name)) continue;
      const isReference = arm.name === frontiers.reference;
      if (reference && !isReference) {
        const [from, to] = [place(reference), place(own[0])];
        lines.push({
          type: "scatter", mode: "lines", x: [from[0], to[0]], y: [from[1], to[1]], hoverinfo: "skip",
          line: { color: arm.color, width: 1.5, dash: "dot" }, meta: { arm: arm.name },
        });
      }
      const name = frontiers.metrics[metric].title;
      marks.push({
        type: "scatter", mode: isReference ? "markers" : "lines+markers", meta: { arm: arm.name }, cliponaxis: false,
        x: own.map((point) => place(point)[0]), y: own.map((point) => place(point)[1]),
        error_x: bars(own.map((point) => point.values[metric]), scale, arm.color),
        error_y: bars(own.map((point) => point.values[task.y]), (value) => value, arm.color),
        line: { color: arm.color, width: 2.25 },
        marker: { color: arm.color, symbol: arm.symbol, size: isReference ? 13 : 10, opacity: 1 },
        text: own.map((point) => {
          const strength = point.strength ? `, ${arm.strengths[point.strength]}` : "";
          const x = point.values[metric];
          const y = point.values[task.y];
          return plotText(`${arm.label}${strength}`) +
            `<br>${plotText(name)}: ${show(x[0])}${between(x)}<br>${plotText(task.yTitle)}: ${show(y[0])}${between(y)}`;
        }),
        hovertemplate: "%{text}<extra></extra>",
      });
    }
    return [...lines, ...marks];
  }

  // Ticks at 1, 2 and 5 times powers of ten that are far enough apart on a square-root axis.
  function rootTicks(most) {
    const ticks = [0];
    for (let power = -4; power < 7; power += 1) {
      for (const factor of [1, 2, 5]) {
        const value = factor * 10 ** power;
        if (value <= most && Math.sqrt(value) - Math.sqrt(ticks.at(-1)) > 0.13 * Math.sqrt(most)) ticks.push(value);
      }
    }
    return { tickvals: ticks.map(Math.sqrt), ticktext: ticks.map((tick) => show(tick).replace(/\.0+$/, "")) };
  }

  function frontier(figure) {
    const metric = metricOf(figure);
    const task = frontiers.tasks[figure.task];
    const root = state.root && figure.group === "kl";
    const traces = frontierTraces(figure, metric, root ? (value) => Math.sqrt(Math.max(value, 0)) : (value) => value);
    const layout = blank(figure.height);
    layout.xaxis.title.text = axisTitle(frontiers.metrics[metric].axis);
    layout.yaxis.title.text = plotText(task.yTitle);
    if (figure.group === "kl") layout.xaxis.rangemode = "tozero";
    if (root) {
      const values = task.points.flatMap((point) => (point.values[metric] || [0]).at(-1));
      Object.assign(layout.xaxis, rootTicks(Math.max(...values, 1e-4)));
    }
    const points = traces.filter((trace) => trace.hovertemplate).flatMap((trace) => trace.text);
    if (!points.length) {
      layout.annotations = [{ text: "not measured on this task", showarrow: false, xref: "paper", yref: "paper", x: 0.5, y: 0.5 }];
    }
    const words = points.map((text) => text.replace(/<br>/g, ", ")).join(". ");
    return { traces, layout, alt: `${task.name}: ${task.yTitle} against ${frontiers.metrics[metric].axis}. ${words || "Not measured"}.` };
  }

  // ---- training curves -------------------------------------------------------------------------------------
  function curve(figure) {
    const traces = [];
    const axis = figure.lines.some((line) => line[state.axis].some((value) => value !== null)) ? state.axis : "steps";
    for (const line of figure.lines) {
      const arm = arms.get(line.arm);
      if (state.hidden.has(line.arm)) continue;
      if (state.strengths === "chosen" && strengthOf(figure.task, line.arm) !== line.strength) continue;
      const x = line[axis];
      const meta = { arm: line.arm };
      if (line.low.length) {
        traces.push({
          type: "scatter", mode: "lines", x: [...x, ...x.slice().reverse()], y: [...line.high, ...line.low.slice().reverse()],
          fill: "toself", fillcolor: `${arm.color}1f`, line: { width: 0 }, hoverinfo: "skip", meta,
        });
      }
      traces.push({
        type: "scatter", mode: "lines+markers", x, y: line.mean, meta, cliponaxis: false,
        line: { color: arm.color, width: 2 }, marker: { color: arm.color, symbol: arm.symbol, size: 7, maxdisplayed: 5 },
        hovertemplate: `${plotText(`${arm.label}, ${arm.strengths[line.strength]}`)}<br>%{x}: %{y:.3g}<extra></extra>`,
      });
    }
    const layout = blank(figure.height);
    layout.xaxis.title.text = axis === "steps" ? "updates" : "scored completions";
    layout.xaxis.rangemode = "tozero";
    return { traces, layout };
  }

  // ---- drawing ---------------------------------------------------------------------------------------------
  const waiting = [
    ...frontiers.figures.map((figure) => ({ figure, make: frontier })),
    ...numbers.curves.map((figure) => ({ figure, make: curve })),
  ];
  const drawn = [];

  function draw(job) {
    const node = byId(job.figure.id);
    const { traces, layout, alt } = job.make(job.figure);
    const first = !node.data;
    if (alt) node.setAttribute("aria-label", alt);
    window.Plotly.react(node, traces, layout, { displayModeBar: false, responsive: true });
    if (first) node.on("plotly_afterplot", () => scaleToSheet(node));
    scaleToSheet(node);
  }

  function drawNext() {
    if (!waiting.length) {
      document.documentElement.dataset.drawn = "yes";
      return;
    }
    const job = waiting.shift();
    drawn.push(job);
    draw(job);
    setTimeout(drawNext, 0);
  }

  function redraw(wanted = () => true) {
    drawn.filter(wanted).forEach(draw);
  }

  for (const { figure } of waiting) byId(figure.id).style.height = `${figure.height}px`; // nothing moves while drawing
  onPrint(() => {
    while (waiting.length) {
      drawn.push(waiting.shift());
      draw(drawn.at(-1));
    }
  });

  function listen(id, property, wanted, value = (node) => node.value) {
    byId(id)?.addEventListener("change", (event) => {
      state[property] = value(event.target);
      redraw(wanted);
    });
  }

  const ofGroup = (group) => ({ figure }) => figure.group === group;
  const isCurve = ({ make }) => make === curve;
  const start = document.querySelector("input[name=distance]:checked")?.value ?? frontiers.figures.find((f) => f.group === "kl")?.metric;
  if (start) state.distance = start;
  for (const radio of document.querySelectorAll("input[name=distance]")) {
    radio.addEventListener("change", () => {
      state.distance = radio.value;
      redraw(ofGroup("kl"));
    });
  }
  listen("frontier-root", "root", ofGroup("kl"), (node) => node.checked);
  listen("frontier-diversity", "diversity", ofGroup("diversity"));
  listen("curve-strengths", "strengths", isCurve);
  listen("curve-axis", "axis", isCurve);
  for (const button of document.querySelectorAll("button[data-method]")) {
    button.addEventListener("click", () => {
      const shown = button.getAttribute("aria-pressed") === "true";
      button.setAttribute("aria-pressed", String(!shown));
      if (shown) state.hidden.add(button.dataset.method); else state.hidden.delete(button.dataset.method);
      redraw();
    });
  }
  for (const form of ["frontier", "strength", "curve", "sample"].map((name) => byId(`${name}-controls`)).filter(Boolean)) {
    form.addEventListener("submit", (event) => event.preventDefault());
    form.reset(); // a reloaded page shows what its controls say
  }

  return {
    numbers, arms,
    redrawCurves: () => redraw(isCurve),
    start(choice) {
      strengthOf = choice;
      drawNext();
    },
  };
})();
