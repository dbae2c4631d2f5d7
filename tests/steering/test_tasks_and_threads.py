"""A steer context belongs to the task or thread that opened it and to what that starts; nobody else is steered."""

import asyncio
import gc
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import anyio
import pytest
import torch
from conftest import random_prompts
from test_steering import run, vector_for, write

from ivlens.common import owned
from ivlens.forward.completions import complete
from ivlens.forward.hooked import is_hooked
from ivlens.forward.hooks import captured_heads, check_unsteered, is_steered, model_lock
from ivlens.steering.steer import steer

ANOTHER = "another task of this thread"


@pytest.fixture(scope="module")
def tokens():
    return random_prompts((6,))[0]


@pytest.fixture(scope="module")
def plain(llama, tokens):
    return run(llama, tokens)


@contextmanager
def steered(model):
    with steer(model, vector_for(model), layer=1):
        yield


@pytest.fixture(scope="module")
def with_vector(llama, tokens, plain):
    with steered(llama):
        found = run(llama, tokens)
    assert not torch.equal(found, plain)
    return found


@pytest.fixture(autouse=True)
def _nothing_is_left(llama):
    yield
    gc.collect()
    assert not is_steered(llama) and not is_hooked(llama) and model_lock(llama).acquire(blocking=False)
    model_lock(llama).release()
    assert not {"generate", "generate_stream"} & llama.__dict__.keys()


async def beside(llama, work):
    """What `work` gives in a second task while a first one is inside a steer context."""
    inside, done = asyncio.Event(), asyncio.Event()

    async def first():
        with steered(llama):
            inside.set()
            await done.wait()
            run(llama, random_prompts((6,))[0])

    async def second():
        await inside.wait()
        try:
            return work()
        except Exception as error:
            return error
        finally:
            done.set()

    return (await asyncio.gather(first(), second()))[1]


@pytest.mark.parametrize(
    "work",
    [
        lambda model, tokens: run(model, tokens),
        lambda model, tokens: write(model, tokens),
        lambda model, tokens: model.original_model.generate(tokens, max_new_tokens=2, do_sample=False),
        lambda model, tokens: list(model.generate_stream(tokens, max_new_tokens=2, verbose=False)),
        lambda model, tokens: steered(model).__enter__(),
        lambda model, tokens: captured_heads(model).__enter__(),
        lambda model, tokens: complete(model, ["Input: big"], max_new_tokens=2),
        lambda model, tokens: check_unsteered(model),
    ],
    ids=["pass", "generate", "hf", "stream", "steer", "captured", "complete", "measure"],
)
def test_a_second_task_is_refused_and_not_steered(llama, tokens, plain, work):
    found = asyncio.run(beside(llama, lambda: work(llama, tokens)))
    assert isinstance(found, RuntimeError) and ANOTHER in str(found)
    assert torch.equal(run(llama, tokens), plain)


def test_the_first_task_goes_on_as_if_nobody_had_asked(llama, tokens, with_vector):
    async def main():
        inside, asked = asyncio.Event(), asyncio.Event()

        async def first():
            with steered(llama):
                before = run(llama, tokens)
                inside.set()
                await asked.wait()
                return before, run(llama, tokens)

        async def second():
            await inside.wait()
            with pytest.raises(RuntimeError, match=ANOTHER):
                run(llama, tokens)
            asked.set()

        return (await asyncio.gather(first(), second()))[0]

    assert all(torch.equal(each, with_vector) for each in asyncio.run(main()))


def test_tasks_started_inside_belong_to_it(llama, tokens, with_vector):
    async def child():
        await asyncio.sleep(0)
        return run(llama, tokens)

    async def main():
        with steered(llama):
            found = await asyncio.gather(child(), child(), asyncio.wait_for(child(), 30))
            return [*found, await asyncio.create_task(child()), await child()]

    assert all(torch.equal(each, with_vector) for each in asyncio.run(main()))


def test_two_children_do_not_share_their_own_contexts(llama, tokens, with_vector):
    async def main():
        inside, asked = asyncio.Event(), asyncio.Event()

        async def nesting():
            with steered(llama):
                inside.set()
                await asked.wait()
                run(llama, tokens)

        async def other():
            await inside.wait()
            try:
                with pytest.raises(RuntimeError, match=ANOTHER):
                    run(llama, tokens)
            finally:
                asked.set()

        with steered(llama):
            await asyncio.gather(nesting(), other())
            return run(llama, tokens)

    assert torch.equal(asyncio.run(main()), with_vector)


def test_a_task_that_outlives_the_context_is_free_of_it(llama, tokens, plain):
    async def late(go):
        await go.wait()
        return run(llama, tokens)

    async def main():
        go = asyncio.Event()
        with steered(llama):
            task = asyncio.create_task(late(go))
            await asyncio.sleep(0)
            run(llama, tokens)
        go.set()
        return await task

    assert torch.equal(asyncio.run(main()), plain)


def test_work_in_other_threads_belongs_to_the_task_that_awaits_it(llama, tokens, with_vector):
    barrier = threading.Barrier(2)

    async def main():
        with steered(llama):
            here = run(llama, tokens)
            there = [await asyncio.to_thread(run, llama, tokens) for _ in range(3)]
            # two threads for sure, one after the other
            first, _ = await asyncio.gather(asyncio.to_thread(barrier.wait), asyncio.to_thread(barrier.wait))
            nested = await asyncio.to_thread(lambda: complete(llama, ["Input: big"], max_new_tokens=2))
            return [here, *there, await anyio.to_thread.run_sync(run, llama, tokens)], nested

    found, nested = asyncio.run(main())
    with steered(llama):
        want = complete(llama, ["Input: big"], max_new_tokens=2)
    assert all(torch.equal(each, with_vector) for each in found) and nested == want


def test_threads_of_one_task_at_once_are_right_or_refused(llama, tokens):
    with steered(llama):
        want = write(llama, tokens)

    async def main():
        with steered(llama):
            return await asyncio.gather(
                *(asyncio.to_thread(write, llama, tokens) for _ in range(6)), return_exceptions=True
            )

    for found in asyncio.run(main()):
        assert isinstance(found, RuntimeError) or torch.equal(found, want)


def test_a_thread_from_before_is_refused_even_if_it_runs_first(llama, tokens, with_vector):
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: None).result()
        with steered(llama):
            with pytest.raises(RuntimeError, match="two threads"):
                pool.submit(run, llama, tokens).result()
            assert torch.equal(run(llama, tokens), with_vector)


def test_a_task_in_another_thread_waits(llama, tokens, plain):
    async def measure():
        with model_lock(llama):
            return run(llama, tokens)

    with ThreadPoolExecutor(1) as pool:
        with steered(llama):
            run(llama, tokens)
            found = pool.submit(asyncio.run, measure())
            time.sleep(0.1)
            assert not found.done()
        assert torch.equal(found.result(30), plain)


def test_contexts_nest_in_one_task(llama, tokens):
    with steered(llama), steered(llama):
        twice = run(llama, tokens)

    async def main():
        with steered(llama):
            await asyncio.sleep(0)
            with steered(llama):
                await asyncio.sleep(0)
                return run(llama, tokens)

    assert torch.equal(asyncio.run(main()), twice)


def test_a_task_that_is_cancelled_inside_leaves_nothing(llama, tokens, plain):
    async def main():
        async def forever():
            with steered(llama):
                await asyncio.Event().wait()

        task = asyncio.create_task(forever())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return run(llama, tokens)

    assert torch.equal(asyncio.run(main()), plain)


def test_a_generator_holds_the_context_while_it_waits_inside(llama, tokens, plain, with_vector):
    def passes():
        with steered(llama):
            while True:
                yield run(llama, tokens)

    def ask(taken):
        with pytest.raises(RuntimeError, match=ANOTHER):
            run(llama, tokens)
        taken.close()  # by another task than began it
        return run(llama, tokens)

    async def main():
        taken = passes()

        async def begin():
            return next(taken)

        return await asyncio.create_task(begin()), ask(taken)

    first, after = asyncio.run(main())
    assert torch.equal(first, with_vector) and torch.equal(after, plain)
    taken = passes()
    assert torch.equal(next(taken), with_vector)
    del taken
    assert torch.equal(run(llama, tokens), plain)


def test_an_async_generator_and_a_server_of_two_requests(llama, tokens, with_vector):
    async def passes():
        with steered(llama):
            for _ in range(2):
                yield run(llama, tokens)
                await asyncio.sleep(0)

    async def request(turn):
        async with turn:
            return [found async for found in passes()]

    async def main():
        turn = asyncio.Lock()  # the remedy that the error names
        return sum(await asyncio.gather(request(turn), request(turn)), [])

    assert all(torch.equal(found, with_vector) for found in asyncio.run(main()))


def test_task_groups_of_anyio(llama, tokens, with_vector):
    async def main():
        found = []

        async def child():
            found.append(run(llama, tokens))

        with steered(llama):
            async with anyio.create_task_group() as group:
                group.start_soon(child)
                group.start_soon(child)
        return found

    assert all(torch.equal(each, with_vector) for each in anyio.run(main))


@pytest.mark.parametrize("mode", ["pass", "measure"])
def test_a_thread_that_ends_inside_leaves_no_mark(llama, tokens, plain, mode):
    kept = []

    def end_inside():
        kept.append(steered(llama))
        kept[0].__enter__()
        kept.append(captured_heads(llama))
        kept[1].__enter__()
        run(llama, tokens)

    thread = threading.Thread(target=end_inside)
    thread.start()
    thread.join()
    if mode == "measure":
        check_unsteered(llama)
    assert torch.equal(run(llama, tokens), plain)
    with steered(llama):
        run(llama, tokens)
    for context in reversed(kept):  # late, and from elsewhere
        context.__exit__(None, None, None)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("busy", [False, True], ids=["waiting inside", "running passes"])
def test_a_fork_while_another_thread_is_inside_works(llama, tokens, plain, busy):
    inside, leave = threading.Event(), threading.Event()

    def hold():
        with steered(llama):
            run(llama, tokens)
            inside.set()
            while not leave.wait(0 if busy else None):
                run(llama, tokens)

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait(30)
    try:
        for _ in range(10 if busy else 2):
            assert answers_in_fork(lambda: right_after_fork(llama, tokens, plain))
    finally:
        leave.set()
        thread.join()


def right_after_fork(llama, tokens, plain):
    torch.set_num_threads(1)
    check_unsteered(llama)
    assert torch.equal(run(llama, tokens), plain)
    with steered(llama):
        return not torch.equal(run(llama, tokens), plain) and not torch.equal(write(llama, tokens), tokens)


def answers_in_fork(work, seconds=60):
    """Whether `work` is true in a forked process, which is killed if it takes too long."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if work() else 1)
        finally:
            os._exit(2)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def test_a_fork_inside_stays_inside(llama, tokens, with_vector):
    with steered(llama):
        assert answers_in_fork(lambda: torch.equal(run(llama, tokens), with_vector))


def test_an_interrupt_at_any_step_of_entering_and_leaving_leaves_the_lock_free(monkeypatch):
    """The exception is raised by a trace function, at every line of the lock's own code in turn."""
    import sys

    for number in range(200):
        lock, seen = owned.OwnedLock(), [0]

        def trace(frame, event, _, seen=seen, number=number):
            if frame.f_code.co_filename != owned.__file__ or "__del__" in frame.f_code.co_name:
                return None
            if event == "line":
                seen[0] += 1
                if seen[0] == number:
                    raise KeyboardInterrupt
            return trace

        interrupted = False
        sys.settrace(trace)
        try:
            with lock, lock.held("steer"):
                pass
        except KeyboardInterrupt:
            interrupted = True
        finally:
            sys.settrace(None)
        gc.collect()
        free = []
        thread = threading.Thread(target=lambda free=free, lock=lock: free.append(lock.acquire(timeout=1.5)))
        thread.start()
        thread.join()
        assert free == [True], f"line {number} of {seen[0]}"
        if not interrupted:
            return
    raise AssertionError("the lock has more lines than were tried")
