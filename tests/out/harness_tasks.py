"""Tasks of lm-evaluation-harness on the spot: a YAML file each, and their documents beside it."""

import json
from pathlib import Path

PAIRS = [
    ("big", "small"), ("hot", "cold"), ("happy", "sad"), ("light", "dark"), ("high", "low"), ("fast", "slow"),
    ("open", "closed"), ("full", "empty"),
]  # fmt: skip
TEXTS = ["Input: big\nOutput: small\n", "Give the opposite of the word.", "Input: cat\nOutput: cats\n"]

_CHOICE = """task: iv_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {documents}}}, cache_dir: {cache}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{label}}}}"
target_delimiter: " "
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
_WRITTEN = """task: iv_written
dataset_path: json
dataset_kwargs: {{data_files: {{test: {documents}}}, cache_dir: {cache}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{choices[label]}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 4, do_sample: false}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true, ignore_case: true}}]
"""
_ROLLING = """task: iv_rolling
dataset_path: json
dataset_kwargs: {{data_files: {{test: {documents}}}, cache_dir: {cache}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: word_perplexity}}]
"""


def write_tasks(folder: Path) -> Path:
    """Tasks `iv_choice`, `iv_written` and `iv_rolling`, of single words and of several, in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    asked = [
        {"question": f"Input: {word}\nOutput:", "choices": [opposite, word, "the house"], "label": 0}
        for word, opposite in PAIRS
    ]
    for name, form, documents in (
        ("choice", _CHOICE, asked),
        ("written", _WRITTEN, asked),
        ("rolling", _ROLLING, [{"text": text} for text in TEXTS]),
    ):
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(one) + "\n" for one in documents))
        (folder / f"{name}.yaml").write_text(form.format(documents=path, cache=folder / "cache"))
    return folder
