"""A script that completes texts with and without a vector, with torch and transformers alone."""

import base64
from pathlib import Path

from ivlens.common.files import write_whole
from ivlens.common.version import __version__
from ivlens.models.ggufheader import is_gguf
from ivlens.models.known import source_of
from ivlens.models.plain import module_paths
from ivlens.out.leaving import Leaving, module_name, plain_vector
from ivlens.prompts.rendering import Renderer
from ivlens.prompts.templates import find_template
from ivlens.prompts.tokens import Encoder

_MARK = "\ufffcinput\ufffc"  # stands for the input while the prompt's form is found; in no template
_SCRIPT = '''\
"""Completes a text with and without an Instruction Vector, with torch and transformers alone.

    python {name} big

{words}. Written by ivlens {version}.
"""

import base64
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

MODEL, OPTIONS = {model!r}, {options!r}
MODULE = {module!r}  # the vector is added to its output
POSITIONS = {positions!r}  # prompt: at the last prompt token; every: at each new token too; all: at every token
BEFORE, AFTER = {before!r}, {after!r}  # the prompt around the text
START = {start!r}  # tokens before every prompt
VECTOR = {vector!r}  # with its strength, float32

tokenizer = AutoTokenizer.from_pretrained(MODEL, **OPTIONS)
model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.{dtype}, attn_implementation="eager", **OPTIONS).eval()
model.generation_config = GenerationConfig(do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=0)
vector = torch.frombuffer(bytearray(base64.b64decode(VECTOR)), dtype=torch.float32).to(model.dtype)


def complete(text, vector=None, max_new_tokens=16):
    ids = tokenizer(BEFORE + text + AFTER, add_special_tokens=False).input_ids
    ids = torch.tensor([ids if ids[: len(START)] == START else START + ids])
    n_passes = 0

    def add(module, inputs, output):
        nonlocal n_passes
        n_passes += 1  # the first pass reads the prompt, later ones a new token each
        hidden = output[0] if isinstance(output, tuple) else output
        if vector is not None and (POSITIONS != "prompt" or n_passes == 1):
            hidden[:, slice(None) if POSITIONS == "all" else slice(-1, None)] += vector

    hook = model.get_submodule(MODULE).register_forward_hook(add)
    with torch.no_grad():
        written = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new_tokens)
    hook.remove()
    return tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)


if __name__ == "__main__":
    for text in sys.argv[1:]:
        print("plain   ", complete(text).strip().replace("\\n", "⏎"))
        print("steered ", complete(text, vector).strip().replace("\\n", "⏎"))
'''


def write_script(leaving: Leaving, path: Path) -> Path:
    """Write the script, with the vector and the form of its prompts inside.

    The model is opened by the path or the name that ivlens opened it by, which is a line at the top of the script.

    Raises:
        ValueError: a model without a tokenizer, or one that was opened with an adapter.
    """
    model, (layer, _, site) = leaving.model, leaving.at
    paths = module_paths(model)
    place, options = _opened_by(model.cfg.model_name)
    before, after = _around(leaving)
    text = _SCRIPT.format(
        name=path.name,
        words=leaving.words.replace("\\", "").replace('"', "'"),
        version=__version__,
        model=place,
        options=options,
        module=module_name(paths, layer, site),
        positions=leaving.positions,
        before=before,
        after=after,
        start=Encoder(model.tokenizer).start,
        vector=base64.b64encode(plain_vector(leaving.shown).numpy().astype("<f4").tobytes()).decode(),
        dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
    )
    return write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def _opened_by(label: str) -> tuple[str, dict[str, str]]:
    """What transformers opens the same model by, and further arguments; the label itself for a model in memory."""
    try:
        source = source_of(label)
    except (OSError, ValueError):
        return label, {}
    place = Path(source)
    if (place / "adapter_config.json").is_file() and not (place / "config.json").is_file():
        raise ValueError(
            f"model {label!r} has an adapter, which plain transformers cannot open alone, expected a whole model; "
            "merge it (peft_model.merge_and_unload()), save it, and open that."
        )
    if is_gguf(place):
        return str(place.parent.absolute()), {"gguf_file": place.name}
    return (str(place.absolute()) if place.exists() else str(source)), {}


def _around(leaving: Leaving) -> tuple[str, str]:
    """What stands before and behind an input in the bare prompts of the vector; nothing where none are recorded."""
    recipe = leaving.iv.recipe
    if recipe is None:
        return "", ""
    prompt = Renderer(find_template(recipe.template), leaving.model.tokenizer, fused=False)(None, (), _MARK)[0]
    before, _, after = prompt.partition(_MARK)
    return before, after
