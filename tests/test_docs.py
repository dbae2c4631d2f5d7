"""The code of the guides runs, and every public name has its place in the reference."""

import doctest
import re
from pathlib import Path

import pytest

import ivlens
from ivlens.tuning import finetune

DOCS = Path(__file__).parent.parent / "docs"
PAGES = [DOCS / "index.md", *sorted((DOCS / "guide").glob("*.md"))]
RUNNABLE = [page for page in PAGES if "```python" in page.read_text(encoding="utf-8")]


@pytest.mark.parametrize("page", RUNNABLE, ids=lambda page: page.stem)
def test_code_of_the_guides_runs(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All blocks of one page, in order, as a reader would paste them; illustrations are `{code-block}`s."""
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    exec(compile("\n".join(blocks), str(page), "exec"), {})
    printed = capsys.readouterr().out
    assert "print(" not in "".join(blocks) or printed.strip()


# the names that most users need; each has an example that runs by itself
EXAMPLES = [
    ivlens.load_model,
    ivlens.load_task,
    ivlens.head_effects,
    ivlens.InstructionVector.from_effects,
    ivlens.steer,
    ivlens.evaluate_intervention,
    ivlens.head_attention,
    ivlens.logit_lens,
    ivlens.patch_places,
    finetune,
]


@pytest.fixture(scope="module")
def pocket():
    return ivlens.load_model("pocket")


@pytest.mark.parametrize("documented", EXAMPLES, ids=lambda one: one.__name__)
def test_examples_of_the_reference_print_what_they_say(documented, pocket, monkeypatch) -> None:
    """The example in a docstring, pasted into a new session; the model is loaded once for all of them."""
    text = documented.__doc__ or ""
    assert re.search(r"^ +Example:$", text, re.MULTILINE), "it has an example"
    monkeypatch.setattr(ivlens, "load_model", lambda name: {"pocket": pocket}[name])
    test = doctest.DocTestParser().get_doctest(text, {}, documented.__name__, None, None)
    said: list[str] = []
    found = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test, out=said.append)
    assert not found.failed, "".join(said)
    assert found.attempted >= 3 and "import ivlens" in test.examples[0].source


def test_production_guide_steers() -> None:
    text = (DOCS / "guide" / "production.md").read_text(encoding="utf-8")
    assert "assert torch.allclose(same, logits" in text, "the plain hook is compared with steer"


def test_every_public_name_is_in_the_reference() -> None:
    text = (DOCS / "api" / "index.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^   (\w+)$", text, re.MULTILINE))
    assert not set(ivlens.__all__) - listed - {"__version__"}


def test_the_start_page_leads_to_every_guide() -> None:
    start = (DOCS / "index.md").read_text(encoding="utf-8")
    assert not [page.stem for page in PAGES[1:] if f"guide/{page.stem}\n" not in start]


def test_short_answers_are_short_and_lead_on() -> None:
    text = (DOCS / "guide" / "how.md").read_text(encoding="utf-8")
    answers = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    assert len(answers) >= 20
    for answer in answers:
        question = answer.split("\n", 1)[0]
        code = re.findall(r"^```python\n(.*?)^```", answer, re.MULTILINE | re.DOTALL)
        lines = [line for block in code for line in block.splitlines() if line.strip()]
        assert question.startswith("… ") and question.endswith("?"), question
        assert 1 <= len(lines) <= 8 and "](" in answer, question
        places = re.findall(r"\]\(([\w./-]+)\)", answer)
        assert all((DOCS / "guide" / place).exists() for place in places), question
