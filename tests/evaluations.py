"""An evaluation of two tasks that several tests write, read and damage."""

from chunkrl.evaluation.evaluation_result import EvaluationSettings

SETTINGS = EvaluationSettings(
    policy="runs/a/policy",
    fingerprint="f",
    envs=("push-v3", "reach-v3"),
    num_episodes=4,
    seed=0,
    max_steps=(150, 150),
    exec_steps=2,
    horizon=5,
    mode="mode",
    num_candidates=0,
    condition=None,
    guidance=None,
    flow_steps=None,
    state="full",
    camera_size=0,
    rendering="default",
    rename=(),
    batch_size=4,
)
