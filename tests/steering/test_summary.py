"""One row of a judgement: intervals, leads, p."""

import pandas as pd
import pytest
import torch

from ivlens.common.intervals import wilson
from ivlens.steering.summary import Judged, Scores, Setting, beside, corrected, paired, summary


def test_a_table_says_how_far_a_vector_leads_and_how_many_draws_reach_it():
    def judged(name, rows):
        accuracy = torch.tensor(rows)
        nothing = torch.full_like(accuracy, float("nan"))
        settings = (Setting(0, 1.0, "resid_post"),) * len(rows)
        return Judged(name, Scores(accuracy, accuracy, nothing, nothing), (name,) * len(rows), settings, False)

    vector = judged("iv", [[1.0, 1.0, 1.0, 0.0] * 5])
    drawn = judged("random", [[0.0] * 20] * 18 + [[1.0] * 20])
    found = beside(drawn, vector)
    assert found["lead"] == pytest.approx(0.75 - 1 / 19) and found["lead_lo"] < found["lead"] < found["lead_hi"]
    assert (found["n_as_good"], found["p"]) == (1, 0.1)
    assert beside(judged("random", [[0.0] * 20] * 19), vector)["p"] == 0.05  # the smallest of 19 draws
    same = beside(vector, judged("iv", [[1.0, 1.0, 1.0, 0.0] * 5]))
    assert same["lead"] == 0 and same["lead_hi"] == -same["lead_lo"] == wilson(0, 20)[1] and "p" not in same
    assert beside(vector, vector) == {}
    row = summary(vector)
    assert row["interval"] == "Wilson 95 %" and (row["accuracy_lo"], row["accuracy_hi"]) == wilson(15, 20)
    table = pd.DataFrame({"condition": ["random", "iv"] * 2, "p": [0.05, None, 0.05, None]})
    assert corrected(table)["p_holm"].tolist()[::2] == [0.1, 0.1] and corrected(table)["p_holm"].isna().sum() == 2


def test_differences_stay_within_what_shares_can_differ_by():
    all_right, few = torch.ones(1, 3), torch.tensor([[0.0, 0.0, 1.0]])
    lead, low, high = paired(all_right, few)
    assert lead == pytest.approx(2 / 3) and low < 0 and high == 1.0, "t alone would end at 2.1"
    assert paired(few, all_right) == pytest.approx((-lead, -1.0, -low))
    assert paired(all_right, all_right) == (0.0, -wilson(0, 3)[1], wilson(0, 3)[1])
    assert paired(all_right, torch.zeros(2, 3)) == (1.0, 1.0 - wilson(0, 3)[1], 1.0)
