// Draws the figures and runs the response browser. Model text only ever becomes text nodes.
"use strict";
(() => {
  const { byId, data, drawFigure, drawInTurn, element, highlighted, mean, rewardChip, shuffled, signed, swatch } = page;

  // ---- figures ---------------------------------------------------------------------------------------------
  const figures = data("figure-data") || [];
  const hiddenRuns = new Set();

  function draw(spec) {
    drawFigure(spec);
    showRuns(spec);
  }

  function showRuns(spec) {
    const node = byId(spec.id);
    const traces = spec.data.map((trace, index) => [trace.meta, index]).filter(([meta]) => meta);
    if (!traces.length || !node.data) return;
    const visible = traces.map(([meta]) => !hiddenRuns.has(meta.run));
    if (visible.every(Boolean) && !node.dataset.filtered) return;
    node.dataset.filtered = "yes";
    window.Plotly.restyle(node, { visible }, traces.map(([, index]) => index));
  }

  for (const button of document.querySelectorAll("button[data-run]")) {
    button.addEventListener("click", () => {
      const run = Number(button.dataset.run);
      const shown = button.getAttribute("aria-pressed") === "true";
      button.setAttribute("aria-pressed", String(!shown));
      if (shown) hiddenRuns.add(run); else hiddenRuns.delete(run);
      figures.forEach(showRuns);
    });
  }

  // ---- responses -------------------------------------------------------------------------------------------
  const PER_PAGE = 6;
  const FIRST_ROWS = 2;
  const samples = data("sample-data");

  function responseCell(column, response, words) {
    if (!response) return element("div", "response", element("p", "void", "no response"));
    const meta = element("div", "meta", element("span", "who", swatch(column.color), " ", column.label));
    if (column.judged) meta.append(rewardChip(response.reward, samples.reward, samples.scale));
    if (response.tokens !== null) meta.append(element("span", "", `${response.tokens} tokens`));
    if (response.kl !== null) meta.append(element("span", "", `reverse KL ${signed(response.kl)} nats`));
    if (response.cut) meta.append(element("span", "", "cut off"));
    const text = response.text.trim()
      ? element("p", "", highlighted(response.text, words))
      : element("p", "void", "(empty response)");
    text.dir = "auto";
    return element("div", "response", meta, text);
  }

  function promptCard(prompt, words) {
    const title = element("h3", "", highlighted(prompt.prompt || "(empty prompt)", words));
    title.dir = "auto";
    const grid = element("div", "grid");
    grid.style.setProperty("--columns", samples.columns.length);
    samples.columns.forEach((column, index) => {
      const average = prompt.means[index];
      const chip = average === null ? null : rewardChip(average, `mean ${samples.reward}`, samples.scale);
      grid.append(element("div", "top", swatch(column.color), ` ${column.label} `, chip));
    });
    const rows = Math.max(...prompt.cells.map((cell) => cell.length));
    const append = (from, to) => {
      for (let row = from; row < to; row += 1) {
        samples.columns.forEach((column, index) => grid.append(responseCell(column, prompt.cells[index][row], words)));
      }
    };
    const first = words.length || rows <= FIRST_ROWS + 1 ? rows : FIRST_ROWS; // a search shows every hit
    append(0, first);
    const card = element("article", "prompt", title, grid);
    if (first < rows) {
      const more = element("button", "more", `${rows - first} more responses of each`);
      more.type = "button";
      more.addEventListener("click", () => {
        append(first, rows);
        more.remove();
      });
      card.append(more);
    }
    return card;
  }

  function startBrowser() {
    const controls = { search: byId("sample-search"), sort: byId("sample-sort"), filter: byId("sample-filter"), run: byId("sample-run") };
    const trained = samples.columns.map((column, index) => [column, index]).filter(([column]) => column.color >= 0);
    const baseOf = (index) => {
      for (let i = index; i >= 0; i -= 1) if (samples.columns[i].color < 0) return i;
      return -1;
    };
    for (const [column, index] of trained) {
      const option = element("option", "", column.label);
      option.value = String(index);
      controls.run.append(option);
    }
    byId("sample-run-label").hidden = trained.length < 2;
    const filter = () => (controls.filter ? controls.filter.value : "all"); // without rewards there is none
    for (const prompt of samples.prompts) {
      prompt.means = prompt.cells.map((cell) => mean(cell.map((response) => response.reward)));
      prompt.gains = prompt.means.map((value, index) => {
        const base = baseOf(index);
        return base < 0 || value === null || prompt.means[base] === null ? null : value - prompt.means[base];
      });
      prompt.distances = prompt.cells.map((cell) => mean(cell.map((response) => response.kl)));
      prompt.words = [prompt.prompt, prompt.id, ...prompt.cells.flat().map((response) => response.text)].join("\n").toLowerCase();
    }
    let page = 0;
    let random = null;

    function selection() {
      const words = controls.search.value.toLowerCase().split(/\s+/).filter(Boolean);
      const gain = (prompt) => prompt.gains[Number(controls.run.value)] ?? null;
      let found = samples.prompts.filter((prompt) => words.every((word) => prompt.words.includes(word)));
      if (filter() === "better") found = found.filter((prompt) => gain(prompt) > 0);
      if (filter() === "worse") found = found.filter((prompt) => gain(prompt) < 0);
      if (controls.sort.value === "random") {
        random = random || new Map(shuffled(samples.prompts).map((prompt, rank) => [prompt, rank]));
        found = found.slice().sort((a, b) => random.get(a) - random.get(b));
      } else if (controls.sort.value !== "given") {
        const sign = controls.sort.value === "loss" ? 1 : -1;
        const distance = (prompt) => prompt.distances[Number(controls.run.value)] ?? null;
        const measure = controls.sort.value === "far" ? distance : gain;
        const known = (prompt) => measure(prompt) ?? sign * Infinity; // prompts without a value come last
        found = found.slice().sort((a, b) => (measure(a) === measure(b) ? 0 : sign * (known(a) - known(b))));
      }
      return [found, words];
    }

    function show() {
      const [found, words] = selection();
      const pages = Math.max(1, Math.ceil(found.length / PER_PAGE));
      page = Math.min(Math.max(page, 0), pages - 1);
      const start = page * PER_PAGE;
      const visible = found.slice(start, start + PER_PAGE);
      byId("sample-list").replaceChildren(...visible.map((prompt) => promptCard(prompt, words)));
      byId("sample-status").textContent = found.length
        ? `Prompts ${start + 1} to ${start + visible.length} of ${found.length}${found.length < samples.prompts.length ? ` found among ${samples.prompts.length}` : ""}`
        : `None of the ${samples.prompts.length} prompts fits.`;
      byId("sample-page").textContent = `Page ${page + 1} of ${pages}`;
      byId("sample-previous").disabled = page === 0;
      byId("sample-next").disabled = page === pages - 1;
    }

    function turn(by) {
      page += by;
      show();
      byId("samples").scrollIntoView();
    }

    function restart() {
      page = 0;
      show();
    }

    controls.search.addEventListener("input", restart);
    controls.filter?.addEventListener("change", restart);
    controls.run.addEventListener("change", restart);
    controls.sort.addEventListener("change", () => {
      random = null;
      restart();
    });
    byId("sample-controls").addEventListener("submit", (event) => event.preventDefault());
    byId("sample-previous").addEventListener("click", () => turn(-1));
    byId("sample-next").addEventListener("click", () => turn(1));
    show();
  }

  if (samples) startBrowser();
  drawInTurn(figures, draw);
})();
