"""Threads that share a model: short passes go between the portions of long work, and a pass can be ended."""

import threading
import time

import pytest
import torch

import ivlens
from ivlens.forward.hooks import captured_residual, model_lock
from ivlens.forward.sharing import give_way, rest, short_pass, stopping


@pytest.fixture(scope="module")
def pocket():
    return ivlens.load_model("pocket")


@pytest.mark.parametrize("holds_lock", [True, False])
def test_short_passes_go_between_the_portions_of_long_work(pocket, holds_lock):
    portions, at_end, begun = [], [], threading.Event()

    def long():
        with stopping(pocket, lambda: None):
            for number in range(20):
                with model_lock(pocket):
                    time.sleep(0.1)
                    begun.set()
                    if holds_lock:
                        give_way(pocket)
                if not holds_lock:
                    rest(pocket)
                portions.append(number)

    def short():
        for _ in range(8):
            with short_pass(pocket), model_lock(pocket):
                time.sleep(0.005)
        at_end.append(len(portions))

    threads = [threading.Thread(target=long), threading.Thread(target=short)]
    threads[0].start()
    assert begun.wait(10)
    threads[1].start()
    for thread in threads:
        thread.join(30)
    assert len(portions) == 20 and at_end[0] <= 6  # not one portion for each pass


def n_hooks(model) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


class Enough(BaseException):
    """Ends a pass."""


def test_a_pass_of_this_thread_ends_between_blocks_and_leaves_nothing(pocket):
    tokens, asked, before = torch.tensor([[1, 2, 3]]), [], n_hooks(pocket)

    def check():
        asked.append(threading.get_ident())
        if len(asked) > 3:
            raise Enough

    want = pocket(tokens)
    with pytest.raises(Enough), stopping(pocket, check), captured_residual(pocket, [5]):
        pocket(tokens)
    assert len(asked) == 4
    torch.testing.assert_close(pocket(tokens), want)
    asked.clear()
    with stopping(pocket, check):
        other = threading.Thread(target=pocket, args=(tokens,))  # of another thread no pass is ended
        other.start()
        other.join()
    assert not asked and n_hooks(pocket) == before


def test_effects_are_measured_as_without_it(pocket):
    task = ivlens.load_task("antonym")
    alone = ivlens.head_effects(pocket, task, n_prompts=4)
    with stopping(pocket, lambda: None):
        watched = ivlens.head_effects(pocket, task, n_prompts=4)
    assert watched.method == alone.method and torch.equal(watched.cie, alone.cie)
