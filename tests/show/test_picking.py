"""The clickable map: in Python, in a real browser, and in JupyterLab."""

import json
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from browser import chromium, running
from test_figures import effects, holding

import ivlens
from ivlens.vectors import InstructionVector

pn = pytest.importorskip("panel")

from ivlens.show.picking import opening  # noqa: E402, needs panel
from ivlens.show.picking.picked import Picked, facts  # noqa: E402


@pytest.fixture(scope="module")
def browser() -> Iterator:
    path = chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        opened = play.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


# --- in Python -------------------------------------------------------------------------------------------------------


def test_chosen_heads_make_a_vector() -> None:
    model, task = ivlens.load_model("pocket"), ivlens.load_task("antonym")
    measured = ivlens.head_effects(model, task, n_prompts=4)
    picked = Picked(measured, measured.top_heads(3))
    assert picked.heads == measured.top_heads(3)
    assert torch.equal(picked.vector().theta, InstructionVector.from_effects(measured, k=3).theta)
    weakest = measured.top_heads(48)[-1]
    picked._view.chosen = json.dumps([list(weakest), list(measured.top_heads(1)[0])])
    assert picked.heads == [measured.top_heads(1)[0], weakest], "strongest first, whatever the order of the clicks"
    assert picked.vector().heads == tuple(picked.heads)
    picked.choose([])
    assert repr(picked) == "Picked('antonym': no heads)"
    with pytest.raises(ValueError, match="no heads are chosen on the map, expected one or more; click some"):
        picked.vector()


def test_heads_that_are_none_are_refused_from_python_and_passed_over_from_a_page() -> None:
    picked = Picked(effects(measured=5), [(0, 1)])
    with pytest.raises(ValueError, match="L2H3 among them, expected different heads that were measured"):
        picked.choose([(2, 3)])
    with pytest.raises(ValueError, match="one of them twice"):
        picked.choose([(0, 1), (0, 1)])
    assert picked.heads == [(0, 1)], "unchanged"
    for sent in ("[[2, 3], [99, 0]]", "no json", "3", "[1, 2]", '[["a", "b"]]', "[[0]]", "[" * 100_000):
        picked._view.chosen = sent
        assert picked.heads == []


def test_without_a_notebook_or_panel_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="no notebook, expected one; run it in JupyterLab, or name the heads"):
        effects().pick()
    with pytest.raises(ValueError, match="k is 13, expected 1 to 12"):
        effects().pick(13)
    monkeypatch.setitem(sys.modules, "panel", None)
    with pytest.raises(ImportError, match=r"pip install 'ivlens\[lab\]', or name the heads"):
        effects().pick()
    monkeypatch.undo()
    monkeypatch.setattr(opening, "_is_notebook", lambda: True)
    assert effects().pick(2).heads == [(2, 3), (1, 0)] and effects().pick(0).heads == []


def test_the_map_says_what_the_figure_says() -> None:
    found = effects(measured=11)
    told = facts(found)
    assert told["cells"][2][3] is None, "not measured"
    head = told["cells"][1][0]
    low, high = (float(end[1, 0]) for end in found.interval(simultaneous=True))
    assert head["text"].startswith(f"Layer 1, head 0: {float(found.aie[1, 0]):+.2g}, ") and head["rank"] == "1"
    assert f"{low:+.2g} to {high:+.2g}" in head["text"] and head["text"].endswith("rank 1")
    assert told["cells"][1][1]["grounds"] == told["greys"] and head["grounds"] != told["greys"]
    assert told["unit"] == "AIE (probability)" and json.dumps(told)
    assert facts(holding(found.cie[:1]))["unsure"] == "", "one prompt has no interval"


# --- in a browser ----------------------------------------------------------------------------------------------------


def two_maps():
    """A small map, a large one, and in words what Python knows of both."""
    cie = 0.001 * torch.randn(16, 32, 32, generator=torch.Generator().manual_seed(0))
    cie[:, 20, 5] += 0.4
    cie[:, 18, 6] += 0.3
    cie[:, 3, 3] -= 0.2
    small, large = Picked(effects(), [(2, 3)]), Picked(holding(cie), [(20, 5), (18, 6)])
    shown = pn.widgets.StaticText(label="python")
    for each in (small, large):
        each._view.param.watch(lambda event: setattr(shown, "value", f"{small.heads} {large.heads}"), "chosen")
    return pn.Column(small, large, shown, sizing_mode="stretch_width")


@pytest.fixture(scope="module")
def address(browser) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = pn.serve(two_maps, port=port, show=False, threaded=True, address="127.0.0.1")
    yield f"http://127.0.0.1:{port}"
    server.stop()
    server.join(timeout=20)


@pytest.fixture(params=["light", "dark"])
def page(request, browser, address) -> Iterator:
    context = browser.new_context(color_scheme=request.param, viewport={"width": 1100, "height": 1200})
    opened, complaints = context.new_page(), []
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
    opened.goto(address)
    opened.locator(".pick").nth(1).wait_for(timeout=60_000)
    yield opened
    assert not complaints
    context.close()


def chosen(map) -> list[str]:
    return map.locator('td[aria-selected="true"]').evaluate_all("nodes => nodes.map(node => node.dataset.head)")


def test_clicks_and_keys_choose_heads(page) -> None:
    small, large = page.locator(".pick").first, page.locator(".pick").nth(1)
    assert chosen(small) == ["L2H3"] and large.locator("td").count() == 1024
    small.locator('td[data-head="L1H0"]').click()
    page.get_by_text("[(2, 3), (1, 0)] [(20, 5), (18, 6)]").wait_for(timeout=20_000)
    assert chosen(small) == ["L2H3", "L1H0"] and chosen(large) == ["L20H5", "L18H6"]
    small.locator('td[tabindex="0"]').focus()
    for key in ("ArrowUp", "ArrowRight", "Enter"):
        page.keyboard.press(key)
    page.get_by_text("(2, 1)").wait_for(timeout=20_000)
    assert "L2H1" in chosen(small) and "Layer 2, head 1" in small.locator(".about").inner_text()
    small.get_by_role("button", name="No heads").click()
    page.get_by_text("[] [(20, 5)").wait_for(timeout=20_000)
    assert small.locator(".named").inner_text() == "No head is chosen."
    large.get_by_role("button", name="The 10 strongest").click()
    large.get_by_text("10 chosen: L20H5 L18H6").wait_for(timeout=20_000)


def test_axe_finds_nothing_and_narrow_pages_need_no_scrolling(page) -> None:
    from axe_playwright_python.sync_playwright import Axe

    rules = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21aa"]}}
    found = [each for each in Axe().run(page, options=rules).response["violations"] if each["id"] not in PANELS_OWN]
    assert not found, "\n".join(f"{each['id']} ({each['impact']}): {each['nodes'][0]['html']}" for each in found)
    page.set_viewport_size({"width": 420, "height": 900})
    page.wait_for_timeout(300)
    reach = page.locator(".pick").evaluate_all("nodes => nodes.map(node => [node.scrollWidth, node.clientWidth])")
    assert all(wide <= room <= 420 for wide, room in reach)


PANELS_OWN = {"html-has-lang"}  # of the page that this test serves around the maps


@pytest.mark.slow
def test_it_works_in_jupyterlab(browser, tmp_path: Path) -> None:
    sources = [
        "import ivlens\nmodel, task = ivlens.load_model('pocket'), ivlens.load_task('antonym')\n"
        "picked = ivlens.head_effects(model, task, n_prompts=4).pick(3)\npicked",
        "print('made of', picked.vector().heads)",
    ]
    cells = [
        {"cell_type": "code", "execution_count": None, "id": f"c{at}", "metadata": {}, "outputs": [], "source": source}
        for at, source in enumerate(sources)
    ]
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    content = {"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}
    (tmp_path / "pick.ipynb").write_text(json.dumps(content))
    options = ["--no-browser", "--allow-root", "--ip=127.0.0.1", "--port=0", f"--ServerApp.root_dir={tmp_path}"]
    options += ["--LabApp.news_url=", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    with running("jupyterlab", *options, announce=r"(http://127\.0\.0\.1:\d+/lab\?token=\w+)", warm=False) as url:
        context = browser.new_context(viewport={"width": 1440, "height": 900})
        page = context.new_page()
        page.goto(url.replace("/lab?", "/lab/tree/pick.ipynb?"))
        page.locator(".jp-Notebook .jp-Cell").first.wait_for(timeout=60_000)
        page.get_by_text("(ipykernel) | Idle").first.wait_for(timeout=60_000)
        for _ in range(5):  # JupyterLab drops a run that it is asked for before its kernel is there
            page.locator(".jp-Notebook .jp-Cell .cm-content").first.click()
            page.keyboard.press("Control+Enter")
            page.wait_for_timeout(2000)
            if "*" in page.locator(".jp-Notebook .jp-InputPrompt").first.inner_text():
                break
        page.locator(".pick td").first.wait_for(timeout=120_000)
        before = chosen(page.locator(".pick"))
        assert len(before) == 3
        page.locator(f'.pick td[data-head="{before[0]}"]').click()
        page.locator(".pick .named", has_text="2 chosen").wait_for()
        said = page.get_by_text("made of ((")
        for _ in range(5):
            page.locator(".jp-Notebook .jp-Cell .cm-content").nth(1).click()
            page.keyboard.press("Control+Enter")
            page.wait_for_timeout(2000)
            if said.count():
                break
        said.wait_for(timeout=60_000)
        heads = [tuple(map(int, name[1:].split("H"))) for name in before[1:]]
        assert all(str(head) in said.inner_text() for head in heads) and said.inner_text().count("(") == 3
        context.close()
