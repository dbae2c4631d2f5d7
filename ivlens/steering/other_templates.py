"""The rows `other_templates`: does the vector work in prompts of another form than those it was made from?"""

import logging
from dataclasses import replace

from ivlens.steering.more_rows import Asked
from ivlens.steering.summary import Judged

logger = logging.getLogger(__name__)


def other_templates(asked: Asked) -> list[Judged]:
    """The vector, with the setting found in its own template, on bare prompts of other templates.

    For each template (the variant) the rows are `other_template` with the vector, and without it
    `other_template_bare` and `other_template_clean`. A template that cannot make these prompts is left out, and a line
    in the log says why.
    """
    seen, found = {asked.judge.batch.texts}, list[Judged]()
    for template in asked.more.templates:
        try:
            prompts = replace(asked.prompts, recipe=replace(asked.prompts.recipe, template=template), kept=None)
            trials = prompts.trials(asked.split)
            clean = prompts.trials(asked.split, corrupted=False)
        except ValueError as fault:
            logger.info("template %s is left out: %s", template, fault)
            continue
        if trials.batch.texts in seen:
            continue
        seen.add(trials.batch.texts)
        steered = trials.at([asked.best], asked.iv.theta[None])
        for condition, scores in (
            ("other_template", steered),
            ("other_template_bare", trials.unsteered()),
            ("other_template_clean", clean.unsteered()),
        ):
            against = "iv" if condition == "other_template" else "other_template"
            own = {"settings": (asked.best,), "names": (asked.iv.task,)} if condition == "other_template" else {}
            found.append(Judged(condition, scores, variant=template, against=against, **own))
    return found
