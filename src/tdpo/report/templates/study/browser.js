// The responses of a study, side by side by prompt. They come deflated; model text only ever becomes text nodes.
(() => {
  const { byId, element, highlighted, mean, rewardChip, signed, swatch } = page;
  const PER_PAGE = 5;
  const FIRST_ROWS = 2;
  const packed = byId("sample-data");
  if (!packed) return;
  const status = byId("sample-status");

  async function unpacked() {
    const bytes = Uint8Array.from(atob(packed.textContent), (char) => char.charCodeAt(0));
    packed.textContent = "";
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return JSON.parse(await new Response(stream).text());
  }

  // Rows as objects, and for each prompt the rows that answer it.
  function rowsOf(samples) {
    const columns = samples.columns;
    const texts = [];
    const prompts = samples.prompts.map(([task, id, text], index) => ({ task, id, text, index, folded: `${id}\n${text}`.toLowerCase(), rows: [] }));
    columns.text.forEach((text, i) => {
      texts.push(typeof text === "number" ? texts[text] : { text, folded: text.toLowerCase() });
      const [arm, strength] = samples.cells[columns.cell[i]];
      prompts[columns.prompt[i]].rows.push({
        arm, strength, seed: samples.seeds[columns.seed[i]], said: texts[i], reward: columns.reward[i], tokens: columns.tokens[i],
        cut: columns.cut[i] === 1, kl: columns.kl[i], mode: samples.modes[columns.mode[i]],
      });
    });
    return prompts;
  }

  function start(samples) {
    const prompts = rowsOf(samples);
    const controls = Object.fromEntries(
      ["search", "task", "prompt", "strength", "seed", "low", "high", "sort"].map((name) => [name, byId(`sample-${name}`)]));
    const buttons = [...document.querySelectorAll("button[data-column]")];
    let turned = 0;

    function responseCell(row, words, scale) {
      if (!row) return element("div", "response", element("p", "void", "–"));
      const arm = study.arms.get(row.arm);
      const meta = element("div", "meta", element("span", "who", swatch(row.arm), " ", arm.label), rewardChip(row.reward, "reward", scale));
      if (row.strength) meta.append(element("span", "", arm.strengths[row.strength]));
      if (samples.seeds.length > 1) meta.append(element("span", "", `seed ${row.seed}`));
      if (row.tokens !== null) meta.append(element("span", "", `${row.tokens} tokens`));
      if (row.kl !== null) meta.append(element("span", "", `reverse KL ${signed(row.kl)} nats`));
      if (row.mode) meta.append(element("span", "", `mode ${row.mode}`));
      if (row.cut) meta.append(element("span", "", "cut off"));
      const text = row.said.text.trim() ? element("p", "", highlighted(row.said.text, words)) : element("p", "void", "(empty response)");
      text.dir = "auto";
      return element("div", "response", meta, text);
    }

    function promptCard({ prompt, columns }, words) {
      const title = element("h3", "", highlighted(prompt.text || "(empty prompt)", words), element("small", "", prompt.id));
      title.dir = "auto";
      const grid = element("div", "grid");
      grid.style.setProperty("--columns", columns.length);
      const scale = samples.scales[prompt.task];
      for (const { arm, rows } of columns) {
        const average = mean(rows.map((row) => row.reward));
        grid.append(element("div", "top", swatch(arm), ` ${study.arms.get(arm).label} `, average === null ? null : rewardChip(average, "mean reward", scale)));
      }
      const deepest = Math.max(...columns.map(({ rows }) => rows.length));
      const append = (from, to) => {
        for (let i = from; i < to; i += 1) for (const { rows } of columns) grid.append(responseCell(rows[i], words, scale));
      };
      const first = deepest <= FIRST_ROWS + 1 ? deepest : FIRST_ROWS;
      append(0, first);
      const card = element("article", "prompt", title, grid);
      if (first < deepest) {
        const more = element("button", "more", `${deepest - first} more responses of each`);
        more.type = "button";
        more.addEventListener("click", () => {
          append(first, deepest);
          more.remove();
        });
        card.append(more);
      }
      return card;
    }

    function matches(prompt, row, wanted) {
      if (wanted.strength === "chosen" && strengths.strengthOf(prompt.task, row.arm) !== row.strength) return false;
      if (wanted.seed && row.seed !== wanted.seed) return false;
      if (wanted.low !== null && !(row.reward !== null && row.reward >= wanted.low)) return false;
      if (wanted.high !== null && !(row.reward !== null && row.reward <= wanted.high)) return false;
      return wanted.words.every((word) => row.said.folded.includes(word) || prompt.folded.includes(word));
    }

    const limit = (node) => (node.value === "" ? null : Number(node.value));

    // Prompts with at least one response that fits, and the responses that fit in a column for each method.
    function selection() {
      const wanted = {
        strength: controls.strength.value, seed: controls.seed.value, low: limit(controls.low), high: limit(controls.high),
        words: controls.search.value.toLowerCase().split(/\s+/).filter(Boolean),
      };
      const shown = buttons.filter((button) => button.getAttribute("aria-pressed") === "true").map((button) => button.dataset.column);
      const found = [];
      let responses = 0;
      for (const prompt of prompts) {
        if (prompt.task !== Number(controls.task.value)) continue;
        if (controls.prompt.value && prompt.index !== Number(controls.prompt.value)) continue;
        const columns = shown.map((arm) => ({ arm, rows: [] }));
        for (const row of prompt.rows) {
          const column = columns[shown.indexOf(row.arm)];
          if (column && matches(prompt, row, wanted)) column.rows.push(row);
        }
        const count = columns.reduce((sum, { rows }) => sum + rows.length, 0);
        if (!count) continue;
        responses += count;
        found.push({ prompt, columns });
      }
      if (controls.sort.value === "spread") {
        const spread = new Map(found.map((entry) => {
          const means = entry.columns.map(({ rows }) => mean(rows.map((row) => row.reward))).filter((value) => value !== null);
          return [entry, means.length > 1 ? Math.max(...means) - Math.min(...means) : -1];
        }));
        found.sort((a, b) => spread.get(b) - spread.get(a));
      }
      return { found, responses, words: wanted.words };
    }

    function show() {
      const { found, responses, words } = selection();
      const pages = Math.max(1, Math.ceil(found.length / PER_PAGE));
      turned = Math.min(Math.max(turned, 0), pages - 1);
      const visible = found.slice(turned * PER_PAGE, (turned + 1) * PER_PAGE);
      byId("sample-list").replaceChildren(...visible.map((entry) => promptCard(entry, words)));
      status.textContent = found.length
        ? `${responses} responses to ${found.length} prompts fit; prompts ${turned * PER_PAGE + 1} to ${turned * PER_PAGE + visible.length} are shown.`
        : "No response fits.";
      byId("sample-page").textContent = `Page ${turned + 1} of ${pages}`;
      byId("sample-previous").disabled = turned === 0;
      byId("sample-next").disabled = turned === pages - 1;
    }

    function restart() {
      turned = 0;
      show();
    }

    function turn(by) {
      turned += by;
      show();
      byId("samples").scrollIntoView();
    }

    function listPrompts() {
      const own = prompts.filter((prompt) => prompt.task === Number(controls.task.value));
      const options = own.map((prompt) => {
        const option = element("option", "", `${prompt.id}: ${prompt.text.slice(0, 60)}`);
        option.value = String(prompt.index);
        return option;
      });
      controls.prompt.replaceChildren(controls.prompt.options[0], ...options);
      controls.prompt.value = "";
    }

    for (const seed of samples.seeds) {
      const option = element("option", "", seed);
      option.value = seed;
      controls.seed.append(option);
    }
    for (const button of buttons) {
      button.addEventListener("click", () => {
        button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
        show();
      });
    }
    controls.task.addEventListener("change", listPrompts);
    for (const node of Object.values(controls)) node.addEventListener(node.tagName === "INPUT" ? "input" : "change", restart);
    byId("sample-previous").addEventListener("click", () => turn(-1));
    byId("sample-next").addEventListener("click", () => turn(1));
    strengths.onChange(show);
    listPrompts();
    show();
  }

  if (typeof DecompressionStream === "undefined") {
    status.textContent = "This browser cannot unpack the responses (it has no DecompressionStream); responses.csv beside this file has them all.";
  } else {
    unpacked().then(start).catch((error) => {
      status.textContent = `The responses cannot be unpacked (${error.message}); responses.csv beside this file has them all.`;
    }).finally(() => {
      document.documentElement.dataset.unpacked = "yes";
    });
  }
})();
