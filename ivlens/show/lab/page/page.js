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
    this.views = {}; // what each view shows, as it was sent last
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
    const state = this.facts.page && location.hash.length > 1 ? unpacked(location.hash.slice(1)) : null;
    this.send("hello", state ? { shared: state } : {});
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
    this.sizes = new ResizeObserver(() => this.maps.fit());
    this.sizes.observe(this.root);
    // JupyterLab says in an attribute of the body whether its theme is light
    this.observer = new MutationObserver(this.redress);
    this.observer.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light"] });
  }

  close() {
    clearInterval(this.clock);
    this.media.removeEventListener("change", this.redress);
    this.observer.disconnect();
    this.sizes.disconnect();
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
    this.remarkLine = make("p", { class: "remark", role: "status" });
    this.runningLine = make("p", { class: "running", role: "note" });
    this.themeButton = make("button", { type: "button", onclick: () => this.turn() });
    this.progressBar = make("progress", { max: "1", "aria-label": "What is measured" });
    this.progressText = make("span");
    this.progressBox = make("div", { class: "progress", hidden: true }, this.progressBar, this.progressText);
    const names = this.facts.models.map((one) => `${one.name} · ${one.n_layers} layers × ${one.n_heads} heads · ${one.weights}`);
    this.root.append(
      make("header", {},
        make(this.facts.page ? "h1" : "h2", {}, "ivlens lab"),
        make("p", { class: "models" }, names.join("   |   ")), this.statusLine, this.sessions(), this.themeButton),
      this.goneLine, this.errorLine, this.remarkLine, this.runningLine, this.progressBox,
      make("div", { class: "columns" }, this.left(), this.middle(), this.right()));
  }

  sessions() {
    this.sessionFile = make("input", { type: "file", accept: ".json", class: "sr", tabindex: "-1", "aria-hidden": "true", "data-name": "session_file", onchange: () => this.openSession() });
    return make("div", { class: "row" },
      make("button", { type: "button", onclick: () => this.saveSession() }, "Save session"),
      make("button", { type: "button", onclick: () => this.sessionFile.click() }, "Open session…"), this.sessionFile);
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
    this.more = new MorePrompt(this);
    this.lengthRange = this.range("max_new_tokens", 1, 64, 1, (value) => this.soon("max_new_tokens", 60, value));
    this.abilityLines = make("div", { class: "ability", role: "note", "aria-live": "polite" });
    this.formRow = make("div", { class: "row field", hidden: true },
      make("button", { type: "button", onclick: () => this.send("form") }, "Find a form it can answer"));
    this.prompts = make("pre", { tabindex: "0", "aria-label": "The prompt as the model gets it" });
    return this.panel("Prompt", "left",
      this.label("Task", this.taskSelect), this.abilityLines, this.formRow,
      this.field(this.label("Input", this.textArea), this.inputSelect),
      this.field(this.label("Instruction in the prompt", this.instructionArea), this.instructionSelect),
      make("div", { class: "pair" },
        this.label("Template", this.templateSelect), this.label("Demonstrations", this.shotsSelect)),
      make("div", { class: "row field" }, this.bareBox), this.more.root,
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
    this.maps = new Maps(this);
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
      this.maps.taken, this.maps.picker, this.maps.box, this.maps.legend, this.maps.about, this.maps.note,
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
    return this.panel("Completions", "right", this.models,
      make("div", { class: "row buttons" },
        make("button", { type: "button", class: "main", onclick: () => this.send("save") }, "Save vector"),
        make("button", { type: "button", onclick: () => this.fileInput.click() }, "Load vector…"),
        this.copyButton, this.fileInput),
      this.tabs());
  }

  tabs() {
    this.parts = { head: new HeadCard(this), many: new ManyInputs(this), layers: new ByLayer(this), places: new ByPlace(this) };
    this.vectorBox = make("div", { class: "both" });
    const fill = { vector: this.vectorBox, code: this.codeText };
    for (const [name, part] of Object.entries(this.parts)) fill[name] = part.root;
    this.wrong = {}; // for each view the line that says why it could not be filled
    this.panels = {};
    this.tabList = make("div", { class: "tabs", role: "tablist", "aria-label": "Beside the completions" });
    for (const [name, title] of VIEWS) {
      this.wrong[name] = make("p", { class: "warning", hidden: true });
      const tab = make("button", { type: "button", role: "tab", id: `${this.id}-tab-${name}`, "data-view": name, "aria-controls": `${this.id}-view-${name}`, onclick: () => this.turnTo(name) }, title);
      tab.addEventListener("keydown", (event) => this.tabKey(event));
      this.tabList.append(tab);
      this.panels[name] = make("div", { role: "tabpanel", class: `view view-${name}`, id: `${this.id}-view-${name}`, "aria-labelledby": tab.id, tabindex: "0" }, this.wrong[name], fill[name]);
    }
    return make("div", { class: "views" }, this.tabList, ...Object.values(this.panels));
  }

  turnTo(name) {
    this.tab(name); // at once; what is in it comes from Python
    if (this.state?.view !== name) this.set({ view: name });
  }

  tab(name) {
    for (const tab of this.tabList.children) {
      const open = tab.dataset.view === name;
      put(tab, "ariaSelected", String(open));
      put(tab, "tabIndex", open ? 0 : -1);
    }
    for (const [key, panel] of Object.entries(this.panels)) put(panel, "hidden", key !== name);
  }

  tabKey(event) {
    const tabs = [...this.tabList.children], at = tabs.indexOf(event.target);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: tabs.length - 1 }[event.key];
    if (to === undefined) return;
    const next = tabs[(to + tabs.length) % tabs.length];
    next.focus();
    this.turnTo(next.dataset.view);
    event.preventDefault();
    event.stopPropagation();
  }

  // ---- showing what Python sends

  show_state(state) {
    put(this.taskSelect, "value", state.task);
    put(this.textArea, "value", state.text);
    put(this.instructionArea, "value", state.instruction);
    this.recipe(state);
    this.more.showState(state);
    for (const [name, range] of [["k", this.kRange], ["layer", this.layerRange], ["alpha", this.alphaRange], ["max_new_tokens", this.lengthRange]]) {
      range.classList.toggle("unset", state[name] === null); // it is still looked for
      if (state[name] === null) {
        put(this[`${name}_value`], "textContent", "…");
        continue;
      }
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
    this.tab(state.view);
    this.maps.choose();
    if (this.views.head) this.parts.head.show(this.views.head);
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
    this.abilityLines.replaceChildren(...models.filter((one) => one.text).flatMap((one) => [
      ...(many ? [make("p", { class: "label" }, one.name)] : []),
      make("ul", { class: "rates", "aria-label": `Accuracy of ${one.name} on ${one.n} inputs` }, ...one.rates.map(([name, value, low, high]) =>
        make("li", {}, make("span", {}, name), make("span", { class: "track", "aria-hidden": "true" },
          make("span", { class: "fill", style: `display:block;width:${100 * value}%` }),
          make("span", { class: "reach", style: `left:${100 * low}%;width:${100 * (high - low)}%` })),
        make("span", { class: "number" }, `${value.toFixed(2)} (${low.toFixed(2)} to ${high.toFixed(2)})`)))),
      ...(one.warning ? [make("p", { class: "warning" }, one.warning)] : []),
    ]));
    this.maps.fit();
    this.formRow.hidden = !models.some((one) => one.warning);
  }

  show_task(task) {
    options(this.inputSelect, [["", "an input of the task …"], ...task.inputs.map((text) => [text, text.slice(0, 80)])]);
    options(this.instructionSelect, [["", "none: the vector's place"], ...task.instructions.map((text) => [text, text])]);
    this.fill();
    this.maps.draw(task.maps);
  }

  show_view(view) {
    put(this.wrong[view.view], "hidden", !view.error);
    put(this.wrong[view.view], "textContent", view.error ?? "");
    this.panels[view.view].classList.toggle("old", Boolean(view.error || (view.busy && !view.done)));
    if (view.error) return;
    this.views[view.view] = { ...this.views[view.view], ...view };
    this.parts[view.view]?.show(view);
    if (view.view === "head") this.maps.choose();
  }

  show_progress(progress) {
    put(this.progressBox, "hidden", !progress.what);
    if (!progress.what) return;
    if (progress.share === null) this.progressBar.removeAttribute("value");
    else this.progressBar.value = progress.share;
    const left = progress.left === null ? "" : `, ${seconds(progress.left)} left`;
    put(this.progressText, "textContent", `${progress.step ? `${progress.step} of ${progress.of}: ` : ""}${progress.what}${progress.part ? ` (${progress.part})` : ""}${left}`);
  }

  // a reload, or this address in another lab, opens the same state; without a new entry in the browser's history
  show_shared(text) {
    if (!this.facts.page) return;
    const address = packed(text);
    if (address.length <= 30000) history.replaceState(history.state, "", `#${address}`);
  }

  show_remark(text) {
    put(this.remarkLine, "textContent", text);
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
    this.more.show(result.shots);
    put(this.prompts, "textContent", prompts.join("\n———\n"));
    this.models.replaceChildren(...result.models.map((one) => this.completions(one, result, several)));
    if (result.measured) this.vectorBox.replaceChildren(...result.models.map((one) => this.vector(one, several)));
  }

  completions(model, result, titled) {
    const title = titled ? [make("h3", {}, model.name)] : [];
    const cards = model.columns.map((column) => this.completion(column, result.answers));
    if (!result.measured) cards.push(make("article", { class: "card patched", "data-column": "coming" }, make("h3", {}, "With the vector"),
      make("p", { class: "hint" }, "follows once the heads are measured")));
    return make("div", { class: "model" }, ...title, make("div", { class: "cards" }, ...cards));
  }

  completion(column, answers) {
    const title = { plain: "Plain", patched: "With the vector", random: "Random vector" }[column.name];
    const mark = column.right === null || !column.done ? [] :
      [make("p", { class: `mark ${column.right ? "right" : "wrong"}` }, column.right ? "✓ the task’s answer" : `expected ${answers[0].trim()}`)];
    const firsts = answers.map((answer) => answer.trim());
    return make("article", { class: `card ${column.name}`, "data-column": column.name },
      make("h3", {}, title),
      make("p", { class: column.done ? "text" : "text writing", tabindex: column.text.length > 60 || column.text.trim().includes("\n") ? "0" : null }, column.text.trim() || (column.done ? "(nothing)" : "")),
      make("div", { class: "judged" }, ...mark),
      bars(`Next tokens, ${title.toLowerCase()}`, column.top.slice(0, 6), 1, percent,
        (token) => token.trim() && firsts.some((answer) => answer === token.trim())));
  }

  vector({ name, vector }, titled) {
    const title = titled ? [make("h3", {}, name)] : [];
    if (!vector) return make("div", { class: "vector" }, ...title, make("p", { class: "hint" }, "No head is chosen, so nothing is added. Choose heads on the map."));
    const heads = vector.k ? `${vector.k} head${vector.k === 1 ? "" : "s"}` : "no heads of its own";
    const file = this.state?.source === "file" ? `loaded from ${this.state.file}, ` : "";
    const reach = Math.max(...vector.tokens.map(([, value]) => Math.abs(value)), 1e-9);
    return make("div", { class: "vector" }, ...title,
      make("h4", {}, "The vector alone, decoded"),
      make("p", { class: "hint" }, `${vector.task}: ${file}${heads}, norm ${vector.norm.toPrecision(3)}; logits after the final norm`),
      bars("Tokens the vector points to", vector.tokens, reach, (value) => value.toFixed(1)));
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
    if (changed && this.task) this.maps.draw(this.task.maps);
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
    const reader = this.reader((result) => this.send("load", { name: file.name, content: result.split(",", 2)[1] ?? "" }));
    reader.readAsDataURL(file);
    this.fileInput.value = "";
  }

  reader(then) {
    const reader = new FileReader();
    this.sent++; // asked for, though nothing goes out until the file is read
    this.wait();
    reader.onerror = () => this.set({});
    reader.onload = () => then(reader.result);
    return reader;
  }

  readText(file, then) {
    if (file.size > this.facts.max_shared) {
      put(this.errorLine, "textContent", `${file.name} has ${file.size} bytes, expected at most ${this.facts.max_shared}.`);
      return;
    }
    this.reader(then).readAsText(file);
  }

  saveSession() {
    const address = URL.createObjectURL(new Blob([this.shared ?? ""], { type: "application/json" }));
    make("a", { href: address, download: `lab-${this.state?.task ?? "session"}.json` }).click();
    setTimeout(() => URL.revokeObjectURL(address), 10000);
  }

  openSession() {
    const [file] = this.sessionFile.files;
    this.sessionFile.value = "";
    if (file) this.readText(file, (content) => this.send("open", { content }));
  }

  async copy() {
    try {
      await navigator.clipboard.writeText(this.code ?? "");
      this.copyButton.textContent = "Copied";
    } catch { // no permission to copy: the text is selected for the user to copy
      this.turnTo("code");
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
