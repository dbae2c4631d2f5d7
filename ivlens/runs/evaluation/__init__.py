"""What Instruction Vectors do in a model: several tasks' vectors judged beside all controls, with further rows."""

from ivlens.runs.evaluation.plan import EvaluateOptions
from ivlens.runs.evaluation.results import TaskEvaluations
from ivlens.runs.evaluation.running import evaluate_tasks

__all__ = ["EvaluateOptions", "TaskEvaluations", "evaluate_tasks"]
