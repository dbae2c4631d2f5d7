// The lab's page. It holds no state of its own: every control sends an event, and shows what the Python side answers.
// Values travel as JSON texts, so that no types are converted between JavaScript and Python.
// The files of this folder are one script, put together in the order that view.py names: what all parts use comes first.

let n_pages = 0;
const LOST = "The lab is gone: its server has ended, or the connection to it was lost. What is shown stays; start `ivlens lab` again, or reload the page if it still runs.";
const SILENT = "The lab does not answer: its server is stopped, or the connection to it is broken. This goes away when it answers.";
const BUSY = "Python does not answer: the kernel runs another cell, or has ended. This goes away when it answers.";
const PATIENCE = 8000; // milliseconds; Python answers an event within this time, even while it computes
const CHANNELS = ["state", "ability", "task", "result", "view", "code", "status", "progress", "running", "remark", "shared"];
const VIEWS = [["head", "Head"], ["many", "Many inputs"], ["layers", "By layer"], ["places", "By place"], ["vector", "Vector"], ["code", "Code"]];
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

// two significant digits where a value is small, so that small effects do not all read 0.00
function digits(value) {
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size >= 0.0995) return size.toFixed(size < 9.95 ? 2 : 1);
  return size < 1e-4 ? size.toExponential(1).replace("-", "−") : size.toFixed(1 - Math.floor(Math.log10(size) + 1e-9));
}

function signed(value) {
  return `${value < 0 ? "−" : "+"}${digits(value)}`;
}

function percent(p) {
  return `${(100 * p).toFixed(p < 0.0995 ? 1 : 0)} %`;
}

// the state in the page's address: base64 without signs that addresses use otherwise
function packed(text) {
  const bytes = new TextEncoder().encode(text);
  let letters = "";
  for (const byte of bytes) letters += String.fromCharCode(byte);
  return btoa(letters).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
}

function unpacked(text) {
  try {
    const letters = atob(text.replaceAll("-", "+").replaceAll("_", "/"));
    return new TextDecoder("utf-8", { fatal: true }).decode(Uint8Array.from(letters, (letter) => letter.charCodeAt(0)));
  } catch {
    return text; // Python says that it cannot be read
  }
}

function headLabel([layer, head]) {
  return `L${layer}H${head}`;
}

function seconds(left) {
  return left < 90 ? `${Math.max(1, Math.round(left))} s` : `${Math.round(left / 60)} min`;
}

// a list of tokens with bars
function bars(name, pairs, reach, number, isAnswer = () => false) {
  return make("ol", { class: "bars", "aria-label": name }, ...pairs.map(([token, value]) =>
    make("li", {},
      make("span", { class: isAnswer(token) ? "token answer" : "token", title: JSON.stringify(token) }, visible(token)),
      make("span", { class: "track", "aria-hidden": "true" },
        make("span", { class: "fill", style: `display:block;width:${Math.max(0, 100 * value / reach).toFixed(1)}%` })),
      make("span", { class: "number" }, number(value)))));
}
