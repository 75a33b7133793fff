// A policy over a tree of tokens on its way to the optimum of a loss that a KL holds to the reference.
(() => {
  "use strict";
  const root = document.getElementById("kl-tree");
  if (!root) return;
  const byId = (id) => document.getElementById(`tree-${id}`);
  const good = root.dataset.good.split(" ").map(Number);
  const { SCALE, all, names, reference, referenceLogp, rewardsOf, measure, way } = klTree(root.dataset.ranks, good);

  // ---- drawing
  const svg = byId("picture");
  const make = (tag, className, text = "") => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    node.setAttribute("class", className);
    node.textContent = text;
    return svg.appendChild(node);
  };
  const set = (node, attributes) => Object.entries(attributes).forEach(([k, v]) => node.setAttribute(k, v));
  const fixed = (value, digits = 3) => value.toFixed(digits).replace(/^-(0\.?0*)$/, "$1").replace("-", "−");
  const percent = (logp) => `${(100 * Math.exp(logp)).toFixed(1)} %`;
  const [GROUND, GIFT] = [190, 26]; // where bars stand; length of a reward of 1 below them
  const [LEAVES, TWIGS, BOUGHS] = [GROUND + GIFT + 18, GROUND + GIFT + 34, GROUND + GIFT + 52];
  const parts = {
    reference: names.map(() => make("rect", "kl-bar-reference")), policy: names.map(() => make("rect", "kl-tree-policy")),
    best: names.map(() => make("path", "kl-tree-best")), gifts: names.map(() => make("rect", "kl-tree-gift")),
    ground: make("path", "kl-axis"), leaves: names.map((name) => make("text", "kl-small", name[2])),
    twigs: all(9, (i) => make("text", "kl-small", names[3 * i].slice(0, 2))),
    boughs: all(3, (i) => make("text", "kl-label", `${names[9 * i][0]} …`)),
  };

  function drawPicture(policy, best, rewards) {
    const width = Math.max(260, Math.round(svg.clientWidth) || 760);
    const slot = width / 32.6; // 27 bars, and gaps where prefixes part
    const left = names.map((_, y) => (y + 0.6 * Math.floor(y / 3) + 0.4 * Math.floor(y / 9)) * slot);
    const tallest = Math.max(...[referenceLogp, policy, best].flat().map(Math.exp));
    const tall = (logp) => (Math.exp(logp) / tallest) * (GROUND - 8);
    const bar = (node, y, height, share) => set(node, {
      x: left[y] + (slot * (1 - share)) / 2, y: GROUND - height, width: slot * share, height });
    names.forEach((_, y) => {
      bar(parts.reference[y], y, tall(referenceLogp[y]), 0.92);
      bar(parts.policy[y], y, tall(policy[y]), 0.5);
      set(parts.best[y], { d: `M${left[y]},${GROUND - tall(best[y])}h${slot}` });
      bar(parts.gifts[y], y, GIFT * rewards[y], 0.92);
      set(parts.gifts[y], { y: GROUND + 2 });
    });
    const label = (nodes, size, y) => nodes.forEach((node, i) =>
      set(node, { x: (left[size * i] + left[size * (i + 1) - 1] + slot) / 2, y, "text-anchor": "middle" }));
    label(parts.leaves, 1, LEAVES);
    label(parts.twigs, 3, TWIGS);
    label(parts.boughs, 9, BOUGHS);
    set(parts.ground, { d: `M0,${GROUND}H${width}` });
    set(svg, { viewBox: `0 0 ${width} ${BOUGHS + 6}` });
  }

  // ---- the state and its controls
  const STRENGTHS = { reward: ["c", 1], loss: ["c", 1], sigmoid: ["β", SCALE], beside: ["λ", 0.25] };
  const quiet = matchMedia("(prefers-reduced-motion: reduce)");
  const state = { tables: [reference], at: 0, playing: false, rewards: rewardsOf("rare"), refused: false };
  const end = () => state.tables.length - 1;

  // What the optimum shows about the strength: near the reference, given to the reward, or between.
  function regime(best) {
    if (state.refused) return "";
    if (Math.max(best.forward, best.reverse) < 0.05) return "near";
    return best.reward > 0.95 * Math.max(...state.rewards) ? "far" : "between";
  }

  function draw(quietly = false) {
    const tables = { reference, policy: state.tables[state.at], optimum: state.tables[end()] };
    const numbers = {};
    for (const [name, table] of Object.entries(tables)) {
      numbers[name] = measure(table, state.rewards);
      for (const column of ["reward", "forward", "reverse", "entropy", "modes"]) {
        const value = state.refused && name === "optimum" ? null : numbers[name][column];
        byId(`${name}-${column}`).textContent = value === null ? "–" : fixed(value);
        byId(`${name}-${column}`).dataset.value = value ?? "";
      }
      root.dataset[name] = JSON.stringify([...table]);
    }
    drawPicture(numbers.policy.logp, numbers.optimum.logp, state.rewards);
    const says = [`${byId("place").value}-${byId("direction").value}`, byId("rewards").value, regime(numbers.optimum)];
    for (const node of root.querySelectorAll("[data-says]")) node.hidden = !says.includes(node.dataset.says);
    root.classList.toggle("kl-tree-refused", state.refused);
    const atEnd = state.at === end();
    byId("count").textContent = state.refused ? "refused" : `step ${state.at} of ${end()}`;
    byId("play").textContent = state.playing ? "Pause" : atEnd && end() ? "Play again" : "Play";
    for (const name of ["play", "step", "finish", "reset"]) byId(name).disabled = state.refused;
    const { policy, optimum } = numbers;
    const likeliest = names.map((_, y) => y).sort((a, b) => policy.logp[b] - policy.logp[a]).slice(0, 3);
    const words = likeliest.map((y) => `${names[y]} ${percent(policy.logp[y])}, in the reference `
      + `${percent(referenceLogp[y])}, at the optimum ${percent(optimum.logp[y])}`).join("; ");
    set(svg, { "aria-label": `Probabilities of 27 responses. The policy’s likeliest: ${words}.` });
    if (quietly || state.playing) return;
    byId("status").textContent = state.refused ? "Refused." : `${atEnd ? "At the optimum" : `Step ${state.at}`}: reward `
      + `${fixed(policy.reward, 2)}, forward KL ${fixed(policy.forward, 2)}, reverse KL ${fixed(policy.reverse, 2)}.`;
  }

  function solve() {
    const [place, direction, preset] = ["place", "direction", "rewards"].map((name) => byId(name).value);
    const [letter, unit] = STRENGTHS[place];
    const coefficient = unit * 10 ** Number(byId("strength").value);
    const text = `${letter} = ${coefficient.toPrecision(2)}`;
    byId("strength-value").textContent = text;
    set(byId("strength"), { "aria-valuetext": text });
    Object.assign(root.dataset, { direction, coefficient });
    state.rewards = rewardsOf(preset);
    root.dataset.rewards = JSON.stringify(state.rewards);
    state.refused = place === "reward" && direction === "forward";
    const aim = { rewards: state.rewards, coefficient, place, direction };
    state.tables = state.refused ? [reference] : way(aim);
  }

  let last = 0;
  function frame(now) {
    if (!state.playing) return;
    if (now - last >= 45) {
      last = now;
      state.at += 1;
      if (state.at >= end()) Object.assign(state, { at: end(), playing: false });
      draw();
    }
    requestAnimationFrame(frame);
  }
  function play() {
    if (state.at === end()) state.at = 0;
    state.playing = true;
    draw();
    requestAnimationFrame(frame);
  }
  const move = (at) => { Object.assign(state, { at: Math.min(at, end()), playing: false }); draw(); };
  const actions = {
    play: () => (state.playing ? move(state.at) : play()),
    step: () => move(state.at + 1),
    finish: () => move(end()),
    reset: () => move(0),
  };
  let touched = false; // who has begun to play is not interrupted by the picture's own start
  for (const [name, act] of Object.entries(actions)) byId(name).addEventListener("click", () => { touched = true; act(); });
  for (const name of ["direction", "place", "rewards", "strength"]) {
    byId(name).addEventListener("input", () => {
      touched = true;
      const atOptimum = state.at === end() && end() > 0;
      solve();
      if (atOptimum || state.refused) move(end()); // a policy that has arrived stays at the optimum, and moves with it
      else if (quiet.matches) move(0);
      else { state.at = 0; if (state.playing) draw(); else play(); }
    });
  }

  // ---- sizes, paper, the first start
  let screenAt = null;
  addEventListener("beforeprint", () => {
    if (screenAt !== null) return;
    screenAt = state.at;
    state.at = end();
    draw(true);
  });
  addEventListener("afterprint", () => {
    if (screenAt === null) return;
    [state.at, screenAt] = [screenAt, null];
    draw(true);
  });
  let drawnAt = root.clientWidth;
  new ResizeObserver(() => {
    if (screenAt !== null || root.clientWidth === drawnAt) return;
    drawnAt = root.clientWidth;
    draw(true);
  }).observe(root);
  new IntersectionObserver((entries, observer) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    observer.disconnect();
    if (!quiet.matches && !touched) play();
  }, { threshold: 0.5 }).observe(svg);
  solve();
  draw(true);
})();
