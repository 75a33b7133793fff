// The mathematics of kl_tree.js: losses on a tree of tokens, and the way from the reference to their optimum.
// `ranks`: how likely each symbol is in each node, 0 the likeliest; `good`: the good responses, the likeliest first.
const klTree = (ranks, good) => {
  "use strict";
  // ---- the problem: 3 tokens of 3 symbols; the child of node n under symbol a is node 3·n + a + 1
  const [SYMBOLS, DEPTH, NODES, RESPONSES] = [3, 3, 13, 27];
  const SIZE = NODES * SYMBOLS;
  const SCALE = 4; // a response that is worth 1 more is preferred with probability σ(4)
  const ALPHA = 0.5; // of TDPO2
  const HELD_BETA = 0.1; // of DPO beside a KL
  const LETTERS = "abc";
  const all = (count, make) => Array.from({ length: count }, (_, i) => make(i));
  const sum = (values) => values.reduce((total, value) => total + value, 0);
  const sigmoid = (x) => 1 / (1 + Math.exp(-x));

  // The entries of a table, node·3 + symbol, that a response takes.
  const paths = all(RESPONSES, (y) => {
    let node = 0;
    return all(DEPTH, (level) => {
      const symbol = Math.floor(y / SYMBOLS ** (DEPTH - 1 - level)) % SYMBOLS;
      const entry = node * SYMBOLS + symbol;
      node = entry + 1;
      return entry;
    });
  });
  const names = paths.map((path) => path.map((entry) => LETTERS[entry % SYMBOLS]).join(""));

  function logSoftmax(logits) {
    const logp = Float64Array.from(logits);
    for (let at = 0; at < SIZE; at += SYMBOLS) {
      const top = Math.max(logits[at], logits[at + 1], logits[at + 2]);
      let total = 0;
      for (let a = 0; a < SYMBOLS; a += 1) total += Math.exp(logits[at + a] - top);
      for (let a = 0; a < SYMBOLS; a += 1) logp[at + a] -= top + Math.log(total);
    }
    return logp;
  }
  const responseLogp = (logp) => paths.map((path) => path.reduce((total, entry) => total + logp[entry], 0));
  // For every entry of a table the sum over the responses that take it.
  function massOf(perResponse) {
    const mass = new Float64Array(SIZE);
    paths.forEach((path, y) => { for (const entry of path) mass[entry] += perResponse[y]; });
    return mass;
  }
  const passing = (mass, node) => mass[node * SYMBOLS] + mass[node * SYMBOLS + 1] + mass[node * SYMBOLS + 2];

  const reference = logSoftmax([...ranks].map((rank) => -0.7 * Number(rank)));
  const referenceLogp = responseLogp(reference);
  const GRADES = { equal: () => 1, common: (i) => 1 - 0.12 * i, rare: (i) => 0.4 + 0.12 * i };
  const rewardsOf = (preset) => {
    const rewards = new Array(RESPONSES).fill(0);
    good.forEach((y, i) => { rewards[y] = GRADES[preset](i); });
    return rewards;
  };

  // Infinite data: the probability of every ordered pair of different responses, chosen first.
  function allPairs(rewards) {
    const weights = referenceLogp.map((a, w) => referenceLogp.map((b, l) =>
      (w === l ? 0 : Math.exp(a + b) * sigmoid(SCALE * (rewards[w] - rewards[l])))));
    const total = sum(weights.map(sum));
    return weights.map((row) => row.map((weight) => weight / total));
  }

  // ---- the objectives: what a loss asks of every log π(y), and of the KL in every node
  function ofRewards({ rewards, coefficient, place }) {
    return (own) => {
      const visits = massOf(own.map(Math.exp));
      return {
        responses: own.map((logp, y) => {
          const penalty = place === "reward" ? coefficient * (logp - referenceLogp[y]) : 0;
          return -Math.exp(logp) * (rewards[y] - penalty);
        }),
        nodes: all(NODES, (node) => (place === "loss" ? coefficient * passing(visits, node) : 0)),
      };
    };
  }

  function ofPairs({ rewards, coefficient, place, direction }) {
    const weights = allPairs(rewards);
    const beta = place === "beside" ? HELD_BETA : coefficient;
    const alpha = place === "sigmoid" && direction === "forward" ? ALPHA : 0;
    const visits = massOf(weights.map((row, y) => 0.5 * (sum(row) + sum(weights.map((other) => other[y])))));
    return (own, kl) => {
      const ratio = own.map((logp, y) => logp - referenceLogp[y]);
      const cost = alpha ? paths.map((path) => alpha * path.reduce((total, e) => total + kl[Math.floor(e / SYMBOLS)], 0))
        : new Array(RESPONSES).fill(0);
      const tilt = ratio.map((value, y) => beta * (value + cost[y]));
      const top = Math.max(...tilt);
      const odds = tilt.map((value) => Math.exp(value - top)); // σ(−margin) = odds of the rejected / those of both
      const responses = new Array(RESPONSES).fill(0);
      const rejected = new Array(RESPONSES).fill(0);
      weights.forEach((row, w) => row.forEach((weight, l) => {
        const pull = (weight * beta * odds[l]) / (odds[l] + odds[w]);
        responses[w] -= pull;
        rejected[l] += pull;
      }));
      rejected.forEach((pull, l) => { responses[l] += pull; });
      const inside = massOf(rejected); // the chosen response's KL has no gradient in TDPO2
      return { responses, nodes: all(NODES, (node) =>
        (place === "beside" ? coefficient * passing(visits, node) : alpha * passing(inside, node))) };
    };
  }

  // The gradient of the loss with respect to the logits [node·3 + symbol].
  function slope(logits, objective, direction) {
    const logp = logSoftmax(logits);
    const ratio = logp.map((value, entry) => value - reference[entry]);
    const kl = all(NODES, (node) => {
      let total = 0;
      for (let e = node * SYMBOLS; e < (node + 1) * SYMBOLS; e += 1) {
        total += direction === "forward" ? -Math.exp(reference[e]) * ratio[e] : Math.exp(logp[e]) * ratio[e];
      }
      return total;
    });
    const { responses, nodes } = objective(responseLogp(logp), kl);
    const mass = massOf(responses);
    return mass.map((own, e) => {
      const node = Math.floor(e / SYMBOLS);
      const p = Math.exp(logp[e]);
      const pull = direction === "forward" ? p - Math.exp(reference[e]) : p * (ratio[e] - kl[node]);
      return own - p * passing(mass, node) + nodes[node] * pull;
    });
  }

  // ---- the way: implicit steps of gradient descent, which grow to Newton's near the end
  function solve(matrix, right) {
    const rows = matrix.map((row, i) => Float64Array.of(...row, right[i]));
    for (let k = 0; k < SIZE; k += 1) {
      let best = k;
      for (let i = k + 1; i < SIZE; i += 1) if (Math.abs(rows[i][k]) > Math.abs(rows[best][k])) best = i;
      [rows[k], rows[best]] = [rows[best], rows[k]];
      for (let i = k + 1; i < SIZE; i += 1) {
        const share = rows[i][k] / rows[k][k];
        if (share) for (let j = k; j <= SIZE; j += 1) rows[i][j] -= share * rows[k][j];
      }
    }
    const x = new Float64Array(SIZE);
    for (let i = SIZE - 1; i >= 0; i -= 1) {
      let rest = rows[i][SIZE];
      for (let j = i + 1; j < SIZE; j += 1) rest -= rows[i][j] * x[j];
      x[i] = rest / rows[i][i];
    }
    return x;
  }

  const [NUDGE, LONGEST, CLOSE, STEPS] = [1e-6, 0.5, 1e-9, 400];

  function descent(objective, direction) {
    const tables = [reference];
    let time = 1;
    for (let step = 0; step < STEPS; step += 1) {
      const at = tables[tables.length - 1];
      const here = slope(at, objective, direction);
      const columns = all(SIZE, (j) => {
        const beside = Float64Array.from(at);
        beside[j] += NUDGE;
        return slope(beside, objective, direction).map((value, i) => (value - here[i]) / NUDGE);
      });
      // A constant added to the logits of a node changes nothing; a third in its block makes the matrix regular.
      const curvature = (i, j) => columns[j][i] + (Math.floor(i / SYMBOLS) === Math.floor(j / SYMBOLS) ? 1 / SYMBOLS : 0);
      const matrix = all(SIZE, (i) => all(SIZE, (j) => curvature(i, j)));
      let move;
      for (let tries = 0; tries < 60; tries += 1, time /= 2) {
        move = solve(matrix.map((row, i) => row.map((value, j) => (i === j ? value + 1 / time : value))), here.map((g) => -g));
        if (Math.max(...move.map(Math.abs)) <= LONGEST && sum(move.map((m, i) => -m * here[i])) >= 0) break;
      }
      tables.push(logSoftmax(at.map((value, i) => value + move[i])));
      if (Math.max(...move.map(Math.abs)) < CLOSE) break;
      time *= 1.6;
    }
    return tables;
  }

  // ---- exact numbers of a policy, nats a response
  const klOf = (a, b) => sum(a.map((logp, y) => Math.exp(logp) * (logp - b[y])));
  function measure(table, rewards) {
    const logp = responseLogp(table);
    const modes = good.map((y) => Math.exp(logp[y]));
    const share = sum(modes);
    return {
      logp,
      reward: sum(logp.map((value, y) => Math.exp(value) * rewards[y])),
      forward: klOf(referenceLogp, logp),
      reverse: klOf(logp, referenceLogp),
      entropy: -sum(logp.map((value) => Math.exp(value) * value)),
      modes: Math.exp(-sum(modes.map((mass) => (mass > 0 ? (mass / share) * Math.log(mass / share) : 0)))),
    };
  }

  const lossOf = (aim) => (aim.place === "reward" || aim.place === "loss" ? ofRewards : ofPairs)(aim);
  return {
    SCALE, all, names, reference, referenceLogp, rewardsOf, measure,
    way: (aim) => descent(lossOf(aim), aim.direction),
  };
};
