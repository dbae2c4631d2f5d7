"""Right answers of interventions are those that generation under `steer` writes as text."""

from dataclasses import replace

import pytest
import torch
from conftest import chained, random_prompts

from ivlens import load_model, load_task
from ivlens.effects import head_effects
from ivlens.forward.completions import complete
from ivlens.forward.hooks import captured_residual
from ivlens.forward.prefix import SharedPrefix
from ivlens.forward.scoring import greedy_correct
from ivlens.forward.vocabulary import Read
from ivlens.prompts import PromptBatch, build_prompts
from ivlens.steering.search import Grid, _rounds, best_settings, searched
from ivlens.steering.steer import steer
from ivlens.steering.summary import Setting
from ivlens.steering.trials import Trials
from ivlens.tasks import TaskExample
from ivlens.tuning.exams import make_exam
from ivlens.vectors import InstructionVector

TASKS = ("spell", "country_capital", "length")  # letters, names of several tokens, numbers


@pytest.fixture(scope="module")
def pocket():
    return load_model("pocket")


@pytest.fixture(scope="module")
def vector(pocket):
    return InstructionVector.from_effects(head_effects(pocket, load_task("spell"), n_prompts=16), k=10, model=pocket)


def cut(task, texts, examples):
    """The task with answers of all sorts, made of what a model wrote: whole, begun, with more behind, others beside."""
    made = []
    for text, example in zip(texts, examples, strict=True):
        line = next(iter(text.strip().splitlines()), "") or "nothing"
        line = line[:12].strip() if len(line) > 16 else line  # it may have been cut off
        half, word = line[: (len(line) + 1) // 2].strip(), line.split()[0]
        for number, answers in enumerate(((line,), ("other words", half), (word, line[:1]), (f"{line} s", "other"))):
            made.append((number, TaskExample(example.input, answers)))
    return [replace(task, examples=tuple(one for at, one in made if at == number)) for number in range(4)]


def together(batches):
    """The same prompts once for each batch of answers."""
    n = len(batches[0])
    assert all(batch.texts == batches[0].texts for batch in batches)
    alternatives = tuple(answers for batch in batches for answers in batch.alternatives)
    examples = tuple(example for batch in batches for example in batch.examples)
    return replace(batches[0].rows([*range(n)] * len(batches)), alternatives=alternatives, examples=examples)


def by_eye(text, answers):
    """Accuracy and exactness of a completion, as one would judge it by reading."""
    found = [(answer, text.strip()[len(answer) :]) for answer in answers if text.strip().startswith(answer)]
    is_right = any(not (answer[-1].isalnum() and rest[:1].isalnum()) for answer, rest in found)
    return float(is_right), float(any(not rest or rest.startswith("\n") for _, rest in found))


def check(scores, texts, batch):
    judged = [by_eye(text, example.answers) for text, example in zip(texts, batch.examples, strict=True)]
    assert list(zip(scores.accuracy[0].tolist(), scores.exact[0].tolist(), strict=True)) == judged
    return judged


@pytest.mark.parametrize("site", ["resid_post", "attn_out"])
@pytest.mark.parametrize("positions", ["prompt", "every", "all"])
def test_scores_are_those_of_generated_texts(pocket, vector, positions, site):
    judged, layer, alpha = [], 1, 1.5
    for name in TASKS:
        task = load_task(name)
        batch = build_prompts(pocket.tokenizer, task, task.split("test")[:6], corruption="drop")
        with steer(pocket, vector, layer=layer, alpha=alpha, site=site, positions=positions):
            texts = complete(pocket, batch.texts, max_new_tokens=20)
        made = cut(task, texts, batch.examples)
        asked = together([build_prompts(pocket.tokenizer, one, one.examples, corruption="drop") for one in made])
        trials = Trials(pocket, asked, positions=positions)
        judged += check(trials.added(alpha * vector.theta[None], layer, site), texts * 4, asked)
        check(trials.at([Setting(layer, alpha, site)], vector.theta[None], part="no logprob"), texts * 4, asked)
    assert len({*judged}) == 3, "not all verdicts were tried"


def test_trials_scoring_and_exams_agree(pocket):
    """On the same prompts, for answers that end, that go on, and that are not written at all."""
    seen = set()
    for name in (*TASKS, "antonym"):
        task = load_task(name)
        batch = build_prompts(pocket.tokenizer, task, task.split("select")[:5])
        texts = complete(pocket, batch.texts, max_new_tokens=20)
        made = cut(task, texts, batch.examples)
        for one in made:
            asked = build_prompts(pocket.tokenizer, one, one.examples)
            scores, right = Trials(pocket, asked).unsteered(), greedy_correct(pocket, asked)
            exam = make_exam(pocket, [(one, one.examples)])
            answered = exam.answered(pocket.original_model)
            order = torch.tensor([_place(exam, asked, row) for row in range(len(asked))])
            for measure in ("accuracy", "exact"):
                expected = getattr(scores, measure)[0].bool()
                assert torch.equal(getattr(right, measure), expected)
                assert torch.equal(getattr(answered, measure)[order], expected)
                sat = exam.sit(pocket.original_model, exact=measure == "exact")
                assert sat == {name: pytest.approx(float(expected.float().mean()))}
            seen |= set(check(scores, texts, asked))
    assert len(seen) == 3


def _place(exam, batch, row):
    """The number of a batch's prompt among an exam's questions, which are shuffled."""
    prompt = batch.tokens[row][batch.attention_mask[row] == 1].tolist()
    for at, question in enumerate(exam.question.tolist()):
        if exam.data.tokens[at][exam.data.attention_mask[at] == 1].tolist() == prompt:
            return question
    raise AssertionError("no such question")


def batch_of(tokens, mask, alternatives):
    first = torch.full((len(tokens), max(len(answers[0]) for answers in alternatives)), -100)
    for row, answers in enumerate(alternatives):
        first[row, : len(answers[0])] = torch.tensor(answers[0])
    none, examples = ("",) * len(tokens), (TaskExample("input", ("answer",)),) * len(tokens)
    return PromptBatch(tokens, mask, first, None, tuple(alternatives), none, examples, none, (None,) * len(tokens))


AFTER_ONE = {"2": (0, 0), "a": (0, 0), ".": (1, 0), "Ċ": (1, 1), "<|endoftext|>": (1, 1)}


@pytest.fixture(scope="module", params=AFTER_ONE)
def after_one(request, new_model, byte_level):
    """A model that writes 1 and then something, with a prompt for it, and the verdict on 1."""
    links = byte_level.convert_tokens_to_ids([":", "1", request.param, ","])
    model = chained(new_model("llama", byte_level, n_layers=2), dict(zip(links, links[1:], strict=False)))
    return model, torch.tensor([[9, 5, links[0]], [0, 7, links[0]]]), links[1:3], AFTER_ONE[request.param]


def test_twelve_is_not_one(after_one):
    model, tokens, (one, following), expected = after_one
    mask = torch.tensor([[1, 1, 1], [0, 1, 1]])
    both = [((one,), (399,), (399, one)), ((399,), (one,))]
    for part in ("all", "no logprob"):
        scores = Trials(model, batch_of(tokens, mask, both)).at(
            [Setting(0, 0.0, "resid_post")], torch.ones(1, model.cfg.d_model), part=part
        )
        assert (scores.accuracy[0].tolist(), scores.exact[0].tolist()) == ([expected[0]] * 2, [expected[1]] * 2)
    longer = [((one,), (one, following)), ((one, following),)]
    assert Trials(model, batch_of(tokens, mask, longer)).unsteered().accuracy.all(), "12 may be accepted beside 1"


def test_the_second_pass_is_small(after_one):
    """Only rows whose whole answer was written are looked at again, together, and no further than their answers go."""
    model, tokens, (one, _), expected = after_one
    batch = batch_of(tokens, torch.ones_like(tokens), [((one,),), ((399,), (398, 9))])
    Trials(model, batch).unsteered()  # the witness of the shared prefix runs once for a shape
    trials = Trials(model, batch)
    passes = []
    handle = model.unembed.register_forward_hook(lambda module, given, out: passes.append(tuple(out.shape[:2])))
    try:
        scores = trials.unsteered()
    finally:
        handle.remove()
    # without the last prompt token; answers of one token; answers of two; what follows the one that was written
    assert passes == [(2, 1), (2, 1), (1, 2), (1, 2)]
    assert scores.accuracy.tolist() == [[expected[0], 0]]


@pytest.mark.parametrize("positions", ["prompt", "every", "all"])
@pytest.mark.parametrize("site", ["resid_post", "attn_out"])
def test_left_out_blocks_change_no_verdict(pocket, vector, monkeypatch, positions, site):
    task = load_task("country_capital")
    batch = build_prompts(pocket.tokenizer, task, task.split("test")[:12], corruption="drop")
    thetas, settings = vector.theta.repeat(6, 1), [Setting(layer, 3.0, site) for layer in range(6)]
    with steer(pocket, vector, layer=3, alpha=3.0, site=site, positions=positions):
        texts = complete(pocket, batch.texts, max_new_tokens=3)
    examples = tuple(TaskExample(one.input, (text.strip() or "x",))
                     for one, text in zip(batch.examples, texts, strict=True))  # fmt: skip
    batch = build_prompts(pocket.tokenizer, replace(task, examples=examples), examples, corruption="drop")
    quick = Trials(pocket, batch, positions=positions).at(settings, thetas)
    monkeypatch.setattr(SharedPrefix, "streams", lambda *_: None)
    slow = Trials(pocket, batch, positions=positions, rows_per_pass=7).at(settings, thetas)
    assert torch.equal(quick.accuracy, slow.accuracy) and torch.equal(quick.exact, slow.exact)
    assert quick.accuracy.any() and (quick.accuracy < 1).any()


@pytest.mark.parametrize("n_ctx", [9, 10, 11])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gptneo"])
def test_answers_that_fill_the_context(new_model, byte_level, family, n_ctx):
    """Long prompts beside long answers, as much as fits: scores as by `greedy_correct`, and as of each row alone."""
    model = new_model(family, byte_level, n_ctx=n_ctx)
    tokens, mask = random_prompts((8, 6, 7, 3, 8, 5, 4))
    alternatives = []
    for row in range(7):
        prompt = tokens[row][mask[row] == 1][None]
        out = model.generate(prompt, max_new_tokens=n_ctx - 7, do_sample=False, verbose=False, stop_at_eos=False)
        written = tuple(out[0, prompt.shape[1] :].tolist())
        alternatives.append(tuple(written[:n] for n in range(1 + row % 2, n_ctx - 6)) or (written,))
    batch = batch_of(tokens, mask, alternatives)
    right = greedy_correct(model, batch)
    for positions in ("prompt", "every", "all"):
        trials = Trials(model, batch, positions=positions)
        nothing = torch.zeros(2, model.cfg.d_model)
        for scores in (
            trials.unsteered(),
            trials.added(nothing, 1, "resid_post"),
            trials.added(nothing, 0, "attn_out"),
        ):
            assert torch.equal(scores.accuracy, right.accuracy.float().expand_as(scores.accuracy))
            assert torch.equal(scores.exact, right.exact.float().expand_as(scores.exact))
    alone = [Trials(model, batch.rows([row])).unsteered() for row in range(7)]
    assert torch.equal(torch.cat([one.accuracy[0] for one in alone]).bool(), right.accuracy)
    assert torch.equal(torch.cat([one.exact[0] for one in alone]).bool(), right.exact)


@pytest.mark.parametrize(
    "grid", [Grid(n_finalists=0), Grid(n_screen=2, n_finalists=1), Grid(n_finalists=2, n_screen=3)]
)
def test_a_search_does_not_fall_for_answers_that_go_on(new_model, byte_level, grid):
    """One way the vector makes the first answer win, which then goes on; the other way a second one, which does not."""
    one, two, five, comma = byte_level.convert_tokens_to_ids(["1", "2", "5", ","])
    model = chained(new_model("llama", byte_level, n_layers=2), {one: two, five: comma})
    rows = model.original_model.lm_head.weight.detach()
    theta = (rows[one] - rows[five]) / model.original_model.model.norm.weight.detach()
    tokens, mask = random_prompts((5, 6, 4, 5))
    trials = Trials(model, batch_of(tokens.clamp(max=250), mask, [((one,), (five,))] * 4))
    settings = [Setting(1, alpha, "resid_post") for alpha in (30.0, 60.0, 0.0, -30.0)]
    loose = trials.at(settings, theta.repeat(4, 1), part="first tokens")
    assert loose.accuracy.mean(1).tolist() == [1, 1, 0, 1] and int(loose.goodness().argmax()) < 2
    assert not loose.exact.any() and loose.logprob.isnan().all()
    assert trials.at(settings, theta.repeat(4, 1)).accuracy.mean(1).tolist() == [0, 0, 0, 1]
    found = best_settings(trials, torch.stack([theta, -theta]), settings, grid)
    assert found[0] == settings[3] and found[1] in settings[:2]


def test_a_search_finds_what_the_whole_table_says(pocket, vector):
    task = load_task("spell")
    batch = build_prompts(pocket.tokenizer, task, task.split("select")[:9], corruption="drop")
    # the first letters of what is to be spelled, which most of what is written goes on from
    examples = tuple(replace(one, answers=(one.answers[0][: 3 - at % 2].strip(), "x")) for at, one in
                     enumerate(batch.examples))  # fmt: skip
    trials = Trials(
        pocket, build_prompts(pocket.tokenizer, replace(task, examples=examples), examples, corruption="drop")
    )
    thetas = torch.stack([vector.theta, vector.random_like(1).theta, -vector.theta])
    settings = Grid(layers=(0, 2, 4), alphas=(1.0, 4.0)).settings(pocket)

    def table(trials, prompts=slice(None)):
        each = [trials.at(settings, theta.repeat(len(settings), 1), prompts=prompts) for theta in thetas]
        return torch.stack([scores.goodness() for scores in each])

    assert best_settings(trials, thetas, settings, Grid(n_finalists=0)) == [
        settings[at] for at in table(trials).argsort(dim=1, descending=True, stable=True)[:, 0]
    ]

    # rounds on the first two and four prompts, and on all nine
    assert _rounds(len(settings), 9, Grid(n_screen=4, n_finalists=3)) == [(2, 6), (4, 3), (9, 1)]
    left = [list(range(len(settings))) for _ in thetas]
    for n, n_kept in ((2, 6), (4, 3), (9, 1)):
        scores = table(trials, slice(n))
        ranked = [sorted(own, key=lambda at: (-float(good[at]), at)) for own, good in zip(left, scores, strict=True)]
        left = [sorted(own[:n_kept]) for own in ranked]
    found = best_settings(trials, thetas, settings, Grid(n_screen=4, n_finalists=3))
    assert found == [settings[own] for (own,) in left]


def test_an_overflow_after_the_answer_is_no_right_answer(after_one, monkeypatch):
    model, tokens, (one, _), _ = after_one
    trials, read = Trials(model, batch_of(tokens, torch.ones_like(tokens), [((one,),)] * 2)), Read.of_stream

    def overflowing(stream, linear, wanted):  # where no token is wanted, the next one is asked for
        return read(stream if wanted.shape[1] else stream * torch.nan, linear, wanted)

    monkeypatch.setattr(Read, "of_stream", overflowing)
    scores = trials.unsteered()
    assert not scores.accuracy.any() and not scores.exact.any() and scores.prob.gt(0).all()


def test_streams_are_those_of_whole_passes(pocket, monkeypatch):
    task = load_task("country_capital")
    batch = build_prompts(pocket.tokenizer, task, task.split("test")[:7], corruption="drop")
    shared = Trials(pocket, batch, rows_per_pass=3).streams()
    with torch.no_grad(), captured_residual(pocket, range(pocket.cfg.n_layers)) as kept:
        pocket(batch.tokens, attention_mask=batch.attention_mask)
    want = torch.stack([kept[layer][:, -1] for layer in range(pocket.cfg.n_layers)])
    torch.testing.assert_close(shared, want, atol=1e-5, rtol=1e-4)
    monkeypatch.setattr(SharedPrefix, "streams", lambda *_: None)
    torch.testing.assert_close(Trials(pocket, batch).streams(), want, atol=1e-5, rtol=1e-4)


def test_a_search_looks_at_the_rest_of_an_answer_once(pocket, vector, monkeypatch):
    task, asked = load_task("spell"), []
    trials = Trials(pocket, build_prompts(pocket.tokenizer, task, task.split("select")[:9], corruption="drop"))
    at = Trials.at

    def watched(self, settings, thetas, *, prompts=slice(None), part="all", begun=None):
        if part == "rest":
            for row, setting in enumerate(settings):
                places = [(setting, float(thetas[row].sum()), prompt) for prompt in begun[row].nonzero()[:, 0].tolist()]
                asked.extend(places)
        return at(self, settings, thetas, prompts=prompts, part=part, begun=begun)

    monkeypatch.setattr(Trials, "at", watched)
    settings = Grid(layers=(0, 2, 4), alphas=(1.0, 4.0)).settings(pocket)
    thetas = torch.stack([vector.theta, vector.random_like(1).theta])
    found = searched(trials, thetas, settings, Grid(n_screen=4, n_finalists=3))
    assert asked and len(asked) == len(set(asked))
    best = at(trials, [setting for setting, _ in found], thetas, part="no logprob").goodness()
    assert [goodness for _, goodness in found] == pytest.approx(best.tolist(), abs=1e-7)


def test_prompts_that_nothing_is_asked_about_are_not_run(pocket, vector):
    task = load_task("spell")
    batch = build_prompts(pocket.tokenizer, task, task.split("select")[:6], corruption="drop")
    trials, settings = Trials(pocket, batch, rows_per_pass=2), [Setting(1, 1.0, "resid_post")]  # three portions
    begun = torch.zeros(1, 6, dtype=torch.bool)
    scores = trials.at(settings, vector.theta[None], part="rest", begun=begun)
    assert trials._held is None and not scores.accuracy.any() and scores.prob.isnan().all()
    begun[0, 3] = True
    found = trials.at(settings, vector.theta[None], part="rest", begun=begun)
    assert trials._held[0] == 1
    whole = trials.at(settings, vector.theta[None], part="no logprob")
    assert torch.equal(found.accuracy, whole.accuracy * begun) and torch.equal(found.exact, whole.exact * begun)
