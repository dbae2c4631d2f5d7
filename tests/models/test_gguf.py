"""GGUF files: the same logits as the model they were written from, and every broken one refused by name."""

import random
import struct

import pytest
import torch
from families import hf_model
from ggufs import TEMPLATE, write_llama, write_other

from ivlens.models import load_model, model_identity
from ivlens.models.ggufheader import is_gguf, read_header
from ivlens.models.plain import plain_model

PROBE = torch.tensor([[5, 17, 40, 8, 99, 3]])


@pytest.fixture(scope="module")
def plain():
    return hf_model("llama")


@pytest.fixture(scope="module")
def file(plain, byte_level, tmp_path_factory):
    return write_llama(tmp_path_factory.mktemp("gguf") / "tiny.gguf", plain, byte_level)


@pytest.mark.parametrize("quantised", [False, True])
@pytest.mark.parametrize("family", ["llama", "llama_gqa"])
def test_logits_are_those_of_the_model_it_was_written_from(family, quantised, byte_level, tmp_path):
    source = hf_model(family)
    path = write_llama(tmp_path / "a model", source, byte_level, quantised=quantised)  # the name does not matter
    model = load_model(path)
    with torch.no_grad():
        torch.testing.assert_close(model(PROBE), source(PROBE, use_cache=False).logits, atol=1e-4, rtol=1e-4)
    assert model_identity(model).name == str(path)
    assert next(model.parameters()).dtype == torch.float32
    assert next(load_model(path, dtype="bfloat16").parameters()).dtype == torch.bfloat16


def test_its_tokenizer_and_chat_template_come_along(file, byte_level):
    tokenizer = load_model(str(file)).tokenizer
    for text in ("Input: big house", "  Paris\nOutput: é"):
        assert tokenizer(text)["input_ids"] == byte_level(text)["input_ids"]
    assert tokenizer.chat_template == TEMPLATE
    assert load_model(file, tokenizer=byte_level).tokenizer is byte_level


def test_it_is_a_plain_model_that_trains_and_saves(file, tmp_path):
    made = plain_model(load_model(file))
    made.save_pretrained(tmp_path / "saved")
    made(PROBE, labels=PROBE).loss.backward()
    assert all(parameter.grad is not None for parameter in made.parameters())


def test_what_lies_beside_the_file_is_not_read(plain, byte_level, tmp_path):
    path = write_llama(tmp_path / "tiny.gguf", plain, byte_level)
    for name in ("adapter_config.json", "config.json", "tokenizer_config.json", "tokenizer.json"):
        (tmp_path / name).write_text("{")
    with torch.no_grad():
        torch.testing.assert_close(load_model(path)(PROBE), plain(PROBE, use_cache=False).logits, atol=1e-4, rtol=1e-4)


def test_opening_draws_nothing_and_leaves_transformers_as_it_was(file, capfd):
    from transformers import modeling_gguf_pytorch_utils as reading
    from transformers.utils import logging

    bar, shown, state = reading.tqdm, logging.is_progress_bar_enabled(), torch.get_rng_state()
    load_model(file)
    assert reading.tqdm is bar and logging.is_progress_bar_enabled() == shown
    assert torch.equal(torch.get_rng_state(), state)
    assert "Converting" not in capfd.readouterr().err


def test_a_file_cut_anywhere_is_called_cut(file, tmp_path):
    whole, cut = file.read_bytes(), tmp_path / "cut.gguf"
    header = read_header(file)
    draw = random.Random(0)
    for length in [5, 30, header.start - 1, header.start, len(whole) - 1, *draw.sample(range(4, len(whole)), 40)]:
        cut.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"cut.gguf' is cut: .*, expected a whole GGUF file; copy or download it"):
            load_model(cut)


def test_damaged_headers_end_in_one_clear_error(file, tmp_path):
    whole, broken = bytearray(file.read_bytes()), tmp_path / "broken.gguf"
    draw, end = random.Random(1), read_header(file).start
    for _ in range(60):
        damaged = whole.copy()
        for _ in range(draw.randint(1, 8)):
            damaged[draw.randrange(4, end)] = draw.randrange(256)
        broken.write_bytes(damaged)
        try:
            load_model(broken)  # a changed word of the vocabulary does no harm
        except (ValueError, FileNotFoundError) as error:
            assert "broken.gguf" in str(error) and "expected" in str(error)


@pytest.mark.parametrize(
    ("place", "value", "what"),
    [
        (4, struct.pack("<I", 1), "version 1"),
        (8, struct.pack("<Q", 2**63), "is cut"),
        (16, struct.pack("<Q", 2**63), "is damaged|is cut|no text"),
    ],
)
def test_promises_that_no_file_can_keep(file, tmp_path, place, value, what):
    whole, broken = bytearray(file.read_bytes()), tmp_path / "broken.gguf"
    whole[place : place + len(value)] = value
    broken.write_bytes(whole)
    with pytest.raises(ValueError, match=what):
        load_model(broken)


@pytest.mark.parametrize(
    ("family", "what"),
    [("bert", "architecture bert is not supported"), ("t5", r"encoder-decoder \(t5\)"), ("clip", "architecture clip")],
)
def test_what_is_no_decoder_is_refused_by_name(tmp_path, family, what):
    with pytest.raises(ValueError, match=rf"{family}\.gguf.*{what}"):
        load_model(write_other(tmp_path / f"{family}.gguf", family))


def test_a_decoder_without_its_weights(tmp_path):
    with pytest.raises(ValueError, match=r"qwen2\.gguf"):
        load_model(write_other(tmp_path / "qwen2.gguf", "qwen2"))


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"general__type": "adapter"}, "is a GGUF of the type 'adapter', not a model"),
        ({"split__count": 3}, "is one of 3 parts of a model"),
        ({"general__alignment": 24}, "alignment 24, which is no power of two"),
    ],
)
def test_files_that_hold_no_whole_model(plain, byte_level, tmp_path, fields, what):
    with pytest.raises(ValueError, match=what):
        load_model(write_llama(tmp_path / "part.gguf", plain, byte_level, **fields))


def test_other_files_and_names(tmp_path):
    (tmp_path / "notes.gguf").write_text("no model")
    with pytest.raises(FileNotFoundError, match=r"notes.gguf is a file, but no GGUF file"):
        load_model(tmp_path / "notes.gguf")
    with pytest.raises(FileNotFoundError, match="nowhere.gguf is no file"):
        load_model("nowhere.gguf")
    assert not is_gguf(tmp_path) and not is_gguf(tmp_path / "none")


def test_a_folder_with_a_gguf_in_it_names_the_file(file):
    with pytest.raises(FileNotFoundError, match=r"without config.json.*pass its file '.*tiny.gguf'"):
        load_model(file.parent)


def test_without_the_package_one_error_names_the_extra(file, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'ivlens\[gguf\]'"):
        load_model(file)


def test_stretched_positions_are_warned_of(plain, byte_level, tmp_path, caplog, monkeypatch):
    from ivlens.models import gguf as opening

    path = write_llama(tmp_path / "tiny.gguf", plain, byte_level)
    header = read_header(path)
    more = type(header)(header.fields, (*header.tensors, header.tensors[0]), header.start, header.n_bytes)
    object.__setattr__(more.tensors[-1], "name", "rope_freqs.weight")
    monkeypatch.setattr(opening, "_checked", lambda path: more)
    load_model(path)
    assert "rope_freqs" in caplog.text
