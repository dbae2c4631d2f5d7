"""The order of training examples: every epoch has each of them once, and a step's examples follow from its number."""

from ivlens.tuning.training.order import batch_of, mixed_seed, read_by


def test_every_epoch_has_each_example_once_in_an_order_of_its_own():
    n_examples, batch_size = 7, 3
    steps = [batch_of(step, batch_size, n_examples, seed=1).tolist() for step in range(n_examples)]
    flat = [number for step in steps for number in step]
    epochs = [flat[start : start + n_examples] for start in range(0, len(flat), n_examples)]
    assert all(sorted(epoch) == [*range(n_examples)] for epoch in epochs) and len(epochs) == batch_size
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)


def test_a_batch_may_be_larger_than_an_epoch():
    numbers = batch_of(2, 10, 4, seed=0).tolist()
    assert len(numbers) == 10 and all(numbers.count(one) in (2, 3) for one in range(4))


def test_seeds_of_steps_and_epochs_differ():
    seeds = [mixed_seed(seed, number) for seed in range(20) for number in range(-50, 50)]
    assert len(set(seeds)) == len(seeds) and min(seeds) >= 0


def test_what_a_training_reads_is_what_its_steps_read():
    for n_steps, size, n_examples in ((3, 4, 50), (10, 5, 50), (11, 5, 50), (1, 60, 50), (2, 7, 15)):
        steps = {int(one) for step in range(n_steps) for one in batch_of(step, size, n_examples, seed=3)}
        assert read_by(n_steps, size, n_examples, seed=3).tolist() == sorted(steps)
