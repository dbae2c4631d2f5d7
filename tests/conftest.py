"""Tiny random models of several families, and tokenizers of three kinds, made on the spot."""

import functools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import typed  # noqa: F401 - before anything of ivlens is imported
from families import N_WORDS, hf_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from ivlens.common.cache import cache_folder
from ivlens.tasks import Task, TaskExample

FAMILIES = ("gpt2", "neox", "llama", "gemma2", "qwen3")

# enough text for the tokenizers to learn words, pieces and spaces from
WORDS = "big small happy sad hot cold red blue house tree walk walked Paris France New York light dark high low".split()
CORPUS = [f"Instruction: Give the {a} of the word.\nInput: {a}\nOutput: {b}" for a in WORDS for b in WORDS]


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Of `-n auto`, as `make test` has it: a process for each core and 3 GB; none besides this one for a few tests."""
    chosen = config.option.keyword or any(Path(one.split("::")[0]).is_file() for one in config.args)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return 0 if chosen else max(1, min(cores, memory // (3 * 2**30)))


def pytest_configure(config: pytest.Config) -> None:
    """Give each of several processes one thread: two processes of two threads each are far slower on two cores."""
    if getattr(config.option, "numprocesses", None):
        os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files whose few tests take long come first, so that no process is left alone with one at the end."""
    first = ("runs", "tuning", "analysis", "show", "cli", "tests")  # folders; the last is that of this file
    rank = {name: number for number, name in enumerate(first)}
    items.sort(key=lambda item: rank.get(item.path.parent.name, len(first)))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What tests remember is none of the user's; the models that were fetched are."""
    folder, fetched = tmp_path_factory.mktemp("cache"), cache_folder() / "models"
    if fetched.is_dir():
        (folder / "models").symlink_to(fetched)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IVLENS_CACHE", str(folder))
        yield


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """GPT-2's kind: byte-level BPE, a space belongs to the word after it, no BOS is added."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=N_WORDS,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<|endoftext|>", eos_token="<|endoftext|>", unk_token="<|endoftext|>"
    )


def metaspace_tokenizer() -> PreTrainedTokenizerFast:
    """Llama's kind: Unigram pieces with a mark for the space, bytes for what has no piece, a BOS before every text."""
    texts = {f"\u2581{word}" for text in CORPUS for word in text.replace(":", "").split()}
    letters = {letter for text in CORPUS for letter in text.replace(" ", "\u2581")}
    vocab = [(piece, 0.0) for piece in ("<unk>", "<s>", "</s>")]
    vocab += [(f"<0x{byte:02X}>", -20.0) for byte in range(256)]
    vocab += [(piece, -5.0) for piece in sorted(texts)] + [(letter, -8.0) for letter in sorted(letters)]
    raw = Tokenizer(models.Unigram(vocab, unk_id=0, byte_fallback=True))
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One token for a word or a mark; spaces leave no trace, and unknown words become `<unk>`."""
    words = sorted({word for text in CORPUS for word, _ in pre_tokenizers.Whitespace().pre_tokenize_str(text)})
    vocab = {word: n for n, word in enumerate(["<unk>", "<s>", "</s>", "<pad>", *words])}
    raw = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )


TOKENIZERS = {"byte_level": byte_level_tokenizer, "metaspace": metaspace_tokenizer, "word": word_tokenizer}


@pytest.fixture(scope="session", params=TOKENIZERS)
def any_tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return TOKENIZERS[request.param]()


@pytest.fixture(scope="session")
def byte_level() -> PreTrainedTokenizerFast:
    return byte_level_tokenizer()


@pytest.fixture(scope="session")
def metaspace() -> PreTrainedTokenizerFast:
    return metaspace_tokenizer()


@pytest.fixture(scope="session")
def words() -> PreTrainedTokenizerFast:
    return word_tokenizer()


@pytest.fixture(scope="session")
def new_model() -> Callable[..., torch.nn.Module]:
    """Makes a fresh bridge: `new_model(family, tokenizer=None, **shape)`. For tests that change the model."""
    from ivlens.models import load_model

    return lambda family="llama", tokenizer=None, **shape: load_model(
        hf_model=hf_model(family, **shape), tokenizer=tokenizer
    )


@pytest.fixture(scope="session")
def _models(new_model: Callable[..., torch.nn.Module]) -> Callable[[str], torch.nn.Module]:
    return functools.cache(new_model)


@pytest.fixture(scope="session", params=FAMILIES)
def model(request: pytest.FixtureRequest, _models: Callable[[str], torch.nn.Module]) -> torch.nn.Module:
    """One bridge of every family; tests must leave it as it was."""
    return _models(request.param)


@pytest.fixture(scope="session")
def llama(new_model: Callable[..., torch.nn.Module], byte_level: PreTrainedTokenizerFast) -> torch.nn.Module:
    """One bridge with a tokenizer; tests must leave it as it was."""
    return new_model("llama", byte_level)


@pytest.fixture(scope="session")
def smollm2() -> torch.nn.Module:
    """The bridge of a real language model, for tests marked `real`; they must leave it as it was."""
    import real

    return real.smollm2()


@pytest.fixture
def checkpoint(tmp_path: Path, byte_level: PreTrainedTokenizerFast) -> Iterator[Path]:
    """A folder written by save_pretrained, with its tokenizer."""
    folder = tmp_path / "checkpoint"
    hf_model("llama").save_pretrained(folder)
    byte_level.save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["model_type"] == "llama"
    yield folder


def random_prompts(lengths: tuple[int, ...] = (7, 4, 9, 5), side: str = "left") -> tuple[torch.Tensor, torch.Tensor]:
    """Random tokens and their mask; the same rows whatever the side."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for row, length in enumerate(lengths):
        columns = slice(tokens.shape[1] - length, None) if side == "left" else slice(0, length)
        tokens[row, columns] = torch.randint(3, N_WORDS, (length,), generator=generator)
        mask[row, columns] = 1
    return tokens, mask


def output_bias(model: torch.nn.Module, layer: int) -> torch.Tensor:
    """The bias of a layer's output projection, zeros where it has none."""
    bias = model.blocks[layer].attn.b_O
    return torch.zeros(model.cfg.d_model) if bias is None else bias.detach()


def chained(model: torch.nn.Module, links: dict[int, int]) -> torch.nn.Module:
    """Make a llama write one token after another, whatever stands before: `{token: the one that follows it}`."""
    wrapped = model.original_model
    with torch.no_grad():
        most = 1.5 * wrapped.lm_head.weight.abs().max()
        for number, (token, following) in enumerate(links.items()):
            direction = torch.eye(model.cfg.d_model)[number]
            wrapped.model.embed_tokens.weight[token] = 1e4 * direction  # nothing that blocks write comes near
            wrapped.lm_head.weight[following] = most * direction / wrapped.model.norm.weight
    return model


def tiny_task(
    name: str = "antonym", instruction: str = "Give the opposite of the word.", shift: int = 1, **more
) -> Task:
    """Every word answered by the word `shift` places on, so that two shifts are two tasks with the same inputs."""
    examples = tuple(TaskExample(word, (WORDS[(n + shift) % len(WORDS)],)) for n, word in enumerate(WORDS))
    return Task(name, examples, instructions=(instruction, f"{instruction} Now."), **more)


def unchecked(made: type, **values: object) -> object:
    """`made(**values)` as users have it: without the types, which tests check before a class's own checks."""
    found = made()
    for name, value in values.items():
        object.__setattr__(found, name, value)
    found.__post_init__()
    return found
