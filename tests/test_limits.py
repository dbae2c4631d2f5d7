"""Files that exhaust, one kind after the other: each ends in a right result or one sentence, soon."""

import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import byte_level_tokenizer
from families import hf_model
from fuzz_limits import LimitTargets, compressed_bin, expanded_bin, limit_targets, put_special
from fuzzing import run_cases
from safetensors.torch import load_file, save_file

from ivlens.common.foreign import read_foreign, read_pickled, read_tensors
from ivlens.forward.completions import complete
from ivlens.models import load_model
from ivlens.models.words import check_words
from ivlens.prompts.guarded import TooMuch, rendered
from ivlens.prompts.templates import PromptTemplate
from ivlens.tasks import load_task

NAMES = [
    "limits, task files", "limits, configuration", "limits, chat templates", "limits, prompt templates",
    "limits, tokenizers", "limits, patterns", "limits, adapters", "limits, pipes and devices",
]  # fmt: skip


@pytest.fixture(scope="module")
def targets(tmp_path_factory) -> LimitTargets:
    return limit_targets(tmp_path_factory.mktemp("limits"))


@pytest.fixture
def folder(tmp_path) -> Path:
    hf_model("llama", n_ctx=64).save_pretrained(tmp_path / "model")
    byte_level_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def changed(folder: Path, **values) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return folder


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "limits, patterns" else ()) for name in NAMES]
)
def test_files_that_exhaust(targets, name):
    assert list(targets.all()) == NAMES
    strategy, case = targets.all()[name]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run_cases(12, strategy, case)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / (
        2**30 if sys.platform == "darwin" else 2**20
    )
    assert grown < 2 and targets.tallies[name].n >= 6 and targets.tallies[name].refused.total() > 0


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"num_labels": 10**9}, "num_labels is 1000000000, expected at most"),
        ({"text_config": {"num_labels": 10**9}}, "num_labels is 1000000000"),
        ({"num_hidden_layers": 60_000}, "more than [0-9,]+ modules|whole number|fit together|numbers"),
        ({"num_attention_heads": 10**5, "num_key_value_heads": 10**5}, "numbers|fit together|head"),
        ({"head_dim": 2**20}, "expected sizes that fit together"),
        ({"intermediate_size": 2**20}, "expected sizes that fit together"),
    ],
)
def test_numbers_of_a_configuration_are_compared_before_anything_is_built(folder, values, match):
    with pytest.raises(ValueError, match=match):
        load_model(changed(folder, **values))


@pytest.mark.parametrize("where", ["_attn_implementation", "attn_implementation", "_experts_implementation"])
def test_nothing_that_a_configuration_names_is_fetched(folder, where, monkeypatch):
    import transformers.modeling_utils

    fetch = lambda *_, **__: pytest.fail("asked for a kernel")  # noqa: E731
    monkeypatch.setattr(transformers.modeling_utils, "lazy_import_flash_attention", fetch)
    extra = {"auto_map": {"AutoConfig": "a.B", "AutoModelForCausalLM": "a.C"}, "fusion_config": {"x": 1}}
    model: Any = load_model(changed(folder, **{where: "someone/kernels", "use_kernels": True}, **extra))
    assert model.original_model.config._attn_implementation == "eager"


def test_weights_stored_for_code_that_is_fetched_are_refused(folder):
    with pytest.raises(ValueError, match="'metal', which needs code that is fetched"):
        load_model(changed(folder, quantization_config={"quant_method": "metal"}))


def test_weights_without_a_place_are_refused(folder):
    with pytest.raises(ValueError, match=r"holds 9 weights that config.json has no place for \(model.layers.2"):
        load_model(changed(folder, num_hidden_layers=2))
    changed(folder, num_hidden_layers=3)
    path = folder / "model.safetensors"
    weights = load_file(path)
    save_file(weights | {"v_head.weight": torch.ones(1, 32)}, path)
    with pytest.raises(ValueError, match="holds 1 weights .*v_head.weight"):
        load_model(folder)


def test_what_other_versions_leave_in_a_file_is_no_weight(folder, tmp_path):
    path = folder / "model.safetensors"
    left = {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.ones(6) for n in range(3)}
    save_file(load_file(path) | left, path)
    load_model(folder)
    hf_model("gpt2", n_ctx=64).save_pretrained(tmp_path / "gpt2")
    byte_level_tokenizer().save_pretrained(tmp_path / "gpt2")
    path = tmp_path / "gpt2" / "model.safetensors"
    masks = {f"transformer.h.{n}.attn.bias": torch.ones(1, 1, 64, 64) for n in range(3)}
    masks |= {f"transformer.h.{n}.attn.masked_bias": torch.tensor(-1e4) for n in range(3)}
    save_file(load_file(path) | masks, path)
    load_model(tmp_path / "gpt2")
    hf_model("codegen").save_pretrained(tmp_path / "codegen")
    byte_level_tokenizer().save_pretrained(tmp_path / "codegen")
    path = tmp_path / "codegen" / "model.safetensors"
    masks = {f"transformer.h.{n}.attn.causal_mask": torch.ones(1, 1, 64, 64, dtype=torch.bool) for n in range(2)}
    save_file(load_file(path) | masks, path)
    load_model(tmp_path / "codegen")


def test_what_a_configuration_tells_of_its_training_is_no_size(folder):
    load_model(changed(folder, num_train_steps=300_000, num_samples=10**6, num_epochs=10**5, n_params=7 * 10**9))


def test_a_folder_is_read_as_transformers_reads_it(folder):
    """Weights in parts, in a `.bin`, in half precision; the same numbers, name and generation options."""
    from transformers import AutoModelForCausalLM

    plain: Any = AutoModelForCausalLM.from_pretrained(folder)
    for size in ("20KB", "5GB"):
        plain.save_pretrained(folder, max_shard_size=size)
        model: Any = load_model(folder)
        want = plain(torch.tensor([[1, 2, 3]])).logits
        assert torch.allclose(model(torch.tensor([[1, 2, 3]])), want, atol=1e-5)
        (folder / "model.safetensors").unlink(missing_ok=True)
    assert model.original_model.generation_config.to_dict() == plain.generation_config.to_dict()
    torch.save(plain.state_dict(), folder / "pytorch_model.bin")
    for path in folder.glob("model*"):
        path.unlink()
    assert torch.allclose(load_model(folder)(torch.tensor([[1, 2, 3]])), want, atol=1e-5)
    assert next(load_model(folder, dtype="bfloat16").parameters()).dtype == torch.bfloat16


def test_the_steps_of_an_adapters_training_are_no_sizes(tmp_path):
    from ivlens.models.adapters import Adapter
    from ivlens.models.bounds import check_bounds

    about = {"peft_type": "ADALORA", "total_step": 200_000, "tinit": 1000, "tfinal": 100_000, "deltaT": 1}
    check_bounds(Adapter(tmp_path / "adapter_config.json", about, {}), torch.nn.Linear(4, 4))
    with pytest.raises(ValueError, match="says init_r is 200000"):
        check_bounds(Adapter(tmp_path / "adapter_config.json", about | {"init_r": 200_000}, {}), torch.nn.Linear(4, 4))


def test_an_index_names_files_of_its_folder(folder):
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"lm_head.weight": "../other.safetensors"}}))
    with pytest.raises(ValueError, match="expected names of files directly in its folder"):
        load_model(folder)
    index.write_text(json.dumps({"weight_map": {"lm_head.weight": "gone.safetensors"}}))
    with pytest.raises(FileNotFoundError, match="lacks 'gone.safetensors'"):
        load_model(folder)


def test_a_file_that_is_cut_while_its_model_is_open_changes_nothing(folder):
    model = load_model(folder)
    before = model(torch.tensor([[1, 2, 3]])).clone()
    with (folder / "model.safetensors").open("r+b") as file:  # in place: mapped weights would be gone
        file.truncate(100)
    assert torch.equal(model(torch.tensor([[1, 2, 3]])), before)
    assert all(weight.isfinite().all() for weight in model.parameters())


def test_tensors_are_read_and_not_mapped(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"w": torch.arange(100_000)}, path)
    tensors, _ = read_tensors(path)
    os.truncate(path, 0)
    assert int(tensors["w"].sum()) == sum(range(100_000))


@pytest.mark.parametrize("make", [compressed_bin, expanded_bin])
def test_a_bin_that_unfolds_is_refused(make, tmp_path):
    make(tmp_path / "w.bin", 5_000)
    with pytest.raises(ValueError, match="compressed|stands for more numbers"):
        read_pickled(tmp_path / "w.bin")


@pytest.mark.parametrize("kind", ["fifo", "socket", "device"])
def test_only_regular_files_are_read(kind, tmp_path):
    put_special(tmp_path / "x", kind)
    with pytest.raises(OSError, match="regular file|No such device|not"):
        read_foreign(tmp_path / "x", 100)
    put_special(tmp_path / "large", "sparse")
    with pytest.raises(OSError, match="21,474,836,480 bytes, expected at most 100"):
        read_foreign(tmp_path / "large", 100)


def test_large_files_beside_a_task_are_left_alone(tmp_path):
    (tmp_path / "train.json").write_text(json.dumps([{"input": "big", "output": "small"}]))
    put_special(tmp_path / "labels.json", "sparse")
    put_special(tmp_path / "eval.json", "fifo")
    assert load_task(tmp_path).examples[0].answer == "small"
    put_special(tmp_path / "test.json", "sparse")
    with pytest.raises(ValueError, match="test.json: cannot be read .*at most 128 MiB"):
        load_task(tmp_path)


def test_columns_beside_the_examples_do_not_count(tmp_path):
    import pyarrow
    import pyarrow.parquet

    words = [f"word {n}" for n in range(50_000)]
    table = {"input": words, "output": words, "embedding": [[0.5] * 20] * len(words), "note": ["x" * 4000] * len(words)}
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "words.parquet")
    assert len(load_task(tmp_path / "words.parquet").examples) == len(words)
    with pytest.raises(ValueError, match="words.parquet: its texts have 200,[0-9,]* bytes once .*; use a part of it.$"):
        load_task(tmp_path / "words.parquet", input_column="note")
    with pytest.raises(ValueError, match="has the columns .*, expected 'nothing'; name it with input_column="):
        load_task(tmp_path / "words.parquet", input_column="nothing")


def test_repeated_keys_and_answers_take_no_longer_than_others(tmp_path):
    path = tmp_path / "t.json"
    path.write_text("{" + ",".join(f'"a": "{n}"' for n in range(60_000)) + "}")
    assert len(load_task(path).examples[0].answers) == 60_000
    path.write_text('{"a": ["x", "y"], "a": "z", "b": "w", "a": ["x"]}')
    assert load_task(path).examples[0].answers == ("x", "y", "z")


def test_chat_templates_are_rendered_as_transformers_does():
    from transformers.utils.chat_template_utils import render_jinja_template

    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b ~ c"}]
    source = (
        "{% macro m(x, n=2) %}[{{ x ~ n }}]{% endmacro %}{% macro w() %}<{{ caller() }}>{% endmacro %}"
        "{%- set ns = namespace(a=0) -%}{% for i in messages %}{% set ns.a = ns.a + 1 %}{{ loop.index0 ~ i['role'] }}"
        "{{ m(i.content, n=3) }}{% if loop.last and add_generation_prompt %}{{ '<a>' }}{% endif %}{% endfor %}"
        "{% set q %}x{{ ns.a }}y{% endset %}{{ q | upper | trim }}{{ messages | tojson(indent=2) }}{{ missing }}"
        "{{ messages | map(attribute='role') | join(', ') }}"
        "{{ messages | selectattr('role', 'equalto', 'user') | list }}"
        "{{ 'x' * 3 }}{{ '%s-%d' % ('a', 3) }}{{ '{:>4}'.format('b') }}{% call w() %}i{% endcall %}{{ none }}"
        "{% filter upper %}abc{% endfilter %}{% generation %}g{% endgeneration %}{{ 'a' ~ 1 ~ ['k'] }}"
        "{{ {'a': 1} | items | list }}{{ messages[1:][0].content[-1] }}{{ 7 // 2 + 2 ** 3 }}{{ 'a' < 'b' }}"
        "{% for a, b in {'k': 'v'}.items() %}{{ a ~ b }}{% break %}{% endfor %}{{ messages[0] is mapping }}"
    )
    want = render_jinja_template([turns], chat_template=source, add_generation_prompt=True)[0][0]
    assert rendered(source, {"messages": turns, "add_generation_prompt": True}) == want


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'x' | center(10 ** 9) }}", "{{ 'x' * 10 ** 10 }}", "{{ '{:1000000000}'.format(1) }}", "{{ 9 ** (9 ** 9) }}",
        "{% set s = 'x' * 500000 %}{% for i in range(9999) %}{% if s[1:] == s %}{% endif %}{% endfor %}",
        "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
    ],
)  # fmt: skip
def test_templates_end(source):
    with pytest.raises(TooMuch, match="it "):
        rendered(source, {})


def test_long_messages_in_a_loop_are_rendered():
    """jinja hands every call in a loop the loop's names; they are none of its arguments."""
    source = (
        "{% for message in messages %}{% set said = message['content'] %}"
        "{{ '<' + message['role'] + '>' + said.strip() }}{% endfor %}"
    )
    said = "word " * 20_000
    assert rendered(source, {"messages": [{"role": "user", "content": said}]}) == f"<user>{said.strip()}"


def test_fields_of_a_prompt_template_are_plain():
    for field in ("{input:>999999999}", "{input!r}", "{input:{input}}"):
        with pytest.raises(ValueError, match="with a format, expected"):
            PromptTemplate("wide", instructed=f"{{instruction}} {field}:", bare=f"{field}:")
    with pytest.raises(ValueError, match="has 5001 fields"):
        PromptTemplate("long", instructed="{input}" * 5000 + "{instruction}:", bare="{input}:")


def test_the_words_of_a_model_that_speaks_pass(folder):
    made = json.loads((folder / "tokenizer.json").read_text())
    word = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    for n, refused in ((28_672, False), (40_000, True)):
        words = [{"id": 1000 + i, "content": f"<sound_{i}>", **word} for i in range(n)]
        (folder / "tokenizer.json").write_text(json.dumps(made | {"added_tokens": words}))
        if refused:
            with pytest.raises(ValueError, match="has 40,000 special words, expected at most 32,768"):
                check_words(folder)
        else:
            check_words(folder)


def test_ordinary_tokenizers_pass(folder):
    import ivlens

    check_words(ivlens.pocket_path())
    made = json.loads((folder / "tokenizer.json").read_text())
    llama = r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    for pattern in (llama, r"(?:\p{L}\p{M}*)+|\s", r"[()*+]+\w"):  # the second has to be tried
        split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        marks = [{"type": "Replace", "pattern": {"String": "``"}, "content": '"'}] * 9
        made |= {"pre_tokenizer": split, "normalizer": {"type": "Sequence", "normalizers": marks}}
        (folder / "tokenizer.json").write_text(json.dumps(made))
        check_words(folder)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "neox"])
def test_padded_rows_are_numbers_in_float64_and_under_autocast(family):
    tokens, mask = torch.arange(5, 17).reshape(2, 6), torch.ones(2, 6, dtype=torch.long)
    mask[1, :2] = 0
    single, double = load_model(hf_model=hf_model(family)), load_model(hf_model=hf_model(family).double())
    with torch.no_grad():
        want = single(tokens * mask, attention_mask=mask, use_cache=False)[mask.bool()]
        got = double(tokens * mask, attention_mask=mask, use_cache=False)[mask.bool()]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = single(tokens * mask, attention_mask=mask, use_cache=False)[mask.bool()]
    assert torch.allclose(got.float(), want, atol=1e-4) and torch.allclose(rough.float(), want, atol=0.2)


def test_completions_in_float64_are_those_in_float32_or_one_error():
    prompts = ["ab", "abcdefgh"]
    made = [
        load_model(hf_model=hf_model("llama"), tokenizer=byte_level_tokenizer(), dtype=d)
        for d in ("float32", "float64")
    ]
    assert complete(made[0], prompts, max_new_tokens=3) == complete(made[1], prompts, max_new_tokens=3)
    broken = load_model(hf_model=hf_model("opt").double(), tokenizer=byte_level_tokenizer())
    with pytest.raises(ValueError, match="NaN on padded prompts in float64"):
        complete(broken, prompts, max_new_tokens=3)


@pytest.mark.parametrize("n", [14, 22, 30, 40, 60])
def test_a_pattern_that_counts_is_tried_on_lines_of_several_lengths(tmp_path, n):
    """`(a?){n}a{n}` is quick on a long line, and takes for ever on one that is a little too short."""
    targets = limit_targets(tmp_path)
    targets.pattern(("(a?){N}a{N}", n, False))
    assert targets.tallies["limits, patterns"].n == 1
