"""Completions share the model with whoever steers it."""

import threading

import pytest
from conftest import hf_model

from ivlens.forward import hooks
from ivlens.forward.completions import complete


def test_a_completion_waits_while_another_thread_has_the_model_hooked(llama):
    plain = complete(llama, ["Input: big"], max_new_tokens=4)
    written = []
    other = threading.Thread(target=lambda: written.extend(complete(llama, ["Input: big"], max_new_tokens=4)))
    with hooks.added(llama, 1, "resid_post", lambda resid: -3 * resid):
        edited = complete(llama, ["Input: big"], max_new_tokens=4)
        other.start()
        other.join(0.3)
        assert not written
    other.join(20)
    assert written == plain != edited


def test_a_model_that_is_no_bridge():
    with pytest.raises(TypeError, match="model is LlamaForCausalLM, expected the TransformerBridge"):
        complete(hf_model("llama"), ["Input: big"])
