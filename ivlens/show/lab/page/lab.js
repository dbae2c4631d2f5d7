// The lab's page. It holds no state of its own: every control sends an event, and shows what the Python side answers.
// Values travel as JSON texts, so that no types are converted between JavaScript and Python.

let n_pages = 0;
const LOST = "The lab is gone: its server has ended, or the connection to it was lost. What is shown stays; start `ivlens lab` again, or reload the page if it still runs.";
const SILENT = "The lab does not answer: its server is stopped, or the connection to it is broken. This goes away when it answers.";
const BUSY = "Python does not answer: the kernel runs another cell, or has ended. This goes away when it answers.";
const PATIENCE = 8000; // milliseconds; Python answers an event within this time, even while it computes
const CHANNELS = ["state", "ability", "task", "result", "code", "status", "running"];
const SHOTS = [0, 1, 2, 3, 4, 5, 8, 10, 15, 20];

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

// a value that did not change is not set again: it would move the cursor, and close an open list
function put(node, name, value) {
  if (node[name] !== value) node[name] = value;
}

function options(select, pairs) {
  const wanted = JSON.stringify(pairs);
  if (select.dataset.pairs === wanted) return;
  select.dataset.pairs = wanted;
  select.replaceChildren(...pairs.map(([value, text]) => make("option", { value }, text)));
}

function visible(token) {
  return token.trim() ? token.trim() : JSON.stringify(token).slice(1, -1).replaceAll(" ", "␣") || "(empty)";
}

function channels(colour) {
  return [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
}

function colourAt(scale, position) {
  const p = Math.min(Math.max(position, 0), 1);
  for (let i = 1; i < scale.length; i++) {
    const [low, first] = scale[i - 1], [high, second] = scale[i];
    if (p <= high) {
      const a = channels(first), b = channels(second), share = (p - low) / (high - low);
      return `rgb(${a.map((part, k) => Math.round(part + share * (b[k] - part))).join(" ")})`;
    }
  }
  return scale.at(-1)[1];
}

function inkOn(colour) {
  const [r, g, b] = colour.match(/\d+/g).map((part) => (part / 255) ** 2.2);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.18 ? "#10151c" : "#ffffff";
}

function signed(value) {
  return `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(3)}`;
}

class Page {
  constructor(model) {
    this.model = model;
    this.id = `ivlens-${++n_pages}`;
    this.facts = JSON.parse(model.facts);
    this.own = Math.random().toString(36).slice(2);
    this.sent = 0;
    this.seen = 0; // the number of the newest event that Python has answered
    this.out = 0; // the number of the newest event that was sent: typing and dragging are held back for a moment
    this.asked_at = this.called_at = this.heard_at = Date.now();
    this.cursor = [0, 0];
    this.cells = [];
    this.templates = [...this.facts.templates];
    this.timers = new Map();
    this.root = make(this.facts.page ? "main" : "section", {
      class: this.facts.page ? "lab page" : "lab", "aria-label": "ivlens lab",
    });
    this.build();
    this.listen();
    for (const name of CHANNELS) this.receive(name);
    this.dress();
    this.greet();
    this.clock = setInterval(() => this.look(), 1000);
  }

  // in a notebook the page may be there before Python listens to it
  greet() {
    if (this.heard) return;
    this.send("hello");
    setTimeout(() => this.greet(), 700);
  }

  read(name) {
    return this.model[name] ? JSON.parse(this.model[name]).value : null;
  }

  send(kind, values = {}) {
    if (this.seen >= this.out) this.asked_at = Date.now();
    this.model.send_msg(JSON.stringify({ kind, page: this.own, seq: ++this.sent, ...values }));
    this.out = this.sent;
    this.wait();
  }

  // every second: does Python still answer, and for how long has it been at work?
  look() {
    const now = Date.now();
    const asked = this.seen < this.out ? this.asked_at : this.called_at > this.heard_at ? this.called_at : now;
    const silent = now - Math.max(asked, this.heard_at) > PATIENCE;
    put(this.goneLine, "textContent", this.lost ? LOST : silent ? (this.facts.page ? SILENT : BUSY) : "");
    if (this.running) this.show_running(this.running);
    // only a server's page asks whether Python is there: a notebook's kernel would have to answer all those questions
    // after a long cell
    if (this.facts.page && !this.lost && this.called_at <= this.heard_at && now - this.called_at > PATIENCE / 2) {
      this.called_at = now;
      this.model.send_msg(JSON.stringify({ kind: "here", page: this.own, seq: 0 }));
    }
  }

  // tells screen readers that something was asked for and is not complete yet
  wait() {
    put(this.root, "ariaBusy", String(this.seen < this.sent || Boolean(this.status?.busy)));
  }

  set(values) {
    this.send("set", { values });
  }

  // while someone types or drags, the newest value goes out at most every 60 ms (250 for text)
  soon(name, wait, value) {
    clearTimeout(this.timers.get(name));
    this.sent++; // until this event is answered, states of earlier events must not overwrite the field
    this.wait();
    this.timers.set(name, setTimeout(() => this.set({ [name]: value() }), wait));
  }

  listen() {
    this.handlers = CHANNELS.map((name) => {
      const handler = () => this.receive(name);
      this.model.on(name, handler);
      return handler;
    });
    this.model.document?.on_event?.("connection_lost", () => { this.lost = true; this.look(); });
    this.model.on("msg:custom", (event) => {
      const said = JSON.parse(event.data ?? event);
      this.heard_at = Date.now();
      if (said.content) this.download(said);
    });
    this.media = matchMedia("(prefers-color-scheme: dark)");
    this.redress = () => this.dress();
    this.media.addEventListener("change", this.redress);
    // JupyterLab says in an attribute of the body whether its theme is light
    this.observer = new MutationObserver(this.redress);
    this.observer.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light"] });
  }

  close() {
    clearInterval(this.clock);
    this.media.removeEventListener("change", this.redress);
    this.observer.disconnect();
  }

  receive(name) {
    const value = this.read(name);
    if (value === null) return;
    this.heard_at = Date.now();
    this.heard ||= name === "state" && this.own in value.seen;
    if (name === "state") this.seen = value.seen[this.own] ?? 0;
    if (name === "state" && this.seen < this.sent) return; // a newer event of this page is not answered yet
    this[name] = value;
    this[`show_${name}`](value);
    this.wait();
  }

  // ---- the parts of the page

  label(text, control, ...more) {
    control.id = `${this.id}-${control.dataset.name}`;
    return make("div", { class: "field" }, make("label", { for: control.id }, text, ...more), control);
  }

  select(name, onchange) {
    return make("select", { "data-name": name, onchange: (event) => onchange(event.target.value) });
  }

  range(name, min, max, step, oninput) {
    const output = make("span", { class: "value" });
    const input = make("input", { type: "range", "data-name": name, min, max, step });
    input.addEventListener("input", () => {
      output.textContent = this.number(name, Number(input.value));
      oninput(() => Number(input.value));
    });
    this[`${name}_value`] = output;
    return input;
  }

  number(name, value) {
    return name === "alpha" ? `${value < 0 ? "−" : ""}${Math.abs(value)}` : String(value);
  }

  area(name, rows) {
    const area = make("textarea", { "data-name": name, rows, spellcheck: "false" });
    area.addEventListener("input", () => this.soon(name, 250, () => area.value));
    return area;
  }

  build() {
    this.statusLine = make("p", { class: "status", role: "status" });
    this.errorLine = make("p", { class: "error", role: "alert" });
    this.goneLine = make("p", { class: "gone", role: "alert" });
    this.runningLine = make("p", { class: "running", role: "note" });
    this.themeButton = make("button", { type: "button", onclick: () => this.turn() });
    const names = this.facts.models.map((one) => `${one.name} · ${one.n_layers} layers × ${one.n_heads} heads · ${one.weights}`);
    this.root.append(
      make("header", {},
        make(this.facts.page ? "h1" : "h2", {}, "ivlens lab"),
        make("p", { class: "models" }, names.join("   |   ")), this.statusLine, this.themeButton),
      this.goneLine, this.errorLine, this.runningLine,
      make("div", { class: "columns" }, this.left(), this.middle(), this.right()));
  }

  panel(title, className, ...children) {
    const id = `${this.id}-${className}`;
    return make("section", { class: `panel ${className}`, "aria-labelledby": id }, make("h2", { id }, title), ...children);
  }

  left() {
    this.taskSelect = this.select("task", (task) => this.set({ task }));
    options(this.taskSelect, this.facts.tasks.map((name) => [name, name.replaceAll("_", " ")]));
    this.textArea = this.area("text", 2);
    this.inputSelect = this.select("input", (text) => text && this.set({ text }));
    this.inputSelect.setAttribute("aria-label", "An input of the task");
    this.instructionArea = this.area("instruction", 2);
    this.instructionSelect = this.select("paraphrase", (instruction) => this.set({ instruction }));
    this.instructionSelect.setAttribute("aria-label", "An instruction of the task");
    this.templateSelect = this.select("template", (template) => this.set({ template }));
    this.shotsSelect = this.select("n_shots", (n) => this.set({ n_shots: n === "" ? null : Number(n) }));
    this.bareBox = this.box("bare", "Bare: neither instruction nor demonstrations", (bare) => this.set({ bare }));
    this.toldSelect = this.select("told", (told) => this.set({ told: JSON.parse(told) }));
    this.lengthRange = this.range("max_new_tokens", 1, 64, 1, (value) => this.soon("max_new_tokens", 60, value));
    this.abilityLines = make("div", { class: "ability", role: "note", "aria-live": "polite" });
    this.prompts = make("pre", { tabindex: "0", "aria-label": "The prompt as the model gets it" });
    return this.panel("Prompt", "left",
      this.label("Task", this.taskSelect), this.abilityLines,
      this.field(this.label("Input", this.textArea), this.inputSelect),
      this.field(this.label("Instruction in the prompt", this.instructionArea), this.instructionSelect),
      make("div", { class: "pair" },
        this.label("Template", this.templateSelect), this.label("Demonstrations", this.shotsSelect)),
      make("div", { class: "row field" }, this.bareBox),
      make("div", { class: "field" }, make("span", { class: "label" }, "The model gets"), this.prompts),
      this.label("New tokens ", this.lengthRange, this.max_new_tokens_value),
      this.label("Heads are measured with", this.toldSelect));
  }

  box(name, text, onchange) {
    const box = make("input", { type: "checkbox", "data-name": name, id: `${this.id}-${name}` });
    box.addEventListener("change", () => onchange(box.checked));
    this[`${name}Input`] = box;
    return make("label", { for: box.id }, box, text);
  }

  field(labelled, more) {
    labelled.append(more);
    return labelled;
  }

  middle() {
    this.maps = make("div", { class: "maps" });
    this.about = make("p", { class: "about" });
    this.takenLines = make("div", { class: "taken" });
    this.legend = make("div", { class: "legend" }, make("span"), make("span", { class: "bar" }), make("span"));
    const first = this.facts.models[0];
    this.kRange = this.range("k", 1, Math.min(first.n_layers * first.n_heads, 64), 1, (value) => this.soon("k", 60, value));
    this.layerRange = this.range("layer", 0, first.n_layers - 1, 1, (value) => this.soon("layer", 60, value));
    this.alphaRange = this.range("alpha", -16, 16, 0.25, (value) => this.soon("alpha", 60, value));
    this.siteSelect = this.select("site", (site) => this.set({ site }));
    options(this.siteSelect, [["resid_post", "after the block"], ["attn_out", "what attention adds"]]);
    this.positionsSelect = this.select("positions", (positions) => this.set({ positions }));
    options(this.positionsSelect, [["prompt", "end of the prompt"], ["every", "every new token too"], ["all", "all of the prompt too"]]);
    this.donorSelect = this.select("donor", (donor) => this.set({ donor }));
    options(this.donorSelect, [["own", "its own, of the same heads"], ["first", "that of the first model"]]);
    const donor = this.label("Vector of the second model", this.donorSelect);
    donor.hidden = this.facts.models.length < 2;
    const random = this.box("random", "Random vector of equal norm", (random) => this.set({ random }));
    this.againButton = make("button", { type: "button", onclick: () => this.set({ random: true, seed: this.state.seed + 1 }) }, "Draw another");
    return this.panel("Heads and vector", "middle",
      this.maps, this.legend, this.takenLines, this.about,
      make("div", { class: "sliders" },
        this.label("Strongest ", this.kRange, this.k_value),
        this.label("Layer ", this.layerRange, this.layer_value),
        this.label("Strength ", this.alphaRange, this.alpha_value)),
      make("div", { class: "pair" }, this.label("Site", this.siteSelect), this.label("Positions", this.positionsSelect)),
      donor,
      make("div", { class: "row field" }, random, this.againButton),
      make("div", { class: "row" },
        make("button", { type: "button", onclick: () => this.send("search") }, "Find layer and strength"),
        make("button", { type: "button", onclick: () => this.set({ heads: [] }) }, "No heads")));
  }

  right() {
    this.models = make("div", { class: "both" });
    this.fileInput = make("input", { type: "file", accept: ".safetensors", class: "sr", tabindex: "-1", "aria-hidden": "true", onchange: () => this.upload() });
    this.codeText = make("pre", { tabindex: "0", "aria-label": "Code" });
    this.copyButton = make("button", { type: "button", onclick: () => this.copy() }, "Copy as Python");
    this.details = make("details", {}, make("summary", {}, "The Python that gives these texts"), this.codeText);
    return this.panel("Completions", "right", this.models,
      make("div", { class: "row" },
        make("button", { type: "button", class: "main", onclick: () => this.send("save") }, "Save vector"),
        make("button", { type: "button", onclick: () => this.fileInput.click() }, "Load vector…"),
        this.copyButton, this.fileInput),
      this.details);
  }

  // ---- showing what Python sends

  show_state(state) {
    put(this.taskSelect, "value", state.task);
    put(this.textArea, "value", state.text);
    put(this.instructionArea, "value", state.instruction);
    this.recipe(state);
    for (const [name, range] of [["k", this.kRange], ["layer", this.layerRange], ["alpha", this.alphaRange], ["max_new_tokens", this.lengthRange]]) {
      if (state[name] === null) continue;
      if (name === "alpha") { // a strength set from Python may lie beyond the slider's ends
        const reach = Math.max(16, Math.ceil(Math.abs(state.alpha)));
        range.min = -reach; range.max = reach;
      }
      put(range, "value", String(state[name]));
      put(this[`${name}_value`], "textContent", this.number(name, state[name]));
    }
    if (state.site) put(this.siteSelect, "value", state.site);
    put(this.positionsSelect, "value", state.positions);
    put(this.donorSelect, "value", state.donor);
    put(this.randomInput, "checked", state.random);
    this.fill();
    this.choose();
  }

  // values that came with effects, with a vector or from Python need not be among the usual choices
  recipe(state) {
    if (!this.templates.includes(state.template)) this.templates.push(state.template);
    options(this.templateSelect, this.templates.map((name) => [name, name === "raw" ? "raw: the input is the whole prompt" : name]));
    put(this.templateSelect, "value", state.template);
    const shots = SHOTS.includes(state.n_shots) || state.n_shots === null ? SHOTS : [...SHOTS, state.n_shots];
    options(this.shotsSelect, [["", "default"], ...shots.map((n) => [String(n), String(n)])]);
    put(this.shotsSelect, "value", state.n_shots === null ? "" : String(state.n_shots));
    put(this.bareInput, "checked", state.bare);
    const typed = state.instruction.trim();
    const choices = [["task", "the task’s instructions"], ["none", "demonstrations alone"]];
    if (typed) choices.push([[typed], `“${typed.slice(0, 60)}”`]);
    const told = JSON.stringify(state.told);
    if (!choices.some(([value]) => JSON.stringify(value) === told)) choices.push([state.told, `“${state.told.join("” or “").slice(0, 60)}”`]);
    options(this.toldSelect, choices.map(([value, text]) => [JSON.stringify(value), text]));
    put(this.toldSelect, "value", told);
  }

  show_ability(models) {
    const many = models.length > 1;
    this.abilityLines.replaceChildren(...models.filter((one) => one.text).map((one) => one.warning
      ? make("p", { class: "warning" }, (many ? `${one.name}: ` : "") + one.warning)
      : make("p", { class: "hint" }, (many ? `${one.name}: ` : "") + one.text)));
  }

  show_task(task) {
    options(this.inputSelect, [["", "an input of the task …"], ...task.inputs.map((text) => [text, text.slice(0, 80)])]);
    options(this.instructionSelect, [["", "none: the vector's place"], ...task.instructions.map((text) => [text, text])]);
    this.fill();
    this.draw();
  }

  fill() {
    if (!this.state || !this.task) return;
    this.inputSelect.value = this.task.inputs.includes(this.state.text) ? this.state.text : "";
    const known = this.task.instructions.includes(this.state.instruction) || this.state.instruction === "";
    this.instructionSelect.value = known ? this.state.instruction : "";
  }

  show_status(status) {
    put(this.statusLine, "textContent", status.busy || status.done);
    this.statusLine.classList.toggle("busy", Boolean(status.busy));
    put(this.errorLine, "textContent", status.error);
  }

  // shown only while another page is at work: this page's own work is shown in its status
  show_running({ page, at_work }) {
    if (this.told !== at_work) [this.told, this.told_at] = [at_work, Date.now()];
    const later = (Date.now() - this.told_at) / 1000;
    const all = at_work.map((one) => `${one.page === page ? "this page" : `page ${one.page}`} (${one.what.replace(/ …$/, "").replace(/^./, (letter) => letter.toLowerCase())}, ${Math.round(one.seconds + later)} s)`);
    put(this.runningLine, "textContent", at_work.some((one) => one.page !== page) ? `This is page ${page}. At work: ${all.join("; ")}.` : "");
  }

  show_code(code) {
    put(this.codeText, "textContent", code);
  }

  show_result(result) {
    const several = result.models.length > 1;
    const prompts = [...new Set(result.models.map((one) => one.prompt))];
    put(this.prompts, "textContent", prompts.join("\n———\n"));
    this.models.replaceChildren(...result.models.map((one) => this.completions(one, result.answers, several)));
  }

  completions(model, answers, titled) {
    const title = titled ? [make("h3", {}, model.name)] : [];
    const cards = model.columns.map((column) => this.card(column, answers));
    return make("div", { class: "model" }, ...title, make("div", { class: "cards" }, ...cards), this.vector(model.vector));
  }

  card(column, answers) {
    const title = { plain: "Plain", patched: "With the vector", random: "Random vector" }[column.name];
    const mark = column.right === null || !column.done ? [] :
      [make("p", { class: `mark ${column.right ? "right" : "wrong"}` }, column.right ? "✓ the task’s answer" : `expected ${answers[0].trim()}`)];
    const firsts = answers.map((answer) => answer.trim());
    return make("article", { class: `card ${column.name}`, "data-column": column.name },
      make("h3", {}, title),
      make("p", { class: column.done ? "text" : "text writing" }, column.text.trim() || (column.done ? "(nothing)" : "")),
      make("div", { class: "judged" }, ...mark),
      this.bars(`Next tokens, ${title.toLowerCase()}`, column.top, 1, (p) => `${(100 * p).toFixed(p < 0.0995 ? 1 : 0)} %`,
        (token) => token.trim() && firsts.some((answer) => answer === token.trim())));
  }

  bars(name, pairs, reach, number, isAnswer) {
    return make("ol", { class: "bars", "aria-label": name }, ...pairs.map(([token, value]) =>
      make("li", {},
        make("span", { class: isAnswer(token) ? "token answer" : "token", title: JSON.stringify(token) }, visible(token)),
        make("span", { class: "track", "aria-hidden": "true" },
          make("span", { class: "fill", style: `display:block;width:${Math.max(0, 100 * value / reach).toFixed(1)}%` })),
        make("span", { class: "number" }, number(value)))));
  }

  vector(vector) {
    if (!vector) return make("p", { class: "vector hint" }, "No head is chosen, so nothing is added. Choose heads on the map.");
    const heads = vector.k ? `${vector.k} head${vector.k === 1 ? "" : "s"}` : "no heads of its own";
    const file = this.state?.source === "file" ? `loaded from ${this.state.file}, ` : "";
    const reach = Math.max(...vector.tokens.map(([, value]) => Math.abs(value)), 1e-9);
    return make("div", { class: "vector" },
      make("h3", {}, `The vector alone, decoded`),
      make("p", { class: "hint" }, `${vector.task}: ${file}${heads}, norm ${vector.norm.toPrecision(3)}; logits after the final norm`),
      this.bars("Tokens the vector points to", vector.tokens, reach, (value) => value.toFixed(1), () => false));
  }

  // ---- the map

  draw() {
    const { maps } = this.task;
    const scale = this.facts.scales[this.dark ? "dark" : "light"];
    const reach = Math.max(...maps.flatMap((map) => map.aie.flat()).map((x) => Math.abs(x ?? 0)), 1e-9);
    this.cells = [];
    const focused = this.maps.contains(this.root.getRootNode().activeElement);
    this.maps.replaceChildren(...maps.map((map, index) => this.grid(map, index, scale, reach, maps.length > 1)));
    const [low, bar, high] = this.legend.children;
    low.textContent = `−${reach.toPrecision(2)}`;
    high.textContent = `+${reach.toPrecision(2)} ${maps[0].unit}`;
    bar.style.background = `linear-gradient(90deg, ${scale.map(([at, colour]) => `${colour} ${100 * at}%`).join(", ")})`;
    this.takenLines.replaceChildren(...maps.filter((map) => map.taken).map((map) => make("p",
      { class: map.warning ? "warning" : "hint" }, (maps.length > 1 ? `${map.name}: ` : "") + (map.warning || map.taken))));
    this.choose();
    if (focused) this.cells[0]?.[this.cursor[0]]?.[this.cursor[1]]?.focus();
  }

  grid(map, index, scale, reach, titled) {
    const rows = map.aie.map((row, layer) => row.map((aie, head) => this.cell(map, index, layer, head, aie, scale, reach)));
    this.cells.push(rows);
    const every = map.n_heads > 20 ? 4 : 1;
    const heads = Array.from({ length: map.n_heads }, (_, head) => make("th", { scope: "col", role: "columnheader" }, head % every ? "" : String(head)));
    const body = rows.map((cells, layer) => make("tr", { role: "row" },
      make("th", { scope: "row", role: "rowheader", class: "layer" }, map.n_layers > 20 && layer % 4 ? "" : String(layer)), ...cells)).reverse();
    const table = make("table", {
      class: map.n_heads > 14 ? "map dense" : "map", role: "grid", "aria-multiselectable": "true",
      "aria-label": `Effect of each head of ${map.name}: layers from bottom to top, heads from left to right`,
      onkeydown: (event) => this.key(event, index),
    }, make("tbody", { role: "rowgroup" }, ...body, make("tr", { role: "row" }, make("th", { role: "columnheader", class: "layer" }, make("span", { class: "sr" }, "layer")), ...heads)));
    return titled ? make("div", {}, make("h3", {}, map.name), table) : table;
  }

  cell(map, index, layer, head, aie, scale, reach) {
    const colour = aie === null ? "transparent" : colourAt(scale, 0.5 + aie / reach / 2);
    const tell = () => this.tell(map, layer, head);
    const cell = make("td", {
      role: "gridcell", "aria-selected": "false", tabindex: "-1", "data-head": `L${layer}H${head}`, class: aie === null ? "empty" : null,
      "aria-label": `L${layer}H${head}, effect ${aie === null ? "not measured" : signed(aie)}`,
      onclick: () => { this.move(index, layer, head, false); this.send("toggle", { head: [layer, head] }); },
      onmouseenter: tell, onfocus: tell,
    });
    if (aie !== null) cell.style.background = colour;
    if (aie !== null) cell.style.color = inkOn(colour.startsWith("#") ? `rgb(${channels(colour).join(" ")})` : colour);
    return cell;
  }

  tell(map, layer, head) {
    const [aie, low, high] = ["aie", "low", "high"].map((name) => map[name][layer][head]);
    const rank = this.state ? this.state.heads.findIndex(([l, h]) => l === layer && h === head) + 1 : 0;
    const interval = low === null ? "" : ` (${map.interval}: ${signed(low)} to ${signed(high)})`;
    const effect = aie === null ? "not measured" : `${signed(aie)} ${map.unit}${interval}`;
    this.about.textContent = `Layer ${layer}, head ${head}: ${effect}; ${rank ? "in the vector" : "not in the vector"}.`;
  }

  choose() {
    if (!this.state || !this.task) return;
    const chosen = new Map(this.state.heads.map(([layer, head], at) => [`L${layer}H${head}`, at + 1]));
    for (const rows of this.cells) for (const cell of rows.flat()) {
      const rank = chosen.get(cell.dataset.head);
      cell.setAttribute("aria-selected", String(Boolean(rank)));
      put(cell, "textContent", rank ? String(rank) : "");
    }
    this.rove();
    if (!this.maps.contains(this.root.getRootNode().activeElement)) {
      const n = this.task.maps[0].n_prompts;
      this.about.textContent = `${chosen.size} of ${this.cells[0].flat().length} heads in the vector. Mean effect of each head on the answer, ${n} prompts. Click, or arrow keys and space, to add or remove one.`;
    }
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
    else if (event.key === " " || event.key === "Enter") this.send("toggle", { head: [layer, head] });
    else return;
    event.preventDefault();
    event.stopPropagation(); // a notebook has shortcuts of its own on these keys
  }

  // ---- light and dark

  turn() {
    this.asked = this.dark ? "light" : "dark";
    this.dress();
  }

  dress() {
    const lab = document.body.dataset.jpThemeLight;
    const dark = this.asked ? this.asked === "dark" : lab ? lab === "false" : this.media.matches;
    const changed = dark !== this.dark;
    this.dark = dark;
    this.root.classList.toggle("dark", dark);
    this.themeButton.textContent = dark ? "Light colours" : "Dark colours";
    if (this.facts.page) document.documentElement.style.background = dark ? "#171c24" : "#ffffff";
    if (changed && this.task) this.draw();
  }

  // ---- files and clipboard

  download({ name, content }) {
    const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
    const address = URL.createObjectURL(new Blob([bytes], { type: "application/octet-stream" }));
    make("a", { href: address, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(address), 10000);
  }

  upload() {
    const [file] = this.fileInput.files;
    if (!file) return;
    if (file.size > this.facts.max_file) { // a message of this size would never arrive
      put(this.errorLine, "textContent", `${file.name} has ${file.size} bytes, expected a vector of at most ${this.facts.max_file}.`);
      this.fileInput.value = "";
      return;
    }
    const reader = new FileReader();
    this.sent++; // asked for, though nothing goes out until the file is read
    this.wait();
    reader.onerror = () => this.set({});
    reader.onload = () => this.send("load", { name: file.name, content: reader.result.split(",", 2)[1] ?? "" });
    reader.readAsDataURL(file);
    this.fileInput.value = "";
  }

  async copy() {
    try {
      await navigator.clipboard.writeText(this.code ?? "");
      this.copyButton.textContent = "Copied";
    } catch { // no permission to copy: the text is selected for the user to copy
      this.details.open = true;
      getSelection().selectAllChildren(this.codeText);
      this.copyButton.textContent = "Selected below";
    }
    setTimeout(() => { this.copyButton.textContent = "Copy as Python"; }, 2000);
  }
}

export function render({ model }) {
  const page = new Page(model);
  model.on?.("remove", () => page.close());
  return page.root;
}
