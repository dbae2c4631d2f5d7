// What belongs to the prompt besides input and instruction: demonstrations, system text, the beginning of answers, a
// template of one's own.

class MorePrompt {
  constructor(page) {
    this.page = page;
    this.rows = make("div", { class: "demos" });
    this.systemArea = page.area("system", 2);
    this.beginsArea = page.area("begins", 1);
    this.file = make("input", { type: "file", accept: ".json", class: "sr", tabindex: "-1", "aria-hidden": "true", "data-name": "template_file", onchange: () => this.upload() });
    const button = (title, onclick) => make("button", { type: "button", onclick }, title);
    this.systemField = page.label("System text (chat templates)", this.systemArea);
    this.root = make("details", { class: "more" }, make("summary", {}, "Demonstrations, system text, answer’s start …"),
      make("h4", {}, "Demonstrations in the shown prompt"), this.rows,
      make("div", { class: "row field" }, button("Redraw", () => this.redraw()), button("Add one", () => this.change([...this.shots, ["", ""]]))),
      this.systemField, page.label("Beginning of every answer", this.beginsArea),
      make("div", { class: "row" }, button("Template from a file…", () => this.file.click()), this.file));
    this.shots = [];
  }

  redraw() {
    this.page.set({ demos: null, demo_seed: (this.page.state.demo_seed ?? 0) + 1 });
  }

  // rows with an empty field are kept on the page until both are filled
  change(shots) {
    this.draw(shots);
    this.give(shots);
  }

  give(shots) {
    this.shots = shots;
    if (shots.every(([asked, answer]) => asked.trim() && answer.trim())) this.page.set({ demos: shots, bare: false });
  }

  show(shots) {
    const typing = this.rows.contains(this.page.root.getRootNode().activeElement);
    if (!typing && JSON.stringify(shots) !== JSON.stringify(this.shots)) this.draw(shots);
  }

  draw(shots) {
    this.shots = shots;
    this.rows.replaceChildren(...(shots.length ? shots.map((pair, at) => this.row(pair, at)) : [make("p", { class: "hint" }, "none")]));
  }

  row(pair, at) {
    const field = (part, name) => {
      const input = make("input", { type: "text", value: pair[part], "aria-label": `${name} of demonstration ${at + 1}`, "data-name": `demo_${name}_${at}` });
      // the rows stay as they are, so that the focus goes on to the next field
      input.addEventListener("change", () => this.give(this.shots.map((one, i) => (i === at ? one.map((text, j) => (j === part ? input.value : text)) : one))));
      return input;
    };
    return make("div", { class: "demo" }, field(0, "input"), field(1, "answer"),
      make("button", { type: "button", "aria-label": `Leave out demonstration ${at + 1}`, onclick: () => this.change(this.shots.filter((_, i) => i !== at)) }, "×"));
  }

  showState(state) {
    put(this.systemArea, "value", state.system);
    put(this.beginsArea, "value", state.begins);
    put(this.systemArea, "disabled", !state.chat);
  }

  upload() {
    const [file] = this.file.files;
    this.file.value = "";
    if (file) this.page.readText(file, (content) => this.page.send("template", { name: file.name, content }));
  }
}
