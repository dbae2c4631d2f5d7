// Many inputs at once: a table that is sorted by a click on a column's title.

const KINDS = { input: "Input", answer: "Answer", plain: "Plain", patched: "With the vector", random: "Random vector" };

class ManyInputs {
  constructor(page) {
    this.page = page;
    this.order = ["input", 1];
    this.tables = [];
    this.root = make("div", { class: "many" });
  }

  show(view) {
    if (!view.rows) return;
    this.tables.length = Math.max(Math.min(this.tables.length, this.page.facts.models.length), view.model);
    this.tables[view.model] = view;
    if (view.model === 0 && !view.done) this.tables.length = 1; // new numbers of the first model make the second's old
    this.draw();
  }

  draw() {
    const several = this.tables.length > 1;
    this.root.replaceChildren(make("p", { class: "hint" }, "Inputs of select, which chose neither heads nor means; layer and strength may have been searched for on some of them. The prompt is the shown one with another input."),
      ...this.tables.filter(Boolean).flatMap((view) => [...(several ? [make("h3", {}, view.name)] : []), this.totals(view), this.table(view)]));
  }

  totals({ totals, rows }) {
    return make("ul", { class: "rates wide", "aria-label": `Accuracy on ${rows.length} inputs` }, ...totals.map(({ name, value, low, high }) =>
      make("li", { "data-total": name }, make("span", {}, KINDS[name]), make("span", { class: "track", "aria-hidden": "true" },
        make("span", { class: "fill", style: `display:block;width:${100 * value}%` }),
        make("span", { class: "reach", style: `left:${100 * low}%;width:${100 * (high - low)}%` })),
      make("span", { class: "number" }, `${value.toFixed(2)} (${low.toFixed(2)} to ${high.toFixed(2)})`))));
  }

  table({ rows, totals }) {
    const names = ["input", "answer", ...totals.map((one) => one.name)], [by, sign] = this.order;
    // right before wrong, then by text
    const key = (row) => (Array.isArray(row[by]) ? [row[by][1] ? 0 : 1, row[by][0]] : [0, row[by] ?? ""]);
    const sorted = [...rows].sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      return sign * (x[0] - y[0] || String(x[1]).localeCompare(String(y[1])));
    });
    const heads = names.map((name) => make("th", { scope: "col", "aria-sort": name === by ? (sign > 0 ? "ascending" : "descending") : "none" },
      make("button", { type: "button", class: "sort", "data-sort": name, onclick: () => this.sort(name) }, KINDS[name], name === by ? (sign > 0 ? " ↑" : " ↓") : "")));
    const cell = (row, name) => (Array.isArray(row[name])
      ? make("td", { class: row[name][1] ? "good" : "" }, row[name][1] ? make("span", { class: "mark right" }, "✓ ") : make("span", { class: "sr" }, "wrong: "), row[name][0].split("\n")[0] || "(nothing)")
      : make("td", {}, name === "input"
        ? make("button", { type: "button", class: "link", title: "Show this input", onclick: () => this.page.set({ text: row.input }) }, row.input)
        : String(row[name] ?? "")));
    return make("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "Completions of many inputs" }, make("table", { class: "rows" },
      make("thead", {}, make("tr", {}, ...heads)),
      make("tbody", {}, ...sorted.map((row) => make("tr", {}, ...names.map((name) => cell(row, name)))))));
  }

  sort(name) {
    this.order = [name, this.order[0] === name ? -this.order[1] : 1];
    this.draw();
    this.root.querySelector(`[data-sort="${name}"]`)?.focus();
  }
}
