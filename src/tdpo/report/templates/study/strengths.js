// Which strength stands for a method: a rule for all, and for each method a choice of its own.
const strengths = (() => {
  const { byId } = page;
  const rule = byId("strength-rule");
  const own = [...document.querySelectorAll("select[data-strength-of]")];
  const rows = [...document.querySelectorAll("[data-cell]")];
  const listeners = [];

  function strengthOf(task, arm) {
    const chosen = own.find((select) => select.dataset.strengthOf === arm)?.value;
    return chosen || (study.numbers.rules[task]?.[rule.value]?.[arm] ?? "");
  }

  function apply() {
    for (const row of rows) {
      const { task, arm, strength } = row.dataset;
      row.hidden = strengthOf(Number(task), arm) !== strength;
    }
    study.redrawCurves();
    for (const listener of listeners) listener();
  }

  rule.addEventListener("change", () => {
    for (const select of own) select.value = "";
    apply();
  });
  for (const select of own) select.addEventListener("change", apply);
  study.start(strengthOf);
  return { strengthOf, onChange: (listener) => listeners.push(listener) };
})();
