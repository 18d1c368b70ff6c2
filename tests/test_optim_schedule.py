"""The learning rate over a run, as literal lists."""

from types import SimpleNamespace

from isoflop.optim.schedule import lr_at


def at(schedule, steps, warmup, cooldown, final, shape="linear", total=None):
    plan = SimpleNamespace(lr=1.0, schedule=schedule, steps=steps, warmup_steps=warmup, cooldown_steps=cooldown,
                           schedule_steps=total, cooldown=shape, final_lr_frac=final)  # fmt: skip
    return [round(lr_at(s, plan), 6) for s in range(steps)]


def test_schedules_as_literal_lists():
    cosine = at("cosine", 10, 2, 0, 0.1)
    assert cosine == [0.5, 1.0, 0.965746, 0.868198, 0.722208, 0.55, 0.377792, 0.231802, 0.134254, 0.1]
    assert at("wsd", 10, 2, 4, 0.0) == [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
    assert at("wsd", 4, 0, 0, 0.1) == [1.0] * 4
    assert at("cosine", 1, 0, 0, 0.1) == [0.1]
    assert at("cosine", 6, 2, 0, 0.1, total=10) == cosine[:6]
    assert at("wsd", 8, 2, 4, 0.0, total=10) == [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5]
