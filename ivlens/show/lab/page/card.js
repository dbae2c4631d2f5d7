// The card of one head.

const SEGMENTS = {
  start: "start", instruction: "instruction", inputs: "demonstrations’ inputs", answers: "demonstrations’ answers",
  query: "query", template: "template", sink: "nothing (sink)",
};

class HeadCard {
  constructor(page) {
    this.page = page;
    this.root = make("div", { class: "headcard" });
  }

  show(view) {
    if (!view.cards || !this.page.state) return; // after a reload a view may come before the state, which shows it again
    const several = view.cards.length > 1;
    this.root.replaceChildren(this.title(view), ...view.cards.map((card) => this.card(view, card, several)));
  }

  title(view) {
    const { state } = this.page, [layer, head] = view.head;
    const chosen = state.heads.some(([l, h]) => l === layer && h === head);
    const box = make("input", { type: "checkbox", id: `${this.page.id}-in`, "data-name": "in_vector" });
    box.checked = chosen;
    box.addEventListener("change", () => this.page.send("toggle", { head: view.head }));
    return make("div", { class: "row headline" },
      make("h3", { class: "big" }, headLabel(view.head)), make("span", { class: "hint" }, `layer ${layer}, head ${head}`),
      make("label", { for: box.id, class: "toggle" }, box, "in the vector"));
  }

  card(view, card, several) {
    return make("div", { class: "cardbody" },
      ...(several ? [make("h3", {}, card.name)] : []),
      make("div", { class: "facts" }, ...this.effects(card)),
      this.looks(card),
      make("div", { class: "two" }, this.writes(card), this.inputs(card)));
  }

  effects(card) {
    const [aie, low, high] = card.effect, here = card.here;
    const interval = low === null ? "" : ` (${signed(low)} to ${signed(high)}, ${card.interval})`;
    const alone = card.alone[1] === null || !card.interval.startsWith("sim") ? "" : ` Alone: ${signed(card.alone[1])} to ${signed(card.alone[2])} (95 %).`;
    const onThis = !here ? "…" : here.value === null ? `none: ${here.why}`
      : `${signed(here.value)} ${card.unit}${here.among ? " (one of the measured prompts)" : ""}`;
    const fact = (name, ...what) => [make("dt", {}, name), make("dd", {}, ...what)];
    return [make("dl", {},
      ...fact("Effect on the task", make("strong", {}, aie === null ? "not measured" : `${signed(aie)} ${card.unit}`),
        `${interval}; rank ${card.rank} of ${card.n_heads}, ${card.n_prompts} prompts.${alone}`),
      ...fact("Effect on this input", make("strong", { "data-fact": "here" }, onThis)),
      ...fact("Cosine with the vector", make("strong", {}, card.cosine === null ? "–" : card.cosine.toFixed(2).replace("-", "−")),
        card.norm === null ? "" : `; norm of its mean write ${card.norm.toPrecision(3)}`))];
  }

  looks(card) {
    const box = make("div", { class: "looks" }, make("h4", {}, "Where it looks, from the last token"));
    if (!card.attention) return make("div", { class: "looks" }, make("h4", {}, "Where it looks …"));
    const titles = { shown: "over the shown prompt", measured: "over this input’s prompt as heads are measured" };
    for (const one of card.attention) {
      box.append(make("p", { class: "hint" }, titles[one.name]));
      if (one.error) box.append(make("p", { class: "hint" }, one.error));
      else box.append(this.shares(one), this.shaded(one));
    }
    return box;
  }

  shares({ shares }) {
    return make("ul", { class: "shares" }, ...shares.map(([name, share]) => make("li", { class: `seg-${name}` },
      make("span", { class: "key" }), `${SEGMENTS[name]} `, make("strong", {}, percent(share)))));
  }

  // the darker a token, the more weight it has; underlines tell the parts of the prompt apart
  shaded({ name, tokens, left_out }) {
    const most = Math.max(...tokens.map(([, weight]) => weight), 1e-9);
    return make("p", { class: "shaded", tabindex: "0", role: "group", "data-prompt": name,
      "aria-label": "The prompt, shaded by the weight of each token" },
    ...(left_out ? [`… ${left_out} tokens … `] : []),
    ...tokens.flatMap(([text, weight, segment]) => {
      const shade = Math.round(100 * Math.sqrt(weight / most) * 0.62);
      const token = make("span", { class: `tok seg-${segment}`, title: `${JSON.stringify(text)}: ${percent(weight)} (${SEGMENTS[segment]})` },
        text.replace(/\n+$/, "").replaceAll("\n", "⏎") || "⏎");
      token.style.setProperty("--shade", `${shade}%`);
      return text.includes("\n") ? [token, make("br")] : [token];
    }));
  }

  writes(card) {
    const box = make("div", { class: "writes vector" }, make("h4", {}, "What it writes, decoded"));
    if (card.write_error) return make("div", {}, make("h4", {}, "What it writes"), make("p", { class: "hint" }, card.write_error));
    const reach = Math.max(...card.tokens.map(([, value]) => Math.abs(value)), 1e-9);
    box.append(bars("Tokens its mean write points to", card.tokens.slice(0, 8), reach, (value) => value.toFixed(1)),
      make("p", { class: "hint" }, `Against it: ${card.against.slice(0, 5).map(([token]) => visible(token)).join(", ")}. Logits of its mean write alone, after the final norm.`));
    return box;
  }

  inputs(card) {
    const list = (title, rows) => [make("h4", {}, title), make("ol", { class: "inputs" }, ...rows.map(([text, value]) => make("li", {},
      make("button", { type: "button", class: "link", title: "Show this input", onclick: () => this.page.set({ text }) }, text.length > 40 ? `${text.slice(0, 40)}…` : text),
      make("span", { class: "number" }, signed(value)))))];
    return make("div", {}, ...list("Effect largest on", card.most), ...list("Effect smallest on", card.least));
  }
}
