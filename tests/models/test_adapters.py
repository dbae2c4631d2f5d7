"""Adapters as peft writes them, of every kind and on every part: the logits are peft's own, or there is one refusal."""

import json
import shutil
import warnings
from itertools import product
from pathlib import Path

import peft
import pytest
import torch
from conftest import byte_level_tokenizer
from families import hf_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from ivlens.forward.completions import complete
from ivlens.forward.hooks import output_projection
from ivlens.models import load_model, model_identity
from ivlens.models.checkpoints import checkpoint_series
from ivlens.models.plain import plain_model
from ivlens.models.projection import adapted_weight

PROBE = torch.tensor([[5, 17, 40, 8, 99, 3, 398, 399]])
# each with weights that change something; what peft names modules of the three models
KINDS = {
    "lora": lambda on, **more: peft.LoraConfig(r=4, target_modules=on, init_lora_weights=False, **more),
    "dora": lambda on, **more: peft.LoraConfig(r=4, target_modules=on, init_lora_weights=False, use_dora=True, **more),
    "rslora": lambda on, **more: peft.LoraConfig(
        r=4, target_modules=on, init_lora_weights=False, use_rslora=True, **more
    ),
    "ia3": lambda on, **more: peft.IA3Config(target_modules=on, feedforward_modules=on, init_ia3_weights=False, **more),
    "vera": lambda on, **more: peft.VeraConfig(r=4, target_modules=on, init_weights=False, **more),
    "oft": lambda on, **more: peft.OFTConfig(oft_block_size=4, target_modules=on, init_weights=False, **more),
}
MODELS = {"tied": ("llama", True), "untied": ("llama", False), "gpt2": ("gpt2", True)}
PLACES = {
    "o": {"llama": ["o_proj"], "gpt2": ["attn.c_proj"]},
    "qv": {"llama": ["q_proj", "v_proj"], "gpt2": ["c_attn"]},
    "mlp": {"llama": ["down_proj", "o_proj"], "gpt2": ["mlp.c_proj", "mlp.c_fc"]},
    "embedding": {"llama": ["q_proj", "embed_tokens"], "gpt2": ["wte", "c_attn"]},
    "head": {"llama": ["o_proj", "lm_head"], "gpt2": ["lm_head"]},
    "both": {"llama": ["embed_tokens", "lm_head"], "gpt2": ["wte", "lm_head"]},
}
EMBEDDINGS = {"llama": "embed_tokens", "gpt2": "wte"}
# of these peft has no layer: for an embedding, or for GPT-2's projections
LACKING = {(kind, place) for kind in ("ia3", "vera", "oft") for place in ("embedding", "both")}


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def plain(model: str, folder: Path) -> Path:
    """A checkpoint of one of the models, with a tokenizer; a tied one shares its embeddings."""
    family, tied = MODELS[model]
    made = hf_model(family)
    if tied and family == "llama":  # a model of its own, since tying is part of what it is made from
        made.config.tie_word_embeddings = True
        made = type(made)(made.config).eval()
    assert (made.get_input_embeddings().weight is made.get_output_embeddings().weight) is tied
    made.save_pretrained(folder)
    byte_level_tokenizer().save_pretrained(folder)
    return folder


def opened(folder: Path):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def trained(base: Path, config, folder: Path, change=lambda model: model, **saving) -> Path:
    """Adapters in a folder, as they would be after training."""
    model = change(opened(base))
    model.name_or_path = str(base)
    torch.manual_seed(3)
    made = peft.get_peft_model(model, config)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if "modules_to_save" in name or "magnitude" in name or "vera_lambda" in name or "trainable_tokens" in name:
                weight.add_(0.3 * torch.randn_like(weight))
    made.save_pretrained(folder, **saving)
    return folder


def peft_logits(base: Path, folder: Path | None, change=lambda model: model, probe=PROBE):
    model = change(opened(base))
    with torch.no_grad():
        return (model if folder is None else peft.PeftModel.from_pretrained(model, folder).eval())(probe).logits


def logits(model, probe=PROBE):
    with torch.no_grad():
        return model(probe, use_cache=False)


@pytest.fixture(scope="module", params=MODELS)
def base(request, tmp_path_factory) -> tuple[str, Path]:
    """Family and folder of each of the models."""
    return MODELS[request.param][0], plain(request.param, tmp_path_factory.mktemp(request.param))


def every_kind_in_every_place():
    """In each of the models; these are slow ones, but for one model that changes from place to place."""
    for (n, kind), (m, place) in product(enumerate(KINDS), enumerate(PLACES)):
        able = [name for name in MODELS if name != "gpt2" or kind not in ("vera", "oft")]
        for name in MODELS:
            marks = () if name == able[(n + m) % len(able)] else pytest.mark.slow
            yield pytest.param(name, kind, place, marks=marks, id=f"{name}-{kind}-{place}")


@pytest.mark.parametrize(("base", "kind", "place"), [*every_kind_in_every_place()], indirect=["base"])
def test_logits_are_those_of_peft(kind, base, place, tmp_path):
    if (kind, place) in LACKING:
        pytest.skip("peft has no such layer")
    family, source = base
    try:
        folder = trained(source, KINDS[kind](PLACES[place][family]), tmp_path / "out")
        want = peft_logits(source, folder)
    except (ValueError, TypeError) as error:
        if "is not supported" not in str(error):
            raise
        pytest.skip(f"peft itself refuses: {error!s:.60}")
    got = load_model(folder)
    assert (want - peft_logits(source, None)).abs().max() > 1e-2, "the adapter changes nothing"
    torch.testing.assert_close(logits(got), want, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_heads_write_alike_with_live_and_with_merged_adapters(kind, base, tmp_path):
    family, source = base
    if family == "gpt2" and kind in ("vera", "oft"):
        pytest.skip("peft has no such layer")
    folder = trained(source, KINDS[kind](PLACES["o"][family]), tmp_path / "out")
    merged = load_model(folder)
    inside = peft.PeftModel.from_pretrained(opened(source), folder)
    live = load_model(hf_model=inside.get_base_model(), tokenizer=merged.tokenizer)
    torch.testing.assert_close(output_projection(live), output_projection(merged), atol=2e-5, rtol=1e-4)
    first = output_projection(load_model(source))
    assert (output_projection(live) - first).abs().max() > 1e-2
    with inside.disable_adapter():
        torch.testing.assert_close(output_projection(live), first, atol=2e-5, rtol=1e-4)
    inside.merge_adapter()
    torch.testing.assert_close(output_projection(live), output_projection(merged), atol=2e-5, rtol=1e-4)


def grown(by: int):
    return lambda model: model.resize_token_embeddings(400 + by, mean_resizing=False) and model


@pytest.mark.parametrize("saved", [("head",), ("embedding",), ("embedding", "head"), ("embedding", "head", "o")])
def test_modules_that_are_saved_whole(base, saved, tmp_path):
    family, source = base
    names = {"head": "lm_head", "embedding": EMBEDDINGS[family], "o": PLACES["o"][family][0]}
    config = peft.LoraConfig(
        target_modules=PLACES["qv"][family], init_lora_weights=False, modules_to_save=[names[one] for one in saved]
    )
    folder = trained(source, config, tmp_path / "out")
    got, want = load_model(folder), peft_logits(source, folder)
    torch.testing.assert_close(logits(got), want, atol=2e-4, rtol=1e-4)
    copy = plain_model(got)  # what is trained on is made of it: it has to know that it is not tied any more
    torch.testing.assert_close(copy(PROBE).logits, want, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("by", [3, 40, -16])
@pytest.mark.parametrize("how", ["saved", "resized", "trained"])
def test_vocabularies_that_grew(base, by, how, tmp_path):
    family, source = base
    names = {EMBEDDINGS[family], "lm_head"}
    config = {
        "saved": peft.LoraConfig(target_modules=PLACES["qv"][family], modules_to_save=sorted(names)),
        "resized": peft.LoraConfig(target_modules=PLACES["qv"][family], init_lora_weights=False),
        "trained": KINDS["lora"](PLACES["embedding"][family]),
    }[how]
    folder = trained(source, config, tmp_path / "out", grown(by), save_embedding_layers=how != "saved")
    if how == "trained" and by > 0 and not opened(source).config.tie_word_embeddings:
        with pytest.raises(ValueError, match="no file has lm_head.weight"):  # peft does not save it then
            load_model(folder)
        return
    probe = torch.tensor([[5, 17, 99, 3, 400 + by - 1]])
    got = load_model(folder)
    assert got.cfg.d_vocab == 400 + by and model_identity(got).d_vocab == 400 + by
    torch.testing.assert_close(logits(got, probe), peft_logits(source, folder, grown(by), probe), atol=2e-4, rtol=1e-4)


def test_words_without_weights_are_refused(base, tmp_path):
    family, source = base
    config = peft.LoraConfig(target_modules=PLACES["qv"][family], modules_to_save=[EMBEDDINGS[family]])
    folder = trained(source, config, tmp_path / "out", grown(3), save_embedding_layers=False)
    weights = load_file(folder / "adapter_model.safetensors")
    head = [name for name in weights if "lm_head" in name]
    save_file({name: one for name, one in weights.items() if name not in head}, folder / "adapter_model.safetensors")
    if opened(source).config.tie_word_embeddings:
        load_model(folder)
    else:
        with pytest.raises(ValueError, match="vocabulary has 403 words, the model's 400, and no file has lm_head"):
            load_model(folder)


def test_weights_in_a_bin_are_those_in_safetensors(base, tmp_path):
    family, source = base
    folder = trained(source, KINDS["lora"](PLACES["mlp"][family]), tmp_path / "out")
    want = logits(load_model(folder))
    weights = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    torch.save(weights, folder / "adapter_model.bin")
    assert torch.equal(logits(load_model(folder)), want)
    torch.save({"a": weights, "b": 3}, folder / "adapter_model.bin")
    with pytest.raises(ValueError, match=r"adapter_model.bin' holds something else, expected tensors by name"):
        load_model(folder)


class Harmful:
    """Calls something when it is unpickled."""

    def __reduce__(self):
        return print, ("this was run",)


def test_a_bin_that_would_run_code_is_refused(base, checkpoint, tmp_path, capsys):
    family, source = base
    folder = trained(source, KINDS["lora"](PLACES["qv"][family]), tmp_path / "out")
    (folder / "adapter_model.safetensors").unlink()
    torch.save({"a": Harmful()}, folder / "adapter_model.bin")
    with pytest.raises(ValueError, match=r"adapter_model.bin' holds more than tensors, or is damaged"):
        load_model(folder)
    (checkpoint / "model.safetensors").unlink()
    torch.save({"a": Harmful()}, checkpoint / "pytorch_model.bin")
    with pytest.raises(
        ValueError, match=r"a file of weights is damaged or holds more than tensors; nothing else is read"
    ):
        load_model(checkpoint)
    assert "this was run" not in capsys.readouterr().out


def test_whole_models_in_a_bin(checkpoint):
    want = load_model(checkpoint)
    weights = load_file(checkpoint / "model.safetensors")
    (checkpoint / "model.safetensors").unlink()
    torch.save(weights, checkpoint / "pytorch_model.bin")
    got = load_model(checkpoint)
    assert model_identity(got) == model_identity(want) and torch.equal(logits(got), logits(want))
    (checkpoint / "pytorch_model.bin").unlink()
    names = sorted(weights)
    index = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):  # as transformers shares out large ones
        file = f"pytorch_model-{number:05d}-of-00002.bin"
        torch.save({name: weights[name] for name in part}, checkpoint / file)
        index |= dict.fromkeys(part, file)
    (checkpoint / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    assert model_identity(load_model(checkpoint)) == model_identity(want)


def test_the_adapters_own_tokenizer_and_chat_template(base, tmp_path):
    family, source = base
    folder = trained(source, KINDS["lora"](PLACES["qv"][family]), tmp_path / "out")
    without = load_model(folder)
    assert without.tokenizer.chat_template is None
    tokenizer = byte_level_tokenizer()
    tokenizer.add_tokens(["<mine>"])
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer.save_pretrained(folder)
    got = load_model(folder)
    assert got.tokenizer.chat_template == tokenizer.chat_template
    assert got.tokenizer("a <mine>")["input_ids"] == tokenizer("a <mine>")["input_ids"]
    assert model_identity(got).tokenizer_hash != model_identity(without).tokenizer_hash
    assert load_model(folder, base=load_model(source)).tokenizer.chat_template == tokenizer.chat_template
    assert load_model(folder, tokenizer=without.tokenizer).tokenizer is without.tokenizer
    for file in folder.glob("tokenizer*"):
        file.unlink()
    alone = load_model(folder).tokenizer  # chat_template.jinja is left, which trainers write by itself
    assert alone.chat_template == tokenizer.chat_template and "<mine>" not in alone.get_vocab()


def test_adapters_on_adapters(base, tmp_path):
    family, source = base
    first = trained(source, KINDS["lora"](PLACES["qv"][family]), tmp_path / "first")
    second = tmp_path / "second"
    peft.get_peft_model(plain_model(load_model(first)), KINDS["ia3"](PLACES["mlp"][family])).save_pretrained(second)
    about = json.loads((second / "adapter_config.json").read_text())
    (second / "adapter_config.json").write_text(json.dumps(about | {"base_model_name_or_path": str(first)}))
    want = peft.PeftModel.from_pretrained(plain_model(load_model(first)), second)(PROBE).logits
    torch.testing.assert_close(logits(load_model(second)), want, atol=2e-4, rtol=1e-4)
    (second / "adapter_config.json").write_text(json.dumps(about | {"base_model_name_or_path": str(second)}))
    with pytest.raises(ValueError, match="name each other as their model"):
        load_model(second)


@pytest.mark.parametrize("config", [peft.PromptTuningConfig, peft.PrefixTuningConfig])
def test_adapters_that_are_no_change_of_weights(base, config, tmp_path):
    _, source = base
    made = config(num_virtual_tokens=2, task_type="CAUSAL_LM")
    peft.get_peft_model(opened(source), made).save_pretrained(tmp_path)
    about = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(about | {"base_model_name_or_path": str(source)}))
    with pytest.raises(ValueError, match="which adds to the prompt and not to the weights, expected one that can be"):
        load_model(tmp_path)


def test_adapters_beside_a_configuration_and_beside_a_whole_model(base, tmp_path):
    family, source = base
    folder = trained(source, KINDS["lora"](PLACES["qv"][family]), tmp_path / "out")
    want = logits(load_model(folder))
    shutil.copy(source / "config.json", folder)  # as some trainers do
    assert torch.equal(logits(load_model(folder)), want)
    shutil.copy(source / "model.safetensors", folder)
    with pytest.raises(ValueError, match=r"holds adapters \(adapter_config.json\) and a whole model"):
        load_model(folder)


def test_only_the_adapters_of_the_folder_itself_are_opened(base, tmp_path):
    """A trainer leaves those of the way in subfolders; they are a series, by their steps."""
    family, source = base
    out = trained(source, KINDS["lora"](PLACES["qv"][family]), tmp_path / "run-3")
    steps = {100: KINDS["lora"](PLACES["o"][family]), 20: KINDS["dora"](PLACES["qv"][family])}
    for step, config in steps.items():
        trained(source, config, out / f"checkpoint-{step}")
    (out / "trainer_state.json").write_text(json.dumps({"global_step": 120}))
    want = peft_logits(source, out)
    torch.testing.assert_close(logits(load_model(out)), want, atol=2e-4, rtol=1e-4)
    series = checkpoint_series(out)
    assert [(one.name, one.step) for one in series] == [
        ("before", 0), ("checkpoint-20", 20), ("checkpoint-100", 100), ("run-3", 120),
    ]  # fmt: skip
    for one in series.later:
        torch.testing.assert_close(logits(one.open()), peft_logits(source, one.source), atol=2e-4, rtol=1e-4)
    keys = [json.dumps(one.key()) for one in series]
    assert len(set(keys)) == 4
    shutil.rmtree(out / "checkpoint-20")
    assert json.dumps(series.later[-1].key()) == keys[-1], "checkpoints inside are no part of the last model"


def test_a_whole_model_with_checkpoints_inside(checkpoint):
    first = logits(load_model(checkpoint))
    for step in (200, 30):
        inner = checkpoint / f"checkpoint-{step}"
        hf_model("llama", seed=step).save_pretrained(inner)
        byte_level_tokenizer().save_pretrained(inner)
    (checkpoint / "1_Pooling").mkdir()  # no checkpoint: it has no weights
    shutil.copy(checkpoint / "config.json", checkpoint / "1_Pooling")
    series = checkpoint_series(checkpoint)
    assert [(one.name, one.step) for one in series] == [
        ("checkpoint-30", 30), ("checkpoint-200", 200), ("checkpoint", None),
    ]  # fmt: skip
    assert torch.equal(logits(series.later[-1].open()), first) and not torch.equal(logits(series.first.open()), first)
    for name in ("model.safetensors", "config.json"):  # a run that was stopped before it wrote its last model
        (checkpoint / name).unlink()
        assert [one.step for one in checkpoint_series(checkpoint)] == [30, 200]
    with pytest.raises(FileNotFoundError, match="pass one of the checkpoints in it"):
        load_model(checkpoint)


@pytest.mark.parametrize("family", ["gpt2", "neox"])
def test_live_adapters_that_wrapped_passes_leave_out(family):
    """They begin at zero, so that the logits are the same, and would be trained for nothing."""
    on = {"gpt2": ["c_attn"], "neox": ["query_key_value"]}[family]
    inside = peft.get_peft_model(hf_model(family), peft.LoraConfig(target_modules=on))
    with pytest.raises(ValueError, match="has adapters that its wrapped passes leave out .*; 3 modules: fused"):
        load_model(hf_model=inside.get_base_model())


@pytest.mark.parametrize("kind", KINDS)
def test_live_adapters_of_every_kind_stay_trainable(kind):
    inside = peft.get_peft_model(hf_model("llama"), KINDS[kind](["q_proj", "o_proj"]))
    own = {name for name, weight in inside.get_base_model().named_parameters() if weight.requires_grad}
    model = load_model(hf_model=inside.get_base_model())
    kept = {
        name.replace("._original_component", "") for name, weight in model.named_parameters() if weight.requires_grad
    }
    assert kept == own and own
    model(PROBE).sum().backward()
    assert all(weight.grad is not None for weight in inside.parameters() if weight.requires_grad)


def test_a_projection_that_depends_on_its_input_is_refused(llama):
    class Gated(peft.tuners.lora.layer.Linear):
        def forward(self, values, *args, **more):
            return super().forward(values, *args, **more) * values.norm(dim=-1, keepdim=True)

    inside = peft.get_peft_model(hf_model("llama"), KINDS["lora"](["o_proj"]))
    for layer in inside.get_base_model().model.layers:
        layer.self_attn.o_proj.__class__ = Gated
        Gated.__module__ = "peft.gated"
    live = load_model(hf_model=inside.get_base_model())
    with pytest.raises(ValueError, match="layer 1 has an adapter .Gated. that depends on its input"):
        output_projection(live, 1)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_projections_lose_nothing_to_their_bias(dtype):
    inside = peft.get_peft_model(hf_model("gpt2"), KINDS["lora"](["attn.c_proj"]))
    with torch.no_grad():
        for block in inside.get_base_model().transformer.h:
            block.attn.c_proj.base_layer.bias.add_(100.0)
    inside.to(getattr(torch, dtype))
    got = adapted_weight(inside.get_base_model().transformer.h[0].attn.c_proj, 4, 8, "it")
    layer = inside.merge_and_unload().transformer.h[0].attn.c_proj
    torch.testing.assert_close(got.flatten(0, 1), layer.weight, atol=0.02, rtol=0.02)


def test_a_padding_token_that_the_model_has_no_word_for(byte_level):
    made = lambda: hf_model("llama", n_vocab=len(byte_level))  # noqa: E731
    prompts = ["big", "Input: big\nOutput:"]
    want = complete(load_model(hf_model=made(), tokenizer=byte_level_tokenizer()), prompts, max_new_tokens=4)
    tokenizer = byte_level_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    model = load_model(hf_model=made(), tokenizer=tokenizer)
    assert complete(model, prompts, max_new_tokens=4) == want
    assert int(model.to_tokens(prompts).max()) < model.cfg.d_vocab
    with pytest.raises(ValueError, match=f"tokens contains {len(byte_level)}, expected token ids from 0 to"):
        complete(model, ["big [PAD]"])
