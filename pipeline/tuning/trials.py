"""The trials of a hyperparameter search: Optuna's study in a SQLite file, which goes on after any interruption."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.run.errors import UserError
from pipeline.tuning.space import Values

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

EVALUATIONS = 5  # of the validation loss in a trial
# Finished trainings of the same length that a trial is compared with, at least. The median of fewer says little.
COMPARED = 4
BEFORE, ERROR = "validation_loss_before", "error"  # attributes of a trial; one that was interrupted has no error


def open_study(path: Path, settings: dict[str, Any]) -> Study:
    """Return the study in a SQLite file, which is made if there is none.

    Args:
        path: of the file.
        settings: what all trials have in common, as flat names and values.

    Raises:
        UserError: the study was made with other settings, or the file is damaged.
    """
    import optuna
    import sqlalchemy

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    url = sqlalchemy.URL.create("sqlite", database=str(path.absolute())).render_as_string()
    url = url.replace("{", "{{").replace("}", "}}")  # Optuna formats it
    try:
        study = optuna.create_study(
            storage=url, study_name="search", direction="minimize", load_if_exists=True,
            # Successive halving would stop most trials early, when a high learning rate that is yet to decay looks bad.
            pruner=optuna.pruners.MedianPruner(n_startup_trials=0, n_min_trials=COMPARED),
        )  # fmt: skip
        trials = study.get_trials(deepcopy=False)
    except (sqlalchemy.exc.SQLAlchemyError, RuntimeError) as error:  # RuntimeError: of another version of Optuna
        raise UserError(f"{path} cannot be read ({error.args[0]}). Delete {path.parent} to start anew.") from error
    settings = json.loads(json.dumps(settings, default=str))
    before = study.user_attrs.get("settings")
    if before is None or not trials:
        study.set_user_attr("settings", settings)
    elif before != settings:
        changed = [name for name in settings | before if settings.get(name) != before.get(name)]
        raise UserError(
            f"The search in {path.parent} was made with other settings or data ({', '.join(changed)}). Give the same "
            "ones, or delete that folder to start anew."
        )
    return study


def finished_trials(study: Study) -> list[FrozenTrial]:
    """Return the trials that came to their end or were pruned."""
    from optuna.trial import TrialState

    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))


def best_trial(study: Study) -> FrozenTrial | None:
    """Return the trial with the lowest validation loss at its end; None if none came to its end."""
    from optuna.trial import TrialState

    def loss(trial: FrozenTrial) -> float:
        assert trial.value is not None  # a complete trial has one
        return trial.value

    return min(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)), key=loss, default=None)


def repeat_interrupted(study: Study) -> None:
    """Mark the trials that an interrupted search left behind as failed. No trial of the study may be running."""
    from optuna.trial import TrialState

    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
    while study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):  # killed between enqueue_trial and ask
        study.tell(study.ask(), state=TrialState.FAIL)


def next_trial(study: Study, ranges: dict[str, BaseDistribution], first: Values, seed: int) -> Trial:
    """Return a new trial: with the values of `first` if it is the first to end, else with those that the sampler chooses.

    The sampler is seeded for each trial, and ignores trials that were interrupted, so that it chooses their values again.
    """
    import optuna

    before = ended_trials(study)
    study.sampler = optuna.samplers.TPESampler(seed=seed + len(before))
    if not before:
        study.enqueue_trial(first)
    return study.ask(ranges)


def should_stop(trial: Trial, share: float, loss: float, lengths: Sequence[float]) -> bool:
    """Note a validation loss and tell whether the trial should end early.

    Args:
        trial: the running trial.
        share: of the training, from 0 to 1, after which the loss was measured.
        loss: per token, in nats.
        lengths: the values of `epochs`; empty if all trainings are of one length.
    """
    evaluation = int(round(EVALUATIONS * share, 6))
    if evaluation == 0:
        trial.set_user_attr(BEFORE, loss)
        return False
    # The pruner compares losses at equal steps. Trainings of another length have steps of their own: at the same
    # optimizer step the learning rate of a longer one has decayed less, and at the same share it has learned more.
    length = lengths.index(trial.params["epochs"]) if lengths else 0
    trial.report(loss, EVALUATIONS * length + evaluation)
    return not math.isfinite(loss) or (evaluation < EVALUATIONS and trial.should_prune())


def ended_trials(study: Study) -> list[FrozenTrial]:
    """Return the trials that came to their end, were pruned or failed by themselves, in their order."""
    numbers = {trial.number for trial in finished_trials(study)}
    return [t for t in study.get_trials(deepcopy=False) if t.number in numbers or ERROR in t.user_attrs]


def outcome(trial: FrozenTrial) -> dict[str, Any]:
    """Return how a trial ended.

    Returns:
        state: complete, pruned or fail; validation_loss: at the end, None if it did not come to it; validation_losses: on
        the way, by the share of the training, None for what is no finite number; seconds; error: why it failed, or None.
    """
    losses = {
        ((step - 1) % EVALUATIONS + 1) / EVALUATIONS: loss if math.isfinite(loss) else None
        for step, loss in sorted(trial.intermediate_values.items())
    }
    state = trial.state.name.lower()
    assert trial.duration is not None  # it has ended
    return {
        "state": state,
        "validation_loss": trial.value if state == "complete" else None,
        "validation_losses": losses,
        "seconds": round(trial.duration.total_seconds(), 1),
        "error": trial.user_attrs.get(ERROR),
    }


def record_loss(study: Study, trial: Trial, loss: float | None) -> None:
    """Note the validation loss at the end of a trial; None if it was pruned."""
    from optuna.trial import TrialState

    study.tell(trial, loss, state=TrialState.PRUNED if loss is None else TrialState.COMPLETE)


def record_failure(study: Study, trial: Trial, error: str) -> None:
    """Note why a trial failed; it is not tried again, and does not count."""
    from optuna.trial import TrialState

    trial.set_user_attr(ERROR, error)
    study.tell(trial, state=TrialState.FAIL)
