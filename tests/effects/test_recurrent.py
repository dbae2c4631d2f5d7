"""Copies in recurrent blocks: each takes its steps from its own copy of the prompt's state."""

import pytest
from families import hf_model
from test_parity import check_equal, request_on

from ivlens.effects import recurrent
from ivlens.effects.engines import METHODS, run_engine
from ivlens.effects.recurrent import Recurrences
from ivlens.effects.request import Unsuitable
from ivlens.forward.kept import KeptLayer
from ivlens.models import load_model


@pytest.fixture(scope="module")
def bridges():
    made = {}
    return lambda family: made.setdefault(family, load_model(hf_model=hf_model(family)))


@pytest.mark.parametrize("family", ["falcon_h1", "qwen3_5"])
def test_a_few_copies_at_a_time_give_what_all_at_once_give(bridges, family, monkeypatch):
    """In Falcon-H1 the blocks with a state are those that are patched, so that patches are split as well."""
    model, sizes = bridges(family), []
    request = request_on(model)
    want = METHODS["exact"](model, request)
    made, steps = Recurrences.__init__, Recurrences._steps

    def small(self, model, n_shared, max_floats):
        made(self, model, n_shared, 4000)

    def counted(self, block, state, layer, given, stream, patch):
        sizes.append(stream.shape[1])
        return steps(self, block, state, layer, given, stream, patch)

    monkeypatch.setattr(Recurrences, "__init__", small)
    monkeypatch.setattr(Recurrences, "_steps", counted)
    found = METHODS["exact"](model, request)
    assert found.method == "exact" and max(sizes) <= 2
    check_equal(found.cie, want.cie)


def test_blocks_with_a_state_are_known(bridges):
    assert [layer in Recurrences(bridges("qwen3_5"), 3, 10**6) for layer in range(3)] == [True, False, True]
    assert [layer in Recurrences(bridges("nemotron_h"), 3, 10**6) for layer in range(3)] == [True, False, False]
    assert all(layer in Recurrences(bridges("falcon_h1"), 3, 10**6) for layer in range(3))
    assert not any(layer in Recurrences(bridges("granite_attention"), 3, 10**6) for layer in range(3))


def test_states_that_are_shared_are_seen(bridges, monkeypatch):
    """Without copies, the second step would begin where another one has ended."""

    def shared(self, layer, rows):
        for (name, number), state in self.states.items():
            getattr(layer, name)[number] = state if len(rows) == len(state) else state.index_select(0, rows)

    model = load_model(hf_model=hf_model("qwen3_5"))
    request = request_on(model, lengths=(9, 9))
    monkeypatch.setattr(KeptLayer, "put_back", shared)
    monkeypatch.setattr(recurrent, "row_slices", lambda n, size: [slice(one, one + 1) for one in range(n)])
    with pytest.raises(Unsuitable, match="logits are off by"):
        METHODS["exact"](model, request)


def test_arguments_that_are_not_known_are_refused(bridges, monkeypatch):
    model = load_model(hf_model=hf_model("qwen3_5"))
    monkeypatch.setattr(recurrent, "_BY_POSITION", set())
    with pytest.raises(Unsuitable, match="its blocks take 'position_embeddings', which copies have no version of"):
        METHODS["exact"](model, request_on(model))


@pytest.mark.parametrize("family", ["qwen3_5", "falcon_h1", "lfm2", "bamba"])
def test_prompts_of_one_and_two_tokens(bridges, family):
    """Before the last of two tokens there is padding alone, in the shorter prompt."""
    model = bridges(family)
    for lengths in ((1, 1), (2, 1), (2, 2)):
        request = request_on(model, lengths=lengths)
        found, want = METHODS["exact"](model, request).cie, METHODS["reference"](model, request).cie
        assert (found - want).nan_to_num(0.0).abs().max() <= 1e-4


def test_several_answer_tokens_of_jamba(bridges, caplog):
    """Its mixers continue from a state by one token alone: exact does that, and cached cannot and says so."""
    model = bridges("jamba")
    request = request_on(model, n_answer=3)
    want = METHODS["reference"](model, request).cie
    found = run_engine(model, request, "exact")
    assert found.method == "exact" and not [one for one in caplog.records if one.name.startswith("ivlens")]
    check_equal(found.cie, want)
    slower = run_engine(model, request, "cached")
    said = [one.getMessage() for one in caplog.records if one.name.startswith("ivlens")]
    assert slower.method == "reference" and len(said) == 1 and "cached" in said[0]
    check_equal(slower.cie, want)
    assert run_engine(model, request_on(model, n_answer=1), "cached").method == "cached"
