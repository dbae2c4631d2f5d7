"""The lab as its users meet it: in a real browser, in three tabs at once, by keyboard, in JupyterLab, offline."""

import json
import re
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from browser import chromium, running

import ivlens
from ivlens.forward.completions import complete
from ivlens.vectors import InstructionVector

LAB = ("ivlens", "lab", "--no-browser", "--task", "antonym", "--task", "english_french", "--task", "synonym")
WIDE = {"width": 1440, "height": 900}


@pytest.fixture(scope="module")
def browser() -> Iterator:
    path = chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        opened = play.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def address(browser) -> Iterator[str]:
    with running(*LAB, "--text", "big") as url:
        yield url


class Tab:
    """One page of the lab, with everything that went wrong on it."""

    patience = 60_000  # milliseconds until it must have settled

    def __init__(self, page, url: str) -> None:
        self.page, self.complaints, self.foreign = page, [], []
        own = urlsplit(url).netloc
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", self._hear)
        page.on("request", lambda request: self._see(request.url, own))
        page.on("websocket", lambda socket: self._see(socket.url, own))
        page.goto(url)
        self.settle()

    def _hear(self, message) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def _see(self, url: str, own: str) -> None:
        if urlsplit(url).scheme not in ("data", "blob") and urlsplit(url).netloc != own:
            self.foreign.append(url)

    def settle(self) -> "Tab":
        """Wait until the last event is answered: every control acknowledged, nothing being done."""
        self.page.wait_for_function(_SETTLED, timeout=self.patience)
        return self

    def text(self, column: str) -> str:
        return self.page.locator(f'[data-column="{column}"] .text').first.inner_text().strip()

    def control(self, name: str):
        return self.page.locator(f'[data-name="{name}"]')

    def slide(self, name: str, value: float) -> "Tab":
        self.control(name).evaluate(
            "(node, value) => { node.value = value; node.dispatchEvent(new Event('input', {bubbles: true})); }", value
        )
        return self.settle()

    def choose(self, name: str, value: str) -> "Tab":
        self.control(name).select_option(value)
        return self.settle()

    def chosen(self) -> set[str]:
        cells = self.page.locator('td[aria-selected="true"]')
        return set(cells.evaluate_all("nodes => nodes.map(node => node.dataset.head)"))


# shadow roots are searched by hand: a page function does not look into them
_SETTLED = """() => {
  const find = (root, selector) => {
    const own = root.querySelector(selector);
    if (own) return own;
    for (const node of root.querySelectorAll('*')) {
      const found = node.shadowRoot && find(node.shadowRoot, selector);
      if (found) return found;
    }
    return null;
  };
  return find(document, '.lab')?.ariaBusy === 'false'
    && (find(document, '.card') || find(document, '.error')?.textContent) && !find(document, '.writing');
}"""


@pytest.fixture
def new_tab(browser, address) -> Iterator:
    contexts, tabs = [], []

    def open_tab(url: str = address, **options) -> Tab:
        contexts.append(browser.new_context(**{"viewport": WIDE, "accept_downloads": True, **options}))
        tabs.append(Tab(contexts[-1].new_page(), url))
        return tabs[-1]

    yield open_tab
    for context in contexts:
        context.close()
    for tab in tabs:
        assert (tab.foreign, tab.complaints) == ([], [])


def test_page_loads_without_complaints_or_foreign_requests(new_tab, address):
    tab = new_tab()
    assert tab.text("patched") == "small" and tab.text("plain") != "small"
    assert "token" not in tab.page.url and tab.page.title() == "ivlens lab"
    assert tab.page.locator("td[data-head]").count() == 48 and len(tab.chosen()) == 10
    assert tab.page.locator('[data-column="patched"] .bars li').count() == 6
    tab.page.reload()
    assert tab.settle().text("patched") == "small"


def test_strength_changes_the_patched_text_and_not_the_plain_one(new_tab):
    tab = new_tab()
    plain, patched = tab.text("plain"), tab.text("patched")
    tab.slide("alpha", 0)
    assert tab.text("plain") == plain == tab.text("patched") != patched
    tab.slide("alpha", 4)
    assert (tab.text("plain"), tab.text("patched")) == (plain, patched)


def test_dragging_ends_with_the_last_value(new_tab):
    tab = new_tab()
    patched = tab.text("patched")
    values = [-16, -8, 0, 8, 16, 2, 0, 4]
    tab.control("alpha").evaluate(
        "async (node, values) => { for (const value of values) { node.value = value; "
        "node.dispatchEvent(new Event('input')); await new Promise(done => setTimeout(done, 25)); } }",
        values,
    )
    tab.settle()
    assert tab.control("alpha").input_value() == "4" and tab.text("patched") == patched


def test_click_on_a_head_changes_the_vector(new_tab):
    tab = new_tab()
    before, note = tab.chosen(), tab.page.locator(".view-vector .hint").text_content()
    tab.page.locator('td[data-head="L5H5"]').click(modifiers=["Shift"])
    tab.settle()
    assert tab.chosen() == before | {"L5H5"}
    changed = tab.page.locator(".view-vector .hint").text_content()
    assert "11 heads" in changed and changed.split("norm")[1] != note.split("norm")[1]
    tab.page.locator('td[data-head="L5H5"]').click(modifiers=["Shift"])
    assert tab.settle().chosen() == before
    tab.page.get_by_role("button", name="No heads").click()
    tab.settle()
    assert tab.chosen() == set() and tab.text("patched") == tab.text("plain")
    tab.slide("k", 3)
    assert len(tab.chosen()) == 3


def test_a_click_opens_the_card_of_a_head(new_tab):
    tab = new_tab()
    before, patched = tab.chosen(), tab.text("patched")
    tab.page.locator('td[data-head="L3H4"]').click()
    tab.settle()
    card = tab.page.locator(".headcard")
    assert card.locator("h3").first.inner_text() == "L3H4" and tab.chosen() == before
    assert tab.page.locator("td.current").get_attribute("data-head") == "L3H4"
    facts = card.locator("dl").inner_text()
    assert re.search(r"Effect on the task\s+[+−]\d.* probability \(", facts) and "Cosine with the vector" in facts
    shares = card.locator(".shares").last.inner_text()
    assert "instruction" in shares and "query" in shares
    measured = card.locator('[data-prompt="measured"]')
    assert "Instruction:" in measured.inner_text() and measured.locator(".seg-instruction").count() > 2
    tints = measured.locator(".tok").evaluate_all("nodes => nodes.map(node => getComputedStyle(node).backgroundColor)")
    assert len(set(tints)) > 2, "tokens of different weights have different shades"
    assert card.locator(".bars li").count() == 8 and card.locator(".inputs li").count() == 10
    card.locator('[data-name="in_vector"]').click()
    assert tab.settle().chosen() == before ^ {"L3H4"} and tab.text("plain") != patched
    card.locator('[data-name="in_vector"]').click()
    assert tab.settle().chosen() == before
    card.locator(".inputs button").first.click()
    tab.settle()
    assert tab.control("text").input_value() != "big" and "measured prompts" in card.locator("dl").inner_text()


def test_many_inputs_are_sorted_by_a_click(new_tab):
    tab = new_tab()
    tab.page.get_by_role("tab", name="Many inputs").click()
    tab.page.locator('[data-total="patched"]').wait_for()
    tab.settle()
    rows = tab.page.locator(".many tbody tr")
    assert rows.count() == 32
    rate = float(re.search(r"(\d\.\d\d) \(", tab.page.locator('[data-total="patched"]').inner_text())[1])
    good = tab.page.locator(".many tbody td:nth-child(4) .mark").count()
    assert rate == pytest.approx(good / 32, abs=0.006) and rate > 0.8
    first = rows.first.inner_text()
    tab.page.locator('[data-sort="patched"]').click()
    assert tab.page.locator('th[aria-sort="ascending"]').inner_text().startswith("With the vector")
    marks = rows.evaluate_all("nodes => nodes.map(node => Boolean(node.cells[3].querySelector('.mark')))")
    assert marks == sorted(marks, reverse=True), "right answers come first"
    tab.page.locator('[data-sort="patched"]').click()
    assert rows.last.inner_text() != first
    tab.page.locator(".many tbody button").first.click()
    assert tab.settle().control("text").input_value() != "big"


def test_by_layer_and_by_place(new_tab):
    tab = new_tab()
    tab.page.get_by_role("tab", name="By layer").click()
    rows = tab.page.locator(".lens tbody tr")
    rows.first.wait_for()
    assert tab.settle() and rows.count() == 6
    assert rows.first.locator(".answer").first.inner_text() == "small", "the model's output stands first"
    assert tab.page.locator("tr.added th").inner_text().endswith("vector")
    tab.page.get_by_role("tab", name="By place").click()
    tab.page.locator(".places tbody tr").first.wait_for()
    tab.settle()
    assert tab.page.locator(".places tbody th").all_inner_texts() == ["instruction", "query", "prompt (last token)"]
    cells = tab.page.locator(".places td")
    assert cells.first.inner_text().split("\n")[0] == "0", "rounding is no effect"
    assert re.fullmatch(r"\+1\.00\n\(\+0\.99 to \+1\.00\)", cells.nth(6).inner_text())
    tints = cells.evaluate_all("nodes => nodes.map(node => getComputedStyle(node).backgroundColor)")
    assert tints[0] == tints[3] != tints[6] == tints[7]
    tab.page.set_viewport_size({"width": 420, "height": 800})
    tab.page.get_by_role("tab", name="By layer").click()
    tab.settle()
    wide = tab.page.locator(".bylayer .scroll").evaluate("node => node.scrollWidth - node.clientWidth")
    assert wide <= 1, "both runs are seen on a phone"


def test_the_address_holds_the_state(new_tab, address, tmp_path: Path):
    tab = new_tab()
    tab.slide("k", 3)
    tab.control("text").fill("hot ⟨x⟩ #%")
    tab.settle().slide("alpha", -2.5)
    shown = [tab.text("plain"), tab.text("patched"), tab.chosen()]
    url = tab.page.url
    assert "#" in url and "token" not in url and "hot" not in url
    tab.page.reload()
    tab.settle()
    assert [tab.text("plain"), tab.text("patched"), tab.chosen()] == shown and tab.page.url == url
    # the address with the token leads on to the page, and the state comes along
    other = new_tab(address + "#" + url.partition("#")[2])
    assert other.control("text").input_value() == "hot ⟨x⟩ #%" and other.control("alpha").input_value() == "-2.5"
    assert other.chosen() == shown[2] and "token" not in other.page.url
    with tab.page.expect_download() as saved:
        tab.page.get_by_role("button", name="Save session").click()
    path = tmp_path / saved.value.suggested_filename
    saved.value.save_as(path)
    third = new_tab()
    assert third.control("text").input_value() == "big"
    third.control("session_file").set_input_files(path)
    third.page.wait_for_timeout(300)
    assert third.settle().control("text").input_value() == "hot ⟨x⟩ #%" and third.chosen() == shown[2]
    wrong = new_tab(address + "#nonsense")
    assert "cannot be read" in wrong.page.locator(".remark").text_content() and wrong.text("patched") == "small"


def test_demonstrations_are_edited_on_the_page(new_tab):
    tab = new_tab()
    shown = tab.page.get_by_label("The prompt as the model gets it")
    tab.choose("n_shots", "2")
    tab.page.locator(".more summary").click()
    before = shown.inner_text()
    tab.page.get_by_role("button", name="Redraw").click()
    tab.page.wait_for_timeout(300)
    assert tab.settle() and shown.inner_text() != before
    tab.control("demo_input_0").fill("up")
    tab.control("demo_input_0").press("Tab")
    assert tab.page.evaluate(_FOCUS) == "demo_answer_0", "the focus goes on to the next field"
    tab.control("demo_answer_0").fill("down")
    tab.control("demo_answer_0").press("Tab")
    tab.page.wait_for_timeout(300)
    assert tab.settle() and shown.inner_text().startswith("Input: up\nOutput: down\n")
    tab.page.get_by_label("Leave out demonstration 2").click()
    tab.page.wait_for_timeout(300)
    assert tab.settle() and shown.inner_text() == "Input: up\nOutput: down\n\nInput: big\nOutput:"
    tab.control("begins").fill("the word")
    tab.page.wait_for_timeout(400)
    assert tab.settle() and shown.inner_text().endswith("Output: the word down\n\nInput: big\nOutput: the word")
    assert tab.control("system").is_disabled(), "the template is no chat"


_FOCUS = """() => {
  let at = document.activeElement;
  while (at.shadowRoot?.activeElement) at = at.shadowRoot.activeElement;
  return at.dataset.name;
}"""


@pytest.mark.parametrize(
    ("n_layers", "n_heads"), [pytest.param(30, 9, marks=pytest.mark.slow), (32, 32)], ids=["30 x 9", "32 x 32"]
)
def test_what_matters_fits_the_screen_at_real_size(new_tab, tmp_path_factory, n_layers, n_heads):
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("wide")
    config = AutoConfig.from_pretrained(ivlens.pocket_path())
    config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads = n_layers, n_heads, n_heads
    config.hidden_size, config.intermediate_size, config.head_dim = 4 * n_heads, 32, 4
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(ivlens.pocket_path()).save_pretrained(folder)
    few = ("--n-prompts", "6", "--n-search", "0", "--layer", "1", "--alpha", "1", "--template", "plain")
    with running(*LAB[:5], "--model", str(folder), *few) as url:
        tab = new_tab(url, viewport={"width": 1400, "height": 900})
        assert tab.page.locator("td[data-head]").count() == n_layers * n_heads
        assert tab.page.evaluate("document.documentElement.scrollHeight <= innerHeight")
        panel = tab.page.locator(".panel.middle")
        assert panel.evaluate("node => node.scrollHeight <= node.clientHeight && node.scrollWidth <= node.clientWidth")
        ranks = tab.page.locator("td.ranked").all_inner_texts()
        assert sorted(map(int, ranks)) == list(range(1, len(ranks) + 1)) and 1 <= len(ranks) <= 10
        small = tab.page.locator("td.ranked").first
        assert small.evaluate("node => node.scrollWidth <= node.clientWidth + 1"), "the rank fits its cell"
        assert tab.page.locator(".axis").all_inner_texts() == ["layer", "head"]
        for part in (".card.plain", ".card.patched", ".tabs", ".rates"):
            box = tab.page.locator(part).first.bounding_box()
            assert box["y"] + box["height"] <= 900 and box["x"] + box["width"] <= 1400, part
        small.click()
        tab.settle()
        effect = tab.page.locator(".headcard dd strong").first.inner_text()
        assert re.search(r"[+−](0\.0*[1-9]\d|\d\.\de|[1-9])", effect), "two significant digits"


def test_map_by_keyboard(new_tab):
    tab = new_tab()
    before = tab.chosen()
    tab.page.locator('td[tabindex="0"]').focus()
    for key in ("PageUp", "End", "ArrowLeft", "ArrowDown", " "):
        tab.page.keyboard.press(key)
    tab.settle()
    assert tab.chosen() == before ^ {"L4H6"}
    assert "layer 4, head 6" in tab.page.locator(".about").inner_text()
    tab.page.keyboard.press("Enter")
    tab.settle()
    assert tab.page.locator(".headcard h3").first.inner_text() == "L4H6" and tab.chosen() == before ^ {"L4H6"}
    focused = "document.activeElement.shadowRoot ? 1 : 0"
    assert tab.page.evaluate(focused) == 1, "the map was drawn anew and lost the focus"


@pytest.mark.slow
def test_three_tabs_at_once(new_tab, monkeypatch):
    model = ivlens.load_model("pocket")
    monkeypatch.setattr(ivlens, "load_model", lambda name: model)  # the codes below need not load it three times
    tabs = [new_tab() for _ in range(3)]
    for tab, task in zip(tabs, ("antonym", "english_french", "synonym"), strict=True):
        tab.control("task").select_option(task)
    for tab in tabs:
        tab.settle()
    for round in ((4, -4, 2), (2, 4, 4)):
        for tab, alpha in zip(tabs, round, strict=True):
            tab.control("alpha").evaluate(
                "(node, value) => { node.value = value; node.dispatchEvent(new Event('input')); }", alpha
            )
    plain = complete(model, ["Input: big\nOutput:"], max_new_tokens=12)[0].strip()
    for tab in tabs:
        tab.settle()
        code = tab.page.locator(".view-code pre").text_content()
        printed: list[str] = []
        exec(code, {"print": lambda texts, printed=printed: printed.append(texts[0].strip())})
        assert [tab.text("plain"), tab.text("patched")] == printed
        assert printed[0] == plain
    assert len({tab.text("patched") for tab in tabs}) == 3


def test_random_vector_template_and_instruction(new_tab):
    tab = new_tab()
    tab.page.get_by_role("checkbox", name="Random vector of equal norm").check()
    tab.settle()
    first = tab.page.locator('[data-column="random"] .bars').inner_text()
    tab.page.get_by_role("button", name="Draw another").click()
    tab.settle()
    assert tab.page.locator('[data-column="random"] .bars').inner_text() != first
    tab.choose("template", "after")
    tab.control("instruction").fill("Give the opposite of the word.")
    tab.settle()
    prompt = tab.page.get_by_label("The prompt as the model gets it").inner_text()
    assert prompt == "Input: big\nInstruction: Give the opposite of the word.\nOutput:"
    assert tab.text("plain") == "small"
    tab.control("text").fill("")
    tab.settle()
    assert "the input is empty" in tab.page.locator(".error").text_content()
    tab.control("text").fill("hot")
    assert tab.settle().text("plain") == "cold"
    assert tab.page.locator(".error").text_content() == ""


@pytest.mark.slow
def test_demonstrations_stand_in_the_shown_and_the_measured_prompts(new_tab):
    tab = new_tab()
    shown = tab.page.get_by_label("The prompt as the model gets it")
    tab.choose("n_shots", "3")
    assert shown.inner_text().count("Output:") == 4
    assert "n_shots=3, seed=0)" in tab.page.locator(".view-code pre").text_content()
    tab.page.get_by_role("checkbox", name="Bare").check()
    assert tab.settle() and shown.inner_text() == "Input: big\nOutput:"
    tab.choose("told", '"none"')
    assert "instruction=None, n_shots=3" in tab.page.locator(".view-code pre").text_content()
    tab.control("instruction").fill("Say the opposite.")
    tab.settle().choose("told", '["Say the opposite."]')
    assert "instruction='Say the opposite.', n_shots=3" in tab.page.locator(".view-code pre").text_content()
    tab.choose("task", "english_french").choose("n_shots", "")
    assert tab.control("told").input_value() == '"task"' and tab.page.locator(".error").text_content() == ""


def test_save_load_and_copy(new_tab, tmp_path: Path):
    tab = new_tab(permissions=["clipboard-read", "clipboard-write"])
    with tab.page.expect_download() as saved:
        tab.page.get_by_role("button", name="Save vector").click()
    path = tmp_path / saved.value.suggested_filename
    saved.value.save_as(path)
    assert {f"L{layer}H{head}" for layer, head in InstructionVector.load(path).heads} == tab.chosen()
    patched = tab.text("patched")
    tab.slide("k", 1)
    assert tab.text("patched") != patched
    tab.page.locator('input[accept=".safetensors"]').set_input_files(path)
    tab.settle()
    assert (
        tab.text("patched") == patched
        and "loaded from antonym.safetensors" in tab.page.locator(".view-vector .hint").text_content()
    )
    tab.page.get_by_role("button", name="Copy as Python").click()
    copied = tab.page.evaluate("navigator.clipboard.readText()")
    assert copied == tab.page.locator(".view-code pre").text_content() and "InstructionVector.load(" in copied
    (tmp_path / "notes.safetensors").write_bytes(b"no vector")
    tab.page.locator('input[accept=".safetensors"]').set_input_files(tmp_path / "notes.safetensors")
    tab.page.wait_for_timeout(500)
    assert "notes.safetensors" in tab.page.locator(".error").text_content()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(new_tab, scheme):
    from axe_playwright_python.sync_playwright import Axe

    tab = new_tab(color_scheme=scheme)
    tab.page.get_by_role("checkbox", name="Random vector of equal norm").check()
    tab.settle()
    views = tab.page.get_by_role("tab")
    for number in range(views.count()):
        views.nth(number).click()
        tab.settle()
        found = Axe().run(tab.page).response["violations"]
        assert not found, "\n".join(f"{each['id']} ({each['impact']}): {each['nodes'][0]['html']}" for each in found)


def test_every_control_is_reached_by_tab(new_tab):
    tab = new_tab()
    tab.page.locator("h1").click()
    reached = []
    for _ in range(70):
        tab.page.keyboard.press("Tab")
        where = tab.page.evaluate(
            "() => { let at = document.activeElement;"
            "  while (at.shadowRoot?.activeElement) at = at.shadowRoot.activeElement;"
            "  const box = at.getBoundingClientRect();"
            "  const own = at.dataset?.name || at.dataset?.head || at.dataset?.view;"
            "  const name = own || at.textContent.trim().slice(0, 30);"
            "  return [name, box.width, box.height]; }"
        )
        reached.append(where)
    names = [name for name, _, _ in reached]
    wanted = (
        "task text input instruction paraphrase template n_shots bare max_new_tokens told k layer alpha site".split()
    )
    wanted += [
        "positions",
        "Save vector",
        "Load vector…",
        "Copy as Python",
        "Draw another",
        "Find layer and strength",
        "No heads",
    ]
    assert set(wanted) <= set(names)
    assert any(re.fullmatch(r"L\dH\d", name) for name in names) and {"head", "in_vector"} <= set(names)
    order = [names.index(name) for name in wanted[:15]]
    assert order == sorted(order), names
    assert all(width > 8 and height > 8 for name, width, height in reached if name in wanted)


def test_narrow_page_needs_no_sideways_scrolling(new_tab):
    tab = new_tab(viewport={"width": 380, "height": 800})
    assert tab.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_only_this_machine_is_listened_to(address):
    port = urlsplit(address).port
    other = socket.gethostbyname(socket.gethostname())
    if other.startswith("127."):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect(("192.0.2.1", 9))  # sends nothing; tells the address of this machine
                other = probe.getsockname()[0]
            except OSError:
                pytest.skip("this machine has no other address than 127.0.0.1 to ask on")
    with socket.socket() as client:
        client.settimeout(3)
        assert client.connect_ex((other, port)) != 0


@pytest.mark.slow
def test_two_checkpoints_on_one_page(new_tab, tmp_path_factory):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("tuned")
    tuned = AutoModelForCausalLM.from_pretrained(ivlens.pocket_path())
    with torch.no_grad():
        tuned.lm_head.weight.add_(0.05 * torch.randn_like(tuned.lm_head.weight))
    tuned.save_pretrained(folder)
    AutoTokenizer.from_pretrained(ivlens.pocket_path()).save_pretrained(folder)
    with running(*LAB[:5], "--compare", str(folder), "--text", "big", "--layer", "1", "--alpha", "4") as url:
        tab = new_tab(url)
        assert tab.page.locator('[role="grid"]').count() == 3 and tab.page.locator(".model").count() == 2
        names = tab.page.locator(".one h3").all_inner_texts()
        assert names[0] == "pocket" and names[1] == folder.name and names[2] == f"{folder.name} − pocket"
        tab.page.locator('td[data-head="L5H5"]').nth(1).click(modifiers=["Shift"])
        tab.settle()
        assert tab.page.locator('td[data-head="L5H5"][aria-selected="true"]').count() == 3
        tab.choose("donor", "first")
        assert "iv = iv.for_model(model)" in tab.page.locator(".view-code pre").text_content()


def notebook(folder: Path) -> Path:
    source = "import ivlens\nlab = ivlens.lab('pocket', tasks=['antonym', 'synonym'], text='big')\nlab"
    cells = [{"cell_type": "code", "execution_count": None, "id": "a", "metadata": {}, "outputs": [], "source": source}]
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    path = folder / "lab.ipynb"
    path.write_text(json.dumps({"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}))
    return path


@pytest.mark.slow
def test_same_page_in_jupyterlab(browser, tmp_path: Path):
    notebook(tmp_path)
    options = ["--no-browser", "--allow-root", "--ip=127.0.0.1", "--port=0", f"--ServerApp.root_dir={tmp_path}"]
    options += ["--LabApp.news_url=", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    with running("jupyterlab", *options, announce=r"(http://127\.0\.0\.1:\d+/lab\?token=\w+)", warm=False) as url:
        context = browser.new_context(viewport=WIDE)
        page = context.new_page()
        page.goto(url.replace("/lab?", "/lab/tree/lab.ipynb?"))
        page.locator(".jp-Notebook .jp-Cell").first.wait_for(timeout=60_000)
        page.get_by_text("(ipykernel) | Idle").first.wait_for(timeout=60_000)
        for _ in range(5):  # JupyterLab drops a run that it is asked for before its kernel is there
            page.locator(".jp-Notebook .jp-Cell .cm-content").first.click()
            page.keyboard.press("Control+Enter")
            page.wait_for_timeout(2000)
            if "*" in page.locator(".jp-Notebook .jp-InputPrompt").first.inner_text():
                break
        patched = page.locator('[data-column="patched"] .text:not(.writing)')
        patched.wait_for(timeout=120_000)
        page.wait_for_function(_SETTLED, timeout=60_000)
        assert patched.inner_text().strip() == "small"
        before = page.locator('td[aria-selected="true"]').count()
        page.locator('td[data-head="L5H5"]').click(modifiers=["Shift"])
        page.locator('td[data-head="L5H5"][aria-selected="true"]').wait_for(timeout=20_000)
        assert page.locator('td[aria-selected="true"]').count() == before + 1
        page.locator('[data-name="alpha"]').evaluate(
            "node => { node.value = 0; node.dispatchEvent(new Event('input')); }"
        )
        page.wait_for_timeout(600)
        page.wait_for_function(_SETTLED, timeout=60_000)
        assert patched.inner_text() == page.locator('[data-column="plain"] .text').inner_text() != "small"
        context.close()


def test_a_page_says_what_other_pages_are_at(new_tab):
    one, other = new_tab(), new_tab()
    line = one.page.locator(".running")
    assert line.text_content() == ""
    length = other.control("max_new_tokens")
    length.evaluate("node => { node.max = 250; }")
    one.page.evaluate(_WATCH)
    other.slide("max_new_tokens", 250)
    said = one.page.evaluate("window.said.filter(text => text)")
    form = re.compile(r"This is page \d+\. At work: page \d+ \([a-z].*, \d+ s\)\.")
    assert said and all(form.fullmatch(each) for each in said)
    one.page.wait_for_function("() => window.said.at(-1) === ''")


_WATCH = """() => {
  const find = root => root.querySelector('.running') ?? [...root.querySelectorAll('*')]
    .map(node => node.shadowRoot && find(node.shadowRoot)).find(Boolean);
  const line = find(document);
  window.said = [];
  const all = { childList: true, characterData: true, subtree: true };
  new MutationObserver(() => window.said.push(line.textContent)).observe(line, all);
}"""


def test_a_file_that_is_too_large_is_refused_before_it_is_sent(new_tab, tmp_path: Path):
    tab = new_tab()
    patched = tab.text("patched")
    for n_bytes, said in (
        (15_950_000, "is no file of InstructionVector.save|cannot|not a|expected"),
        (16_000_001, "at most 16000000"),
    ):
        path = tmp_path / f"{n_bytes}.safetensors"
        path.write_bytes(b"\1" * n_bytes)
        tab.page.locator('input[accept=".safetensors"]').set_input_files(path)
        tab.page.locator(".error", has_text=path.name).wait_for(timeout=30_000)
        assert re.search(said, tab.page.locator(".error").text_content())
    tab.slide("alpha", 0)  # the connection is still there
    assert tab.text("patched") != patched and tab.page.locator(".gone").text_content() == ""


def test_a_page_of_another_port_can_neither_frame_nor_read_it(new_tab, address, browser):
    tab, parts = new_tab(), urlsplit(address)
    base = f"http://{parts.netloc}{parts.path}"
    page = f"""<iframe src="{base}"></iframe><img src="{base}favicon.ico"><script>
      window.found = [];
      const asked = fetch("{base}", {{credentials: "include", mode: "no-cors"}});
      asked.then(answer => found.push(answer.type), () => found.push("refused"));
      const socket = new WebSocket("{base.replace("http", "ws")}ws", ["bokeh", "e30"]);
      socket.onopen = () => found.push("open");
      socket.onerror = () => found.push("closed");
    </script>"""

    class Other(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(page.encode())

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Other) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        other = tab.page.context.new_page()  # with the lab's cookie, as another tab of the same browser
        statuses = []
        other.on("response", lambda answer: statuses.append(answer.status) if parts.path in answer.url else None)
        other.goto(f"http://127.0.0.1:{server.server_port}/")
        other.wait_for_function("() => window.found.length >= 2")
        other.wait_for_timeout(500)
        assert set(other.evaluate("window.found")) == {"refused", "closed"}
        assert statuses and set(statuses) == {403}
        other.close()
        server.shutdown()


def test_a_page_whose_server_is_gone_says_so(browser):
    page = browser.new_context(viewport=WIDE).new_page()
    with running(*LAB[:5], "--text", "big", "--layer", "1", "--alpha", "4") as url:
        page.goto(url)
        page.wait_for_function(_SETTLED, timeout=60_000)
        assert page.locator(".gone").text_content() == ""
        patched = page.locator('[data-column="patched"] .text').inner_text()
    page.locator(".gone", has_text="The lab is gone").wait_for(timeout=20_000)
    assert page.locator('[data-column="patched"] .text').inner_text() == patched
    page.context.close()
