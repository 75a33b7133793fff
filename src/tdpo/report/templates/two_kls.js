// One bump fitted to two, by gradient steps on either KL; and the exact optima of a choice among eight words.
(() => {
  "use strict";
  const root = document.getElementById("two-kls");
  if (!root) return;
  const byId = (id) => document.getElementById(`kl-${id}`);
  const DIRECTIONS = ["forward", "reverse"];

  // ---- the mathematics ---------------------------------------------------------------------------------------
  const LOG_ROOT_TWO_PI = 0.5 * Math.log(2 * Math.PI);
  const RATE = 0.08;
  const ARRIVED = 2e-4; // a step below this cannot be seen
  const logNormal = (x, mean, width) => -0.5 * ((x - mean) / width) ** 2 - Math.log(width) - LOG_ROOT_TWO_PI;
  const rewardAt = (x) => 1 / (1 + Math.exp(-x));

  function logSumExp(a, b) {
    const top = Math.max(a, b);
    return top + Math.log(Math.exp(a - top) + Math.exp(b - top));
  }

  // The trapezoid rule on smooth functions that vanish at both ends: exact far beyond the digits shown.
  function grid(low, high, count) {
    const step = (high - low) / (count - 1);
    return { step, xs: Float64Array.from({ length: count }, (_, i) => low + i * step) };
  }

  // The reference: two bumps at ±distance/2 of equal width; `share` is the mass of the left one.
  function mixture({ distance, width, share }) {
    const half = distance / 2;
    const [left, right] = [Math.log(share), Math.log(1 - share)];
    const log = (x) => logSumExp(left + logNormal(x, -half, width), right + logNormal(x, half, width));
    const { xs, step } = grid(-half - 10 * width, half + 10 * width, 1601);
    const logs = xs.map(log);
    const mean = (1 - 2 * share) * half;
    const variance = width ** 2 + 4 * share * (1 - share) * half ** 2;
    const densest = [...logs].map(Math.exp).sort((a, b) => b - a);
    let mass = 0;
    const floor = Math.log(densest.find((density) => (mass += density * step) >= 0.95));
    return { half, width, share, log, xs, step, logs, mean, variance, floor, peak: densest[0] };
  }

  // Both KLs in nats, the expected reward, what is forgotten and invented, and gradients with respect to
  // (mean, log width), divided by the Fisher information (1/width², 2): the natural gradient.
  function measure({ mean, width }, reference) {
    const found = { forward: 0, reverse: 0, reward: 0, forgets: 0, invents: 0 };
    reference.xs.forEach((x, i) => {
      const mass = Math.exp(reference.logs[i]) * reference.step;
      found.forward += mass * (reference.logs[i] - logNormal(x, mean, width));
      if (Math.abs(x - mean) > 1.959964 * width) found.forgets += mass;
    });
    const reverse = [0, 0];
    const reward = [0, 0];
    const { xs, step } = grid(mean - 9 * width, mean + 9 * width, 1201);
    for (const x of xs) {
      const own = logNormal(x, mean, width);
      const other = reference.log(x);
      const mass = Math.exp(own) * step;
      const z = (x - mean) / width;
      const scores = [z * width, (z * z - 1) / 2];
      const gained = rewardAt(x);
      found.reverse += mass * (own - other);
      found.reward += mass * gained;
      if (other < reference.floor) found.invents += mass;
      scores.forEach((score, i) => {
        reverse[i] += mass * score * (own - other);
        reward[i] += mass * score * gained;
      });
    }
    const spread = reference.variance + (reference.mean - mean) ** 2;
    const forward = [mean - reference.mean, (1 - spread / width ** 2) / 2];
    return { ...found, gradients: { forward, reverse, reward } };
  }

  const within = (value, limit) => Math.max(-limit, Math.min(limit, value));

  // One step down KL − reward/β, which has the optimum of reward − β·KL. Returns how far it went.
  function descend(policy, direction, reference, beta) {
    const { gradients } = measure(policy, reference);
    const [byMean, byWidth] = gradients[direction].map((g, i) => RATE * (beta ? g - gradients.reward[i] / beta : g));
    const [dx, ds] = [within(byMean, 0.3), within(byWidth, 0.12)];
    policy.mean = within(policy.mean - dx, 40);
    policy.width = Math.max(0.05, Math.min(40, policy.width * Math.exp(-ds)));
    return Math.max(Math.abs(dx), Math.abs(ds));
  }

  // The optimum of Σπr − β·KL(π‖q): π ∝ q·exp(r/β).
  function reverseOptimum(q, r, beta) {
    const top = Math.max(...r);
    const weights = q.map((mass, i) => mass * Math.exp((r[i] - top) / beta));
    const total = weights.reduce((a, b) => a + b);
    return weights.map((weight) => weight / total);
  }

  // The optimum of Σπr − β·KL(q‖π): π = β·q/(λ − r), with the λ above every reward at which π sums to one.
  function forwardOptimum(q, r, beta) {
    const top = Math.max(...r);
    const at = (gap) => q.map((mass, i) => (beta * mass) / (gap + top - r[i]));
    let low = beta * Math.max(...q.map((mass, i) => (r[i] === top ? mass : 0)));
    let high = beta;
    for (let i = 0; i < 100; i += 1) {
      const middle = (low + high) / 2;
      if (at(middle).reduce((a, b) => a + b) > 1) low = middle;
      else high = middle;
    }
    return at((low + high) / 2);
  }

  const klOf = (a, b) => a.reduce((sum, mass, i) => sum + (mass > 0 ? mass * Math.log(mass / b[i]) : 0), 0);

  // ---- drawing -----------------------------------------------------------------------------------------------
  function shape(tag, attributes, text) {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    if (text !== undefined) node.textContent = text;
    return node;
  }
  const set = (node, attributes) => Object.entries(attributes).forEach(([k, v]) => node.setAttribute(k, v));
  const fixed = (value, digits = 2) => {
    const text = value.toFixed(digits);
    return (Number(text) === 0 ? text.replace("-", "") : text).replace("-", "−");
  };
  const percent = (share) => `${Math.round(100 * share)} %`;
  function show(id, value, text) {
    byId(id).textContent = text;
    byId(id).dataset.value = value;
  }

  const HEIGHT = 310;
  const GROUND = 178; // where the curves stand
  const BILL = 276; // where the integrand stands
  const TALL = 56; // room for costs above BILL
  const REACH = 6.6; // x runs from −REACH to REACH

  class Panel {
    constructor(direction) {
      this.direction = direction;
      this.svg = byId(`${direction}-picture`);
      const make = (tag, className, text) => this.svg.appendChild(shape(tag, { class: className }, text));
      this.parts = {
        reward: make("path", "kl-reward"), rewardName: make("text", "kl-small kl-reward-name", "reward"),
        reference: make("path", "kl-reference"), policy: make("path", "kl-policy"),
        outline: make("path", "kl-outline"), ground: make("path", "kl-axis"),
        cost: make("path", "kl-cost"), refund: make("path", "kl-refund"), bill: make("path", "kl-axis"),
        billName: make("text", "kl-small", ""), referenceName: make("text", "kl-label", "reference"),
        policyName: make("text", "kl-label kl-policy-name", "policy"),
        left: make("circle", "kl-handle kl-of-reference"), right: make("circle", "kl-handle kl-of-reference"),
        top: make("circle", "kl-handle kl-of-policy"),
      };
    }

    draw(policy, reference, tallest, rewarded) {
      const width = Math.max(260, Math.round(this.svg.clientWidth) || 520);
      const { parts } = this;
      set(this.svg, { viewBox: `0 0 ${width} ${HEIGHT}` });
      this.width = width;
      this.tallest = tallest;
      const px = (x) => ((x + REACH) / (2 * REACH)) * width;
      const py = (density) => GROUND - (density / tallest) * (GROUND - 26);
      const { xs } = grid(-REACH, REACH, 301);
      const line = (ys) => [...xs].map((x, i) => `${px(x).toFixed(1)},${ys[i].toFixed(1)}`).join("L");
      const area = (ys, base) => `M0,${base}L${line(ys)}L${width},${base}Z`;
      const own = [...xs].map((x) => logNormal(x, policy.mean, policy.width));
      const other = [...xs].map(reference.log);
      set(parts.reference, { d: area(other.map((l) => py(Math.exp(l))), GROUND) });
      const curve = own.map((l) => py(Math.exp(l)));
      set(parts.policy, { d: area(curve, GROUND) });
      set(parts.outline, { d: `M${line(curve)}` });
      const [a, b] = this.direction === "forward" ? [other, own] : [own, other];
      const integrand = a.map((log, i) => Math.exp(log) * (log - b[i]));
      // Drawn in the curves' own scale, one nat as large as the grey area, unless that would not fit.
      const scale = Math.min((GROUND - 26) / tallest, TALL / Math.max(...integrand));
      const heights = integrand.map((value) => BILL - value * scale);
      set(parts.cost, { d: area(heights.map((y) => Math.min(y, BILL)), BILL) });
      set(parts.refund, { d: area(heights.map((y) => Math.max(BILL, Math.min(y, HEIGHT - 4))), BILL) });
      set(parts.ground, { d: `M0,${GROUND}H${width}` });
      set(parts.bill, { d: `M0,${BILL}H${width}` });
      parts.billName.textContent = this.direction === "forward"
        ? "where it pays: reference·log(reference/policy)" : "where it pays: policy·log(policy/reference)";
      set(parts.billName, { x: 2, y: GROUND + 22 });
      set(parts.reward, { d: rewarded ? `M${line([...xs].map((x) => GROUND - rewardAt(x) * (GROUND - 14)))}` : "M0,0" });
      set(parts.rewardName, { x: width - 4, y: 28, "text-anchor": "end", visibility: rewarded ? "visible" : "hidden" });
      this.mark(policy, reference, px, py);
    }

    mark(policy, reference, px, py) {
      const { parts, width } = this;
      const inside = (x, margin) => Math.max(margin, Math.min(width - margin, x));
      const tops = { left: -reference.half, right: reference.half };
      for (const [name, x] of Object.entries(tops)) {
        set(parts[name], { cx: px(x), cy: py(Math.exp(reference.log(x))), r: 7 });
      }
      const height = py(Math.exp(-Math.log(policy.width) - LOG_ROOT_TWO_PI));
      set(parts.top, { cx: inside(px(policy.mean), 8), cy: height, r: 7 });
      set(parts.policyName, { x: inside(px(policy.mean), 24), y: height - 12, "text-anchor": "middle" });
      // The reference's name stands on the bump that the policy is farther from.
      const far = policy.mean < 0 ? reference.half : -reference.half;
      const clear = Math.min(py(Math.exp(reference.log(far))), py(Math.exp(logNormal(far, policy.mean, policy.width))));
      set(parts.referenceName, { x: inside(px(far), 36), y: clear - 13, "text-anchor": "middle" });
    }
  }

  // ---- the state and its controls ----------------------------------------------------------------------------
  const panels = Object.fromEntries(DIRECTIONS.map((direction) => [direction, new Panel(direction)]));
  const quiet = matchMedia("(prefers-reduced-motion: reduce)");
  const state = { policies: {}, step: 0, playing: false, arrived: false, reference: null };
  const input = (name) => Number(byId(name).value);
  const strength = () => (byId("rewarded").checked ? 10 ** input("beta") : 0);
  const each = (act) => DIRECTIONS.map((direction) => act(direction, state.policies[direction]));

  function whereabouts({ mean, width }, found) {
    const { half, share, width: unit } = state.reference;
    const [near, name, other] = mean < 0 ? [-half, "left", 1 - share] : [half, "right", share];
    if (half < unit) return "fits what is hardly more than one bump";
    if (found.forgets < 0.12) return "covers both bumps, and the gap between them";
    const narrow = width < 1.6 * unit;
    if (Math.abs(mean) > half + unit) {
      return narrow ? `has left the reference behind on the ${name}` : `has moved past the ${name} bump, trailing back`;
    }
    const sits = Math.abs(mean - near) < unit && narrow;
    return sits && found.forgets > other ? `sits on the ${name} bump and forgets the other` : "is between the two";
  }

  let said = 0;
  function speak(text, now) {
    if (!now && performance.now() - said < 2500) return; // a screen reader needs time to finish a sentence
    said = performance.now();
    byId("status").textContent = text;
  }

  function draw({ quietly = false } = {}) {
    const peaks = each((_, { width }) => 0.4 / width);
    const tallest = 1.06 * Math.max(...peaks, 0.4 / input("start-width"), 0.4 / state.reference.width, state.reference.peak);
    const beta = strength();
    const words = each((direction, policy) => {
      const found = measure(policy, state.reference);
      panels[direction].draw(policy, state.reference, tallest, Boolean(beta));
      for (const name of ["forward", "reverse"]) show(`${direction}-${name}`, found[name], fixed(found[name], 3));
      for (const name of ["forgets", "invents"]) show(`${direction}-${name}`, found[name], percent(found[name]));
      show(`${direction}-reward`, found.reward, fixed(found.reward, 3));
      const seen = whereabouts(policy, found);
      byId(`${direction}-verdict`).textContent = `The bump ${seen}.`;
      set(byId(direction), { "data-mean": policy.mean, "data-width": policy.width });
      const sentence = `${direction === "forward" ? "Forward" : "Reverse"}: mean ${fixed(policy.mean)}, width `
        + `${fixed(policy.width)}; ${seen}.`;
      set(panels[direction].svg, { "aria-label": `Reference with two bumps, policy with one. ${sentence}` });
      return sentence;
    });
    root.classList.toggle("kl-with-reward", Boolean(beta));
    byId("count").textContent = `step ${state.step}`;
    byId("play").textContent = state.playing ? "Pause" : state.arrived ? "Play again" : "Play";
    byId("step").disabled = state.playing;
    const ended = state.arrived ? "Arrived. " : "";
    if (!quietly) speak(`${ended}Step ${state.step}. ${words.join(" ")}`, !state.playing);
  }

  function readControls() {
    for (const name of ["distance", "share", "width", "start", "start-width", "beta", "word-beta"]) {
      const value = name.endsWith("beta") ? 10 ** input(name) : input(name);
      const text = name === "share" ? percent(value) : fixed(value, value < 0.1 && name.endsWith("beta") ? 3 : 2);
      byId(`${name}-value`).textContent = text;
      set(byId(name), { "aria-valuetext": text });
    }
    byId("beta").disabled = !byId("rewarded").checked;
    state.reference = mixture({ distance: input("distance"), width: input("width"), share: input("share") });
    for (const direction of DIRECTIONS) {
      byId(`${direction}-aim`).textContent = strength() ? "maximises reward − β·" : "minimises ";
    }
  }

  function reset() {
    each((direction) => (state.policies[direction] = { mean: input("start"), width: input("start-width") }));
    Object.assign(state, { step: 0, playing: false, arrived: false });
  }

  function advance() {
    const beta = strength();
    const moved = each((direction, policy) => descend(policy, direction, state.reference, beta));
    state.step += 1;
    return Math.max(...moved);
  }

  function finish() {
    for (let i = 0; i < 20000 && advance() > 1e-10; i += 1);
    Object.assign(state, { playing: false, arrived: true });
  }

  let last = 0;
  function frame(now) {
    if (!state.playing) return;
    if (now - last >= 36) {
      last = now;
      if (advance() < ARRIVED) Object.assign(state, { playing: false, arrived: true });
      draw();
    }
    requestAnimationFrame(frame);
  }

  function play() {
    if (state.arrived) reset();
    state.playing = true;
    draw();
    requestAnimationFrame(frame);
  }

  const actions = {
    play: () => (state.playing ? ((state.playing = false), draw()) : play()),
    step: () => { state.arrived = advance() < ARRIVED; draw(); },
    finish: () => { finish(); draw(); },
    reset: () => { reset(); draw(); },
  };
  let touched = false; // who has begun to play is not interrupted by the picture's own start
  for (const [name, act] of Object.entries(actions)) byId(name).addEventListener("click", () => { touched = true; act(); });
  for (const name of ["distance", "share", "width", "start", "start-width"]) byId(name).addEventListener("input", restart);
  // A reward or another strength acts on the bumps where they are: one sees what it changes.
  for (const name of ["rewarded", "beta"]) {
    byId(name).addEventListener("input", () => {
      touched = true;
      readControls();
      state.arrived = false;
      if (quiet.matches || state.playing) draw();
      else play();
    });
  }

  function restart() {
    touched = true;
    readControls();
    reset();
    draw();
  }

  function drag(panel, name, act) {
    const handle = panel.parts[name];
    handle.addEventListener("pointerdown", (event) => { handle.setPointerCapture(event.pointerId); event.preventDefault(); });
    handle.addEventListener("pointermove", (event) => {
      if (!handle.hasPointerCapture(event.pointerId)) return;
      const box = panel.svg.getBoundingClientRect();
      const x = ((event.clientX - box.left) / box.width) * 2 * REACH - REACH;
      const y = ((event.clientY - box.top) / box.height) * HEIGHT;
      act(x, (Math.max(1, GROUND - y) / (GROUND - 26)) * panel.tallest);
      restart();
    });
  }
  for (const panel of Object.values(panels)) {
    drag(panel, "top", (x, density) => { byId("start").value = x; byId("start-width").value = 0.399 / density; });
    for (const [name, side] of [["left", -1], ["right", 1]]) {
      drag(panel, name, (x, density) => {
        byId("distance").value = Math.max(0, 2 * side * x);
        const share = (density * input("width")) / 0.399;
        byId("share").value = side < 0 ? share : 1 - share;
      });
    }
  }

  // ---- eight words -------------------------------------------------------------------------------------------
  const buttons = [...root.querySelectorAll(".kl-word")];
  const q = buttons.map((button) => Number(button.dataset.mass));
  const modes = [[0, 1, 2, 3], [4, 5, 6, 7]];
  const PRESETS = {
    one: [0, 0, 0, 0, 0, 1, 1, 0], both: [0, 1, 1, 0, 0, 1, 1, 0], smaller: [0, 0, 1, 0, 0, 0.5, 0.5, 0],
    rare: [0, 0, 0, 0, 0, 0, 0, 1], none: [0, 0, 0, 0, 0, 0, 0, 0],
  };
  const NAMES = { 0: "0", 0.5: "½", 1: "1" };
  let rewards = PRESETS.one;

  function drawWords() {
    const beta = 10 ** input("word-beta");
    const found = { reference: q, forward: forwardOptimum(q, rewards, beta), reverse: reverseOptimum(q, rewards, beta) };
    for (const [name, masses] of Object.entries(found)) {
      set(byId("words"), { [`data-${name}`]: JSON.stringify(masses) });
      const words = Math.exp(masses.reduce((sum, mass) => sum - (mass > 0 ? mass * Math.log(mass) : 0), 0));
      show(`words-${name}-reward`, "", fixed(masses.reduce((sum, mass, i) => sum + mass * rewards[i], 0)));
      show(`words-${name}-forward`, klOf(q, masses), fixed(klOf(q, masses)));
      show(`words-${name}-reverse`, klOf(masses, q), fixed(klOf(masses, q)));
      modes.forEach((mode, i) => show(`words-${name}-mode${i}`, "", percent(mode.reduce((sum, at) => sum + masses[at], 0))));
      show(`words-${name}-count`, words, fixed(words, 1));
    }
    set(byId("words"), { "data-beta": beta, "data-rewards": JSON.stringify(rewards) });
    buttons.forEach((button, i) => {
      button.querySelector(".kl-given").textContent = NAMES[rewards[i]];
      button.classList.toggle("kl-none", !rewards[i]);
    });
    drawBars(found);
  }

  function drawBars(found) {
    const svg = byId("words-picture");
    const [width, height] = [Math.max(260, Math.round(svg.clientWidth) || 760), 170];
    const slot = width / q.length;
    const bar = Math.min(24, slot / 3.8);
    const tallest = Math.max(0.3, ...found.forward, ...found.reverse) * 1.12;
    set(svg, { viewBox: `0 0 ${width} ${height}` });
    if (!svg.childElementCount) {
      for (const name of Object.keys(found)) q.forEach(() => svg.append(shape("rect", { class: `kl-bar kl-bar-${name}` })));
      svg.append(shape("path", { class: "kl-axis" }));
    }
    const bars = [...svg.querySelectorAll("rect")];
    Object.values(found).forEach((masses, group) => masses.forEach((mass, i) => {
      const tall = (mass / tallest) * (height - 6);
      const x = (i + 0.5) * slot + (group - 1.5) * bar;
      set(bars[group * q.length + i], { x, y: height - 1 - tall, width: bar - 1.5, height: tall });
    }));
    set(svg.lastChild, { d: `M0,${height - 0.5}H${width}` });
    set(svg, {
      "aria-label": `Probabilities of eight words. ${buttons.map((button, i) =>
        `${button.dataset.word}: ${Object.entries(found).map(([name, m]) => `${name} ${percent(m[i])}`).join(", ")}`).join("; ")}.`,
    });
  }

  buttons.forEach((button, i) => button.addEventListener("click", () => {
    rewards = rewards.map((value, at) => (at === i ? { 0: 0.5, 0.5: 1, 1: 0 }[value] : value));
    byId("preset").value = Object.keys(PRESETS).find((name) => String(PRESETS[name]) === String(rewards)) || "own";
    drawWords();
  }));
  byId("preset").addEventListener("input", () => {
    rewards = PRESETS[byId("preset").value] || rewards;
    drawWords();
  });
  byId("word-beta").addEventListener("input", () => { readControls(); drawWords(); });

  // ---- sizes, paper, the first start -------------------------------------------------------------------------
  let kept = null;
  addEventListener("beforeprint", () => {
    if (kept) return;
    kept = JSON.stringify({ policies: state.policies, step: state.step, arrived: state.arrived });
    finish();
    draw({ quietly: true });
  });
  addEventListener("afterprint", () => {
    if (!kept) return;
    Object.assign(state, JSON.parse(kept));
    kept = null;
    draw({ quietly: true });
  });
  let drawnAt = root.clientWidth;
  new ResizeObserver(() => {
    if (kept || root.clientWidth === drawnAt) return; // drawing changes the height, which must not draw again
    drawnAt = root.clientWidth;
    draw({ quietly: true });
    drawWords();
  }).observe(root);
  new IntersectionObserver((entries, observer) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    observer.disconnect();
    if (!quiet.matches && !touched) play();
  }, { threshold: 0.5 }).observe(byId("forward"));

  readControls();
  reset();
  draw({ quietly: true });
  drawWords();
  root.dataset.ready = "yes";
})();
