// The next token layer by layer, and where along the prompt patching matters.

class ByLayer {
  constructor(page) {
    this.page = page;
    this.root = make("div", { class: "bylayer" });
  }

  show({ models }) {
    if (!models?.length) return;
    this.root.replaceChildren(make("p", { class: "hint" }, "The residual stream after each layer at the last token of the shown prompt, read through the model’s own final norm and unembedding (logit lens). The first row is the model’s output."),
      ...models.map((model) => make("div", {}, ...(models.length > 1 ? [make("h3", {}, model.name)] : []), this.table(model))));
  }

  table({ runs, layers, answer, added }) {
    const titles = { plain: "Plain", patched: "With the vector" };
    const heads = runs.flatMap((run) => [make("th", { scope: "col", colspan: answer === null ? 1 : 2 }, titles[run])]);
    const second = runs.flatMap(() => [make("th", { scope: "col" }, "likeliest tokens"), ...(answer === null ? [] : [make("th", { scope: "col" }, `“${answer}”`)])]);
    const body = [...layers].reverse().map(({ layer, runs: read }) => make("tr", { class: layer === added ? "added" : null },
      make("th", { scope: "row" }, layer === added ? `${layer} ← vector` : String(layer)),
      ...read.flatMap((one, index) => [this.tokens(one, answer), ...(answer === null ? [] : [this.answer(one, runs[index])])])));
    return make("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "The next token after every layer" }, make("table", { class: "rows lens" },
      make("thead", {}, make("tr", {}, make("th", { scope: "col", rowspan: 2 }, "Layer"), ...heads), make("tr", {}, ...second)),
      make("tbody", {}, ...body)));
  }

  tokens({ tokens, probs }, answer) {
    return make("td", {}, ...tokens.slice(0, 2).flatMap((token, rank) => [
      make("span", { class: `${rank ? "lesser second" : "first"}${token.trim() && token.trim() === answer ? " answer" : ""}`, title: `${JSON.stringify(token)} ${percent(probs[rank])}` }, visible(token)),
      make("span", { class: rank ? "lesser second" : "lesser" }, ` ${percent(probs[rank])}  `)]));
  }

  answer({ answer }, run) {
    return make("td", { class: `share ${run}` }, make("span", { class: "track", "aria-hidden": "true" },
      make("span", { class: "fill", style: `display:block;width:${(100 * answer).toFixed(1)}%` })), percent(answer));
  }
}

class ByPlace {
  constructor(page) {
    this.page = page;
    this.root = make("div", { class: "byplace" });
  }

  show({ targets, places, taken, unit, n_prompts, interval, told }) {
    if (!targets?.length) return;
    const reach = Math.max(Math.abs(taken), ...targets.flatMap((one) => one.effects.map(([mean]) => Math.abs(mean))), 1e-9);
    const row = (place, at) => make("tr", {}, make("th", { scope: "row" }, place), ...targets.map((one) => this.cell(one.effects[at], reach)));
    this.root.replaceChildren(
      make("p", { class: "hint" }, `How much of the answer’s score comes back when one activation at one place is taken from the clean prompt. All that there is to come back: ${signed(taken)} ${unit}. ${n_prompts} prompts of select inputs (${told}); in brackets: ${interval === "descriptive" ? "a 95 % interval of so few prompts that it describes them and proves nothing" : interval}.`),
      make("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "Effects of patching by place" }, make("table", { class: "rows places" },
        make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "End of"), ...targets.map((one) => make("th", { scope: "col" }, one.name)))),
        make("tbody", {}, ...places.map((place, at) => row({ last: "prompt (last token)", ...Object.fromEntries(places.filter((name) => / /.test(name)).map((name) => [name, `demonstration ${name.split(" ")[1]}: ${name.split(" ")[0]}`])) }[place] ?? place, at))))));
  }

  cell([mean, low, high], reach) {
    const scale = this.page.facts.scales[this.page.dark ? "dark" : "light"];
    // four digits are enough here: less is the rounding of a pass
    const near = (value) => (Math.abs(value) < 5e-5 ? "0" : Math.abs(value) < 0.01 ? `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(4)}` : signed(value));
    const between = low === null || low !== low ? "" : `(${near(low)} to ${near(high)})`;
    const colour = colourAt(scale, 0.5 + mean / reach / 2);
    const cell = make("td", { class: "effect" }, make("strong", {}, near(mean)), make("div", { class: "between" }, between));
    cell.style.background = colour;
    cell.style.color = inkOn(colour.startsWith("#") ? `rgb(${channels(colour).join(" ")})` : colour);
    return cell;
  }
}
