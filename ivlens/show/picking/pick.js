// A map of heads that are chosen by click or key. Python sends the map once; chosen heads travel in both directions.

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value != null) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

const STEPS = { ArrowUp: [1, 0], ArrowDown: [-1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

class Map {
  constructor(model) {
    this.model = model;
    this.facts = JSON.parse(model.facts);
    this.cells = this.facts.cells;
    this.nodes = this.cells.map((row) => row.map(() => null));
    this.chosen = new Set();
    this.cursor = this.first();
    this.root = make("section", { class: "pick", "aria-label": this.facts.title });
    this.root.append(this.head(), this.table(), this.legend(), this.foot());
    this.show = () => this.receive();
    this.dress = () => this.colour();
    model.on("chosen", this.show);
    this.media = matchMedia("(prefers-color-scheme: dark)");
    this.media.addEventListener("change", this.dress);
    // JupyterLab says in an attribute of the body whether its theme is light
    this.observer = new MutationObserver(this.dress);
    this.observer.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light"] });
    this.colour();
    this.receive();
  }

  close() {
    this.media.removeEventListener("change", this.dress);
    this.observer.disconnect();
  }

  first() {
    const [layer, head] = this.facts.strongest[0] ?? [0, 0];
    return [layer, head];
  }

  head() {
    return make("p", { class: "title" }, make("b", {}, this.facts.title), ` ${this.facts.note}`);
  }

  table() {
    const n = this.cells[0].length;
    const every = n > 16 ? 4 : 1;
    const body = make("tbody");
    for (let layer = this.cells.length - 1; layer >= 0; layer--) {
      const label = this.cells.length <= 16 || layer % 4 === 0 ? String(layer) : "";
      const row = make("tr", { role: "row" }, make("th", { class: "layer", role: "rowheader" }, label));
      this.cells[layer].forEach((cell, head) => row.append(this.cell(cell, layer, head)));
      body.append(row);
    }
    const names = [...Array(n).keys()].map((head) => make("th", { role: "columnheader" }, head % every ? "" : String(head)));
    const foot = make("tfoot", {}, make("tr", { role: "row" }, make("th", { role: "columnheader" }), ...names));
    const size = this.cells.length > 16 ? " dense" : "";
    this.grid = make("table", { class: `heads${size}`, role: "grid", "aria-multiselectable": "true",
      "aria-label": "Heads: layers from bottom to top, heads from left to right" }, body, foot);
    this.grid.addEventListener("keydown", (event) => this.key(event));
    return make("div", { class: "frame" }, make("span", { class: "axis up" }, "layer"), this.grid,
      make("span", { class: "axis" }, "head"));
  }

  cell(cell, layer, head) {
    const node = make("td", { role: "gridcell", "data-head": `L${layer}H${head}`, tabindex: "-1" }, cell?.rank ?? "");
    this.nodes[layer][head] = node;
    if (!cell) {
      node.className = "blank";
      node.setAttribute("aria-label", `Layer ${layer}, head ${head}: not measured`);
      return node;
    }
    node.title = cell.text;
    node.setAttribute("aria-label", cell.text);
    node.addEventListener("click", () => { this.move(layer, head); this.toggle(layer, head); });
    node.addEventListener("focus", () => { this.about.textContent = cell.text; });
    node.addEventListener("mouseenter", () => { this.about.textContent = cell.text; });
    return node;
  }

  legend() {
    this.bar = make("span", { class: "bar" });
    this.swatch = make("span", { class: "swatch" });
    const grey = this.facts.unsure ? [this.swatch, make("span", {}, this.facts.unsure)] : [];
    return make("p", { class: "legend" }, make("span", {}, this.facts.ends[0]), this.bar,
      make("span", {}, `${this.facts.ends[1]} ${this.facts.unit}`), ...grey);
  }

  foot() {
    this.about = make("p", { class: "about" }, "Numbers: ranks of the strongest heads. Click heads in and out.");
    this.named = make("p", { class: "named", role: "status" });
    const n = this.facts.strongest.length;
    return make("div", {}, this.about, this.named, make("div", { class: "row" },
      make("button", { type: "button", onclick: () => this.send(this.facts.strongest) }, `The ${n} strongest`),
      make("button", { type: "button", onclick: () => this.send([]) }, "No heads")));
  }

  key(event) {
    const [layer, head] = this.cursor;
    if (event.key === " " || event.key === "Enter") this.toggle(layer, head);
    else if (STEPS[event.key]) this.move(layer + STEPS[event.key][0], head + STEPS[event.key][1], true);
    else return;
    event.preventDefault();
  }

  move(layer, head, focus = false) {
    const to = this.nodes[layer]?.[head];
    if (!to) return;
    this.nodes[this.cursor[0]][this.cursor[1]].tabIndex = -1;
    this.cursor = [layer, head];
    to.tabIndex = 0;
    if (focus) to.focus();
  }

  toggle(layer, head) {
    if (!this.cells[layer][head]) return;
    const name = `${layer},${head}`;
    const after = new Set(this.chosen);
    if (!after.delete(name)) after.add(name);
    this.send([...after].map((pair) => pair.split(",").map(Number)));
  }

  // shown at once: Python may be busy with another cell, and takes the choice when it is free
  send(heads) {
    this.draw(heads);
    this.model.chosen = JSON.stringify(heads);
  }

  receive() {
    this.draw(JSON.parse(this.model.chosen || "[]"));
  }

  draw(heads) {
    this.chosen = new Set(heads.map(([layer, head]) => `${layer},${head}`));
    this.nodes.forEach((row, layer) => row.forEach((node, head) => {
      node.setAttribute("aria-selected", String(this.chosen.has(`${layer},${head}`)));
    }));
    this.nodes[this.cursor[0]][this.cursor[1]].tabIndex = 0;
    const names = heads.map(([layer, head]) => `L${layer}H${head}`);
    this.named.textContent = names.length ? `${names.length} chosen: ${names.join(" ")}` : "No head is chosen.";
  }

  colour() {
    const own = document.body.dataset.jpThemeLight;
    const dark = own === undefined ? this.media.matches : own === "false";
    const at = dark ? 1 : 0;
    this.root.classList.toggle("dark", dark);
    this.nodes.forEach((row, layer) => row.forEach((node, head) => {
      const cell = this.cells[layer][head];
      if (!cell) return;
      node.style.background = cell.grounds[at];
      node.style.color = cell.inks[at];
    }));
    this.bar.style.background = `linear-gradient(to right, ${this.facts.scales[at].join(", ")})`;
    this.swatch.style.background = this.facts.greys[at];
  }
}

export function render({ model }) {
  const map = new Map(model);
  model.on("remove", () => map.close());
  return map.root;
}
