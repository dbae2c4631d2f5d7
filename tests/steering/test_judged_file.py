"""Rows of a judgement in a file: what is written is read again, and what is damaged is refused."""

import math
from dataclasses import replace

import pytest
import torch

from ivlens.models.fingerprint import ModelIdentity
from ivlens.steering.judged_file import FILE, read_judged, write_judged
from ivlens.steering.summary import METRICS, Judged, Scores, Setting, accuracy_only, summary

MODEL = ModelIdentity("tiny", None, "LlamaForCausalLM", 3, 4, 16, 4, 50, "0" * 64)


@pytest.fixture
def judged() -> list[Judged]:
    generator = torch.Generator().manual_seed(0)
    scores = Scores(*(torch.rand(2, 5, generator=generator) for _ in METRICS))
    places = (Setting(1, 2.0, "resid_post"), Setting(0, 0.5, "attn_out"))
    details = {"lost": 0.25, "n_as_good": 1, "alpha": None, "kl": math.nan}
    return [
        Judged("random", scores, ("a", "b"), places, on_select=(0.5, math.nan), variant="k=5", details=details),
        Judged("constant", accuracy_only(torch.tensor([1.0, 0.0, 1.0])), ("x",), has_probs=False, against=""),
        Judged("other_tasks", Scores(*(torch.zeros(0, 5) for _ in METRICS))),
    ]


def test_rows_are_read_as_they_were_written(judged, tmp_path):
    found = read_judged(write_judged(tmp_path / "a", judged, MODEL))
    for one, other in zip(judged, found, strict=True):
        for metric in METRICS:
            assert torch.equal(getattr(one.scores, metric).nan_to_num(-9), getattr(other.scores, metric).nan_to_num(-9))
        names = ("condition", "variant", "against", "names", "settings", "has_probs", "on_select", "details")
        assert repr([getattr(one, name) for name in names]) == repr([getattr(other, name) for name in names])
        assert repr(summary(one)) == repr(summary(other)), "the table, with its columns in their order"
    again = write_judged(tmp_path / "b", found, MODEL)
    assert again.read_bytes() == (tmp_path / "a").read_bytes()


def test_edits_are_not_written(judged, tmp_path):
    with_model = [replace(judged[0], edits=(lambda where: None,))]
    assert read_judged(write_judged(tmp_path / "a", with_model, MODEL))[0].edits == ()


@pytest.mark.parametrize("wrong", ["no scores", "shape", "dtype", "settings", "names", "rows"])
def test_what_does_not_fit_together_is_refused(judged, tmp_path, wrong):
    tensors, about = FILE.read(write_judged(tmp_path / "a", judged, MODEL))
    row = about["rows"][0]
    if wrong == "no scores":
        del tensors["0/prob"]
    elif wrong == "shape":
        tensors["0/prob"] = torch.rand(2, 4)
    elif wrong == "dtype":
        tensors["0/prob"] = torch.zeros(2, 5, dtype=torch.int64)
    elif wrong == "settings":
        row["settings"] = row["settings"][:1]
    elif wrong == "names":
        row["names"] = None
    else:
        about["rows"] = 3
    FILE.write(tmp_path / "b", tensors, about)
    with pytest.raises(ValueError, match="is incomplete"):
        read_judged(tmp_path / "b")
