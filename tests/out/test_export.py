"""Vectors written for other tools: what these read and compute is what `steer` does; what cannot leave is refused."""

import ast
import importlib.util
import json
import runpy
import sys

import numpy as np
import pytest
import torch
from conftest import random_prompts
from elsewhere import tool
from families import hf_model

import ivlens
from ivlens import InstructionVector, load_model, steer
from ivlens.cli.main import main
from ivlens.forward.completions import complete
from ivlens.models import model_identity, pocket_path
from ivlens.out import export_vector
from ivlens.out.formats import FORMATS, SUFFIXES
from ivlens.out.leaving import Leaving
from ivlens.steering.summary import Setting

AT = Setting(1, 4.0, "attn_out")
POST = Setting(2, 3.0, "resid_post")
WORDS = ("big", "hot", "open")


@pytest.fixture(scope="module")
def pocket():
    return load_model("pocket")


@pytest.fixture(scope="module")
def vector(pocket):
    return InstructionVector.from_effects(ivlens.head_effects(pocket, ivlens.load_task("antonym"), n_prompts=8))


def vector_for(model):
    theta = 3 * torch.randn(model.cfg.d_model, generator=torch.Generator().manual_seed(0))
    return InstructionVector(theta, (), torch.zeros(0, model.cfg.d_head), "antonym", model_identity(model), {})


def run_script(path, monkeypatch, capsys, *words):
    """What the script prints, as pairs of plain and steered texts."""
    monkeypatch.setattr(sys, "argv", [str(path), *words])
    capsys.readouterr()
    runpy.run_path(str(path), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["plain", "steered"] * len(words)
    texts = [line.partition(" ")[2].strip() for line in lines]
    return list(zip(texts[::2], texts[1::2], strict=True))


@pytest.mark.parametrize("positions", ["prompt", "every", "all"])
@pytest.mark.parametrize("at", [AT, POST], ids=lambda at: at.site)
def test_the_script_writes_what_steer_writes(pocket, vector, tmp_path, monkeypatch, capsys, at, positions):
    path = export_vector(pocket, vector, tmp_path / "antonym.py", format="python", at=at, positions=positions)
    found = run_script(path, monkeypatch, capsys, *WORDS)
    prompts = [f"Input: {word}\nOutput:" for word in WORDS]
    plain = complete(pocket, prompts)
    with steer(pocket, vector, at=at, positions=positions):
        steered = [complete(pocket, prompt)[0] for prompt in prompts]
    assert found == [
        (one.strip().replace("\n", "⏎"), other.strip().replace("\n", "⏎"))
        for one, other in zip(plain, steered, strict=True)
    ]
    assert any(one != other for one, other in found)


def test_the_script_is_short_and_needs_torch_and_transformers_alone(pocket, vector, tmp_path):
    path = export_vector(pocket, vector, tmp_path / "antonym.py", format="python", at=AT)
    assert "POSITIONS = 'prompt'" in path.read_text()
    text = path.read_text()
    tree = ast.parse(text)
    needed = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    needed |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert needed == {"base64", "sys", "torch", "transformers"}
    assert len([line for line in text.splitlines() if line.strip()]) < 50
    again = export_vector(pocket, vector, tmp_path / "x" / "antonym.py", format="python", at=AT, positions="prompt")
    assert again.read_text() == text


@pytest.mark.parametrize("positions", [(), ("--positions", "every")])  # nothing said: both commands mean the same
def test_the_command_writes_the_script_whose_texts_are_those_of_steer(vector, tmp_path, monkeypatch, capsys, positions):
    file, out = vector.save(tmp_path / "antonym.safetensors"), tmp_path / "antonym.py"
    place = ["--layer", "1", "--alpha", "4", "--site", "attn_out", *positions]
    assert main(["export", str(file), "--format", "python", *place, "--out", str(out)]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [f"written: {out}", f"use it:  python {out} TEXT"]
    ((plain, steered),) = run_script(out, monkeypatch, capsys, "big")
    assert main(["steer", "--vector", str(file), *place, "--text", "big"]) == 0
    said = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line[:1] in "ps" and line)
    assert (said["plain"], said["steered"]) == (plain, steered)


FOLDED = {  # where the bias comes from
    "gpt2": "the module has one",
    "neox": "the module has one",
    "llama": "mlp_bias",
    "granite": "mlp_bias",
    "falcon": "bias",
}


@pytest.mark.parametrize("site", ["resid_post", "attn_out"])
@pytest.mark.parametrize("family", FOLDED)
def test_a_folded_checkpoint_is_the_steered_model(new_model, byte_level, tmp_path, family, site):
    from transformers import AutoModelForCausalLM

    model = new_model(family, byte_level)
    iv, at = vector_for(model), Setting(1, 2.0, site)
    folder = export_vector(model, iv, tmp_path / "folded", format="checkpoint", at=at, positions="all")
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokens, _ = random_prompts((6, 6))
    with torch.no_grad(), steer(model, iv, at=at, positions="all"):
        want = model(tokens)
    with torch.no_grad():
        found = plain(tokens).logits
        assert (model(tokens) - want).abs().max() > 0.1
    torch.testing.assert_close(found, want, atol=2e-3, rtol=1e-3)
    switched = {
        name
        for name, value in plain.config.to_dict().items()
        if "bias" in name and value != getattr(model.original_model.config, name)
    }
    assert switched <= {FOLDED[family], "attention_bias"}


def test_a_folded_checkpoint_writes_the_steered_texts_and_opens_in_ivlens(pocket, vector, tmp_path):
    folder = export_vector(pocket, vector, tmp_path / "folded", format="checkpoint", at=POST, positions="all")
    opened = load_model(folder)
    prompts = [f"Input: {word}\nOutput:" for word in WORDS]
    with steer(pocket, vector, at=POST, positions="all"):
        assert complete(opened, prompts) == complete(pocket, prompts)
    assert complete(opened, prompts) != complete(pocket, prompts)
    record = json.loads((folder / "steered.json").read_text())
    assert record["vector"] == "antonym" and record["at"] == POST._asdict() and record["positions"] == "all"
    assert not [path for path in folder.iterdir() if path.suffix == ".py"]  # no code is needed


def test_no_model_is_lost_under_a_folded_one(pocket, vector, tmp_path):
    """Neither the one that is steered, nor one of somebody else; an earlier export is replaced."""
    other, folded = tmp_path / "other", tmp_path / "folded"
    other.mkdir()
    (other / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="holds a model that was not exported by ivlens"):
        export_vector(pocket, vector, other, format="checkpoint", at=POST)
    assert [path.name for path in other.iterdir()] == ["config.json"]
    for _ in range(2):
        export_vector(pocket, vector, folded, format="checkpoint", at=POST)
    before = (folded / "model.safetensors").read_bytes()
    steered = load_model(folded)
    with pytest.raises(ValueError, match="is the folder that the model was opened from"):
        export_vector(steered, vector.for_model(steered), folded, format="checkpoint", at=POST)
    assert (folded / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("family", "site", "message"),
    [
        ("mistral", "resid_post", "no place for the vector as a bias.*no setting gives it one"),
        ("mistral", "attn_out", "no place for the vector as a bias"),
        ("gemma2", "resid_post", "norms what is written there"),
        ("gemma2", "attn_out", "norms what is written there"),
        ("mixtral", "resid_post", "several experts"),
        ("mpt", "resid_post", "no place for the vector as a bias"),
    ],
)
def test_an_architecture_without_a_place_is_refused(new_model, tmp_path, family, site, message):
    model = new_model(family)
    with pytest.raises(ValueError, match=message):
        export_vector(
            model,
            vector_for(model),
            tmp_path / "folded",
            format="checkpoint",
            at=Setting(1, 1.0, site),
            positions="all",
        )
    assert not (tmp_path / "folded").exists()


def test_the_harness_file_names_one_module(pocket, vector, tmp_path):
    """Read here as the harness reads it; see `test_harness.py` for its numbers."""
    for at, name in ((AT, "layers.1.self_attn.o_proj"), (POST, "layers.2")):
        path = export_vector(pocket, vector, tmp_path / f"{at.site}.pt", format="lm-eval", at=at, positions="all")
        ((place, told),) = torch.load(path, weights_only=True).items()
        assert place == name and told["steering_coefficient"] == at.alpha and told["action"] == "add"
        assert torch.equal(told["steering_vector"], vector.theta)
        assert told["bias"] is None and told["head_index"] is None
    again = export_vector(pocket, vector, tmp_path / "other.pt", format="lm-eval", at=POST, positions="all")
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("site", ["resid_post", "attn_out"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "granite", "gemma2", "neox", "qwen3"])
def test_the_named_module_gives_the_steered_logits_in_every_family(new_model, tmp_path, family, site):
    """In Granite a block multiplies what attention writes; in Gemma 2 a norm stands behind it."""
    model, at = new_model(family), Setting(1, 2.0, site)
    iv = vector_for(model)
    path = export_vector(model, iv, tmp_path / "x.pt", format="lm-eval", at=at, positions="all")
    ((name, told),) = torch.load(path, weights_only=True).items()
    plain = hf_model(family)
    tokens, _ = random_prompts((6, 6))

    def add(module, given, output):
        moved = (output[0] if isinstance(output, tuple) else output) + told["steering_coefficient"] * iv.theta
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    plain.base_model.get_submodule(name).register_forward_hook(add)
    with torch.no_grad(), steer(model, iv, at=at, positions="all"):
        torch.testing.assert_close(plain(tokens).logits, model(tokens), atol=2e-3, rtol=1e-3)
    factor = Leaving(model, iv, at, "all").factor
    assert (factor != 1.0) == (family == "granite" and site == "attn_out")


def test_a_control_vector_is_read_back(pocket, vector, tmp_path):
    gguf = tool("gguf")
    path = export_vector(pocket, vector, tmp_path / "v.gguf", format="gguf-control-vector", at=POST, positions="all")
    reader = gguf.GGUFReader(path)
    assert reader.get_field("general.architecture").contents() == "controlvector"
    assert reader.get_field("controlvector.model_hint").contents() == "llama"
    assert reader.get_field("controlvector.layer_count").contents() == 1
    (direction,) = reader.tensors
    assert direction.name == "direction.2" and direction.tensor_type == gguf.GGMLQuantizationType.F32
    np.testing.assert_array_equal(direction.data, (POST.alpha * vector.theta).numpy())
    again = export_vector(pocket, vector, tmp_path / "w.gguf", format="gguf-control-vector", at=POST, positions="all")
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_llama_cpp_gives_the_logits_of_every_position(pocket, vector, byte_level, tmp_path):
    """The file as llama.cpp's loader puts it into its buffer: direction L at place L - 1."""
    llama_cpp, gguf = tool("llama_cpp"), tool("gguf")
    from ggufs import write_llama
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(pocket_path(), dtype=torch.float32)
    file = write_llama(tmp_path / "pocket.gguf", plain, byte_level)  # llama.cpp is given tokens, and no texts
    tokens = pocket.tokenizer("Input: big\nOutput: small\n\nInput: hot\nOutput:")["input_ids"]
    engine = llama_cpp.Llama(str(file), n_ctx=128, logits_all=True, verbose=False, n_threads=1)

    def logits():
        engine.reset()
        engine.eval(tokens)
        return torch.from_numpy(np.array(engine.scores[: len(tokens)]))

    own = torch.tensor([tokens])
    with torch.no_grad():
        bare = pocket(own)[0]
    torch.testing.assert_close(logits(), bare, atol=1e-2, rtol=0)
    n_layers, width = pocket.cfg.n_layers, pocket.cfg.d_model
    for layer in (1, 2, n_layers - 1):
        at = Setting(layer, 2.0, "resid_post")
        path = tmp_path / f"{layer}.gguf"
        export_vector(pocket, vector, path, format="gguf-control-vector", at=at, positions="all")
        (direction,) = gguf.GGUFReader(path).tensors
        n = int(direction.name.removeprefix("direction."))
        data = np.zeros(n * width, dtype=np.float32)
        data[(n - 1) * width :] = direction.data
        steered = llama_cpp.ctypes.cast(data.ctypes.data, llama_cpp.ctypes.POINTER(llama_cpp.ctypes.c_float))
        assert llama_cpp.llama_set_adapter_cvec(engine.ctx, steered, data.size, width, 1, n_layers) == 0
        with torch.no_grad(), steer(pocket, vector, at=at, positions="all"):
            want = pocket(own)[0]
        assert (want - bare).abs().max() > 0.5
        torch.testing.assert_close(logits(), want, atol=1e-2, rtol=0)


@pytest.mark.parametrize(
    ("format", "at", "positions", "message"),
    [
        ("lm-eval", AT, "prompt", "cannot express positions='prompt', expected positions=\"all\""),
        ("checkpoint", AT, "every", "cannot express positions='every'"),
        ("gguf-control-vector", POST, "prompt", "llama.cpp adds a vector at every position"),
        ("gguf-control-vector", AT, "all", "cannot express site='attn_out'"),
        ("gguf-control-vector", Setting(0, 1.0, "resid_post"), "all", "cannot express layer 0, expected a later one"),
        ("python", Setting(6, 1.0, "resid_post"), "all", "layer 6 does not exist"),
        ("python", Setting(1, 1.0, "z"), "all", "site is 'z'"),
        ("python", AT, "never", "positions is 'never'"),
        ("onnx", AT, "all", "format is 'onnx', expected one of lm-eval, python, checkpoint, gguf-control-vector"),
    ],
)
def test_what_cannot_leave_is_refused_in_one_sentence(pocket, vector, tmp_path, format, at, positions, message):
    path = tmp_path / f"x{''.join(SUFFIXES.get(format, ())[:1])}"
    with pytest.raises(ValueError, match=message) as caught:
        export_vector(pocket, vector, path, format=format, at=at, positions=positions)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_other_refusals(pocket, vector, new_model, tmp_path, monkeypatch):
    for format in FORMATS:
        if SUFFIXES[format]:
            with pytest.raises(ValueError, match=r"suffix '.txt', expected"):
                export_vector(pocket, vector, tmp_path / "x.txt", format=format, at=POST)
    with pytest.raises(ValueError, match="compute it on this model"):
        export_vector(pocket, vector_for(new_model("llama")), tmp_path / "x.py", format="python", at=POST)
    with pytest.raises(ValueError, match="positions is slice, expected one of prompt, every, all"):
        export_vector(pocket, vector, tmp_path / "x.py", format="python", at=POST, positions=slice(2))
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "gguf" else found(name, *more))
    with pytest.raises(ImportError, match=r"pip install 'ivlens\[gguf\]'"):
        export_vector(pocket, vector, tmp_path / "x.gguf", format="gguf-control-vector", at=POST)


def test_a_model_in_memory_leaves_its_label_in_the_script(new_model, byte_level, tmp_path):
    model = new_model("llama", byte_level)
    path = export_vector(model, vector_for(model), tmp_path / "x.py", format="python", at=Setting(1, 1.0, "attn_out"))
    assert f"MODEL, OPTIONS = {model.cfg.model_name!r}, {{}}" in path.read_text()
    assert hf_model("llama").get_submodule("model.layers.1.self_attn.o_proj") is not None
    assert "MODULE = 'model.layers.1.self_attn.o_proj'" in path.read_text()


@pytest.mark.real
def test_the_real_model_leaves_as_a_script_and_as_a_checkpoint(tmp_path, monkeypatch, capsys):
    from real import smollm2
    from transformers import AutoModelForCausalLM

    model, at = smollm2(), Setting(12, 6.0, "resid_post")
    quick = ivlens.EffectOptions(n_mean_prompts=8, n_check_prompts=0)
    effects = ivlens.head_effects(model, ivlens.load_task("antonym"), n_prompts=2, corruption="drop", options=quick)
    iv = InstructionVector.from_effects(effects)
    for positions in ("prompt", "every", "all"):
        path = export_vector(model, iv, tmp_path / "antonym.py", format="python", at=at, positions=positions)
        found = run_script(path, monkeypatch, capsys, "big")
        plain = complete(model, "Input: big\nOutput:")[0]
        with steer(model, iv, at=at, positions=positions):
            steered = complete(model, "Input: big\nOutput:")[0]
        assert found == [tuple(text.strip().replace("\n", "⏎") for text in (plain, steered))]
    folder = export_vector(model, iv, tmp_path / "folded", format="checkpoint", at=at, positions="all")
    folded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokens = torch.tensor([model.tokenizer("Input: big\nOutput: small")["input_ids"]])
    with torch.no_grad(), steer(model, iv, at=at, positions="all"):
        torch.testing.assert_close(folded(tokens).logits, model(tokens), atol=2e-2, rtol=1e-3)
