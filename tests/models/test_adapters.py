"""Adapters as peft writes them, of every kind and on every part: the logits are peft's own, or there is one refusal."""

import json
import shutil
import warnings
from pathlib import Path

import peft
import pytest
import torch
from conftest import byte_level_tokenizer
from families import hf_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from ivlens.forward.hooks import output_projection
from ivlens.models import load_model, model_identity

PROBE = torch.tensor([[5, 17, 40, 8, 99, 3, 398, 399]])
# each with weights that change something; what peft names modules of the three models
KINDS = {
    "lora": lambda on, **more: peft.LoraConfig(r=4, target_modules=on, init_lora_weights=False, **more),
    "dora": lambda on, **more: peft.LoraConfig(r=4, target_modules=on, init_lora_weights=False, use_dora=True, **more),
    "rslora": lambda on, **more: peft.LoraConfig(
        r=4, target_modules=on, init_lora_weights=False, use_rslora=True, **more
    ),
    "ia3": lambda on, **more: peft.IA3Config(
        target_modules=on, feedforward_modules=on, init_ia3_weights=False, **more
    ),
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
LACKING = {("ia3", "embedding"), ("vera", "embedding"), ("oft", "embedding"), ("ia3", "both"), ("vera", "both"), ("oft", "both")}


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


def peft_logits(base: Path, folder: Path, change=lambda model: model, probe=PROBE):
    with torch.no_grad():
        return peft.PeftModel.from_pretrained(change(opened(base)), folder).eval()(probe).logits


def logits(model, probe=PROBE):
    with torch.no_grad():
        return model(probe, use_cache=False)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_peft(kind, model, place, tmp_path):
    if (kind, place) in LACKING:
        pytest.skip("peft has no such layer")
    base = plain(model, tmp_path / "base")
    try:
        folder = trained(base, KINDS[kind](PLACES[place][MODELS[model][0]]), tmp_path / "out")
        want = peft_logits(base, folder)
    except (ValueError, TypeError, NotImplementedError, RuntimeError, AssertionError) as error:
        pytest.skip(f"peft itself refuses: {error!s:.60}")
    got = load_model(folder)
    assert (want - logits(load_model(base))).abs().max() > 1e-2, "the adapter changes nothing"
    torch.testing.assert_close(logits(got), want, atol=2e-4, rtol=1e-4)
