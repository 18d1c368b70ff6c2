"""The learning rate as a pure function of the step."""

import math

# ----- the rate over a run -----


def lr_at(step: int, plan) -> float:
    """The learning rate of optimizer step `step` (0-based) in `plan.lr`'s unit.

    Linear warm-up over plan.warmup_steps, then down to plan.lr * plan.final_lr_frac at the last step by
    cosine : half a cosine (Hoffmann et al. 2022, appendix B: the cosine must end where the run ends);
    linear : a line (Bergsma et al. 2025, arXiv:2502.15938, who take it to zero);
    wsd : constant, then over the last plan.cooldown_steps a line, or with plan.cooldown "1-sqrt" by one minus the root
        of the share that is done (Haegele et al. 2024, arXiv:2405.18392);
    constant : not at all.
    A plan with schedule_steps stops before its schedule does: "the last step" is then that of the schedule.
    """
    last = plan.schedule_steps or plan.steps
    if step < plan.warmup_steps:
        return plan.lr * (step + 1) / plan.warmup_steps
    if plan.schedule == "constant":
        return plan.lr
    first = last - plan.cooldown_steps if plan.schedule == "wsd" else plan.warmup_steps
    done = min(1.0, max(0.0, (step - first + 1) / max(1, last - first)))  # 1 at the last step
    if plan.schedule == "cosine":
        left = 0.5 * (1 + math.cos(math.pi * done))
    elif plan.schedule == "wsd" and plan.cooldown == "1-sqrt":
        left = 1 - math.sqrt(done)
    else:
        left = 1 - done
    return plan.lr * (plan.final_lr_frac + (1 - plan.final_lr_frac) * left)
