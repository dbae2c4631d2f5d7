// The maps of effects: layers from bottom to top, heads from left to right. A click opens a head's card; space, or a
// click with shift, takes the head into the vector or out of it.

class Maps {
  constructor(page) {
    this.page = page;
    this.cursor = [0, 0];
    this.cells = [];
    this.drawn = [];
    this.box = make("div", { class: "maps" });
    this.about = make("p", { class: "about" });
    this.taken = make("div", { class: "taken" });
    this.legend = make("div", { class: "legend" },
      make("span"), make("span", { class: "bar" }), make("span"), make("span", { class: "swatch grey" }), make("span"));
    this.note = make("p", { class: "hint keys" });
    // wide maps of several models do not fit beside one another, so one of them is shown at a time
    this.picked = 0;
    this.picker = make("select", { "data-name": "map", "aria-label": "Which map is shown", hidden: true });
    this.picker.addEventListener("change", () => { this.picked = Number(this.picker.value); this.pick(); this.fit(); });
  }

  pick() {
    const [first] = this.drawn, single = this.drawn.length > 1 && first.n_heads > 12;
    this.picker.hidden = !single;
    this.box.classList.toggle("several", this.drawn.length > 1 && !single);
    if (single) options(this.picker, this.drawn.map((map, index) => [String(index), map.kind === "difference" ? `Difference: ${map.name}` : map.name]));
    put(this.picker, "value", String(this.picked));
    [...this.box.children].forEach((figure, index) => put(figure, "hidden", single && index !== this.picked));
  }

  draw(maps) {
    const scale = this.page.facts.scales[this.page.dark ? "dark" : "light"];
    const values = (kind) => maps.filter((map) => map.kind === kind).flatMap((map) => map.aie.flat()).map((x) => Math.abs(x ?? 0));
    // effects share one scale, so that two models can be compared by eye; their difference has its own
    const reach = { effect: Math.max(...values("effect"), 1e-9), difference: Math.max(...values("difference"), 1e-9) };
    const focused = this.box.contains(this.page.root.getRootNode().activeElement);
    this.cells = [];
    this.drawn = maps;
    this.box.replaceChildren(...maps.map((map, index) => this.grid(map, index, scale, reach[map.kind], maps.length > 1)));
    this.pick();
    this.explain(maps, scale, reach);
    this.choose();
    this.fit();
    if (focused) this.cells[0]?.[this.cursor[0]]?.[this.cursor[1]]?.focus();
  }

  // lower cells where the panel would have to be scrolled: with a long warning above the map, or in a low window
  fit() {
    const panel = this.box.closest(".panel"), cell = this.box.querySelector(".one:not([hidden]) .dense td");
    this.box.style.removeProperty("--cell");
    if (!panel || !cell || getComputedStyle(panel).overflowY !== "auto") return;
    const extra = panel.scrollHeight - panel.clientHeight, n = this.drawn[0].n_layers;
    if (extra > 0) this.box.style.setProperty("--cell", `${Math.max(8, cell.offsetHeight - Math.ceil(extra / n))}px`);
  }

  explain(maps, scale, reach) {
    const [low, bar, high, , grey] = this.legend.children;
    this.legend.hidden = !maps.length;
    if (!maps.length) {
      this.taken.replaceChildren();
      return;
    }
    low.textContent = `−${reach.effect.toPrecision(2)}`;
    high.textContent = `+${reach.effect.toPrecision(2)}`;
    bar.style.background = `linear-gradient(90deg, ${scale.map(([at, colour]) => `${colour} ${100 * at}%`).join(", ")})`;
    grey.textContent = maps[0].interval ? `${maps[0].interval} interval has 0` : "no interval";
    this.taken.replaceChildren(...maps.filter((map) => map.taken || map.warning).map((map) => make("p",
      { class: map.warning ? "warning" : "hint" }, (maps.length > 1 ? `${map.name}: ` : "") + (map.warning || map.taken))));
  }

  grid(map, index, scale, reach, titled) {
    const ranks = new Map(map.ranked.map((head, at) => [headLabel(head), at + 1]));
    const rows = map.aie.map((row, layer) => row.map((aie, head) => this.cell(map, index, [layer, head], aie, scale, reach, ranks)));
    this.cells.push(rows);
    const everyHead = map.n_heads > 16 ? 4 : 1, everyLayer = map.n_layers > 40 ? 4 : map.n_layers > 24 ? 2 : 1;
    const heads = Array.from({ length: map.n_heads }, (_, head) => make("th", { scope: "col", role: "columnheader" }, head % everyHead ? "" : String(head)));
    const body = rows.map((cells, layer) => make("tr", { role: "row" },
      make("th", { scope: "row", role: "rowheader", class: "layer" }, layer % everyLayer ? "" : String(layer)), ...cells)).reverse();
    const size = map.n_layers > 12 || map.n_heads > 14 ? "map dense" : "map";
    const what = map.kind === "effect" ? `Effect of each head of ${map.name}` : `Difference of effects, ${map.name}`;
    const table = make("table", {
      class: size, role: "grid", "aria-multiselectable": "true", style: `--n-layers:${map.n_layers}`,
      "aria-label": `${what}: layers from bottom to top, heads from left to right`,
      onkeydown: (event) => this.key(event, index),
    }, make("tbody", { role: "rowgroup" }, ...body, make("tr", { role: "row" }, make("th", { role: "columnheader", class: "layer" }, make("span", { class: "sr" }, "layer")), ...heads)));
    const scales = map.kind === "difference" ? [make("p", { class: "hint" }, `from −${reach.toPrecision(2)} to +${reach.toPrecision(2)}`)] : [];
    return make("figure", { class: "one" },
      ...(titled ? [make("h3", {}, map.name)] : []),
      make("div", { class: "axes" }, make("span", { class: "axis layers", "aria-hidden": "true" }, "layer"), table,
        make("span", { class: "axis heads", "aria-hidden": "true" }, "head")), ...scales);
  }

  cell(map, index, head, aie, scale, reach, ranks) {
    const [layer, number] = head, label = headLabel(head);
    const [low, high] = [map.low[layer][number], map.high[layer][number]];
    const unsure = low !== null && low <= 0 && high >= 0;
    const rank = map.kind === "effect" ? ranks.get(label) : undefined;
    const cell = make("td", {
      role: "gridcell", "aria-selected": "false", tabindex: "-1", "data-head": label,
      class: `${unsure ? "unsure" : ""}${aie === null ? " empty" : ""}${ranks.has(label) ? " ranked" : ""}`.trim() || null,
      "aria-label": `${label}, effect ${aie === null ? "not measured" : signed(aie)}${unsure ? ", its interval has 0" : ""}${rank ? `, rank ${rank}` : ""}`,
      onclick: (event) => this.open(index, head, event.shiftKey),
      onmouseenter: () => this.tell(map, head), onfocus: () => this.tell(map, head),
    }, ranks.has(label) ? String(ranks.get(label)) : "");
    if (aie === null) return cell;
    const colour = unsure ? null : colourAt(scale, 0.5 + aie / reach / 2);
    if (colour) {
      cell.style.background = colour;
      cell.style.color = inkOn(colour.startsWith("#") ? `rgb(${channels(colour).join(" ")})` : colour);
    }
    return cell;
  }

  open(index, head, toggles) {
    this.move(index, ...head, false);
    if (toggles) this.page.send("toggle", { head });
    else this.page.set({ head, view: "head" });
  }

  tell(map, [layer, head]) {
    const [aie, low, high] = ["aie", "low", "high"].map((name) => map[name][layer][head]);
    const chosen = this.page.state?.heads.some(([l, h]) => l === layer && h === head);
    const interval = low === null ? "" : ` (${map.interval}: ${signed(low)} to ${signed(high)})`;
    const effect = aie === null ? "not measured" : `${signed(aie)} ${map.unit}${interval}`;
    const of = this.drawn.length > 1 ? `${map.name}, ` : "";
    this.about.textContent = `${of}L${layer}H${head}, layer ${layer}, head ${head}: ${effect}; ${chosen ? "in the vector" : "not in the vector"}.`;
  }

  choose() {
    const { state } = this.page;
    if (!state) return;
    const chosen = new Set(state.heads.map(headLabel)), shown = this.page.views?.head?.head;
    for (const rows of this.cells) for (const cell of rows.flat()) {
      put(cell, "ariaSelected", String(chosen.has(cell.dataset.head)));
      cell.classList.toggle("current", state.view === "head" && shown && headLabel(shown) === cell.dataset.head);
    }
    this.rove();
    if (this.box.contains(this.page.root.getRootNode().activeElement)) return;
    const first = this.drawn[0];
    this.about.textContent = first
      ? `${chosen.size} of ${first.n_layers * first.n_heads} heads in the vector (framed); numbers: the ten strongest. Mean effect on the answer (${first.unit}), ${first.n_prompts} prompts.`
      : "The heads are being measured.";
    this.note.textContent = first ? "Click or Enter: a head’s card. Shift-click or space: in or out." : "";
  }

  // one head of each map is reached by Tab, the others from there by arrow keys
  rove() {
    for (const rows of this.cells) rows.forEach((row, layer) => row.forEach((cell, head) => {
      put(cell, "tabIndex", layer === this.cursor[0] && head === this.cursor[1] ? 0 : -1);
    }));
  }

  move(index, layer, head, focus = true) {
    const rows = this.cells[index];
    this.cursor = [Math.min(Math.max(layer, 0), rows.length - 1), Math.min(Math.max(head, 0), rows[0].length - 1)];
    this.rove();
    if (focus) rows[this.cursor[0]][this.cursor[1]].focus();
  }

  key(event, index) {
    const [layer, head] = this.cursor;
    const steps = { ArrowUp: [1, 0], ArrowDown: [-1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], Home: [0, -999], End: [0, 999], PageUp: [999, 0], PageDown: [-999, 0] };
    if (steps[event.key]) this.move(index, layer + steps[event.key][0], head + steps[event.key][1]);
    else if (event.key === " ") this.open(index, [layer, head], true);
    else if (event.key === "Enter") this.open(index, [layer, head], event.shiftKey);
    else return;
    event.preventDefault();
    event.stopPropagation(); // a notebook has shortcuts of its own on these keys
  }
}
