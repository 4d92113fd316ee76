"""Energy policies in the real lerobot: trained, resumed, evaluated, and the same as ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import draccus
import gym_pusht  # noqa: F401  (registers the task)
import gymnasium
import numpy as np
import pytest
import torch
from lerobot.configs import FeatureType, NormalizationMode, PolicyFeature, PreTrainedConfig
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies import make_policy, make_pre_post_processors
from lerobot.policies.rtc.configuration_rtc import RTCConfig
from lerobot.rollout.inference.rtc import RTCInferenceEngine, supports_rtc_inference
from lerobot.rollout.inference.sync import SyncInferenceEngine
from safetensors.torch import load_file, save_file
from torch import Tensor

from ebt_policy import (
    PRESETS,
    Batch,
    DescentConfig,
    EnergyPolicy,
    UserError,
    load_policy,
    save_policy,
)
from ebt_policy.config import DESCENT_DEFAULTS, BasinConfig
from lerobot_policy_ebt import EBTConfig, EBTPolicy, make_ebt_pre_post_processors
from lerobot_policy_ebt.conversion import to_energy_policy

pytestmark = pytest.mark.lerobot

STATE, ENVIRONMENT, ACTION = "observation.state", "observation.environment_state", "action"
FEATURES = {STATE: 2, ENVIRONMENT: 16, ACTION: 2}
LENGTHS = (40, 30, 25)


# -- a data set and a policy that lerobot trained ------------------------------------------


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> LeRobotDataset:
    """Three episodes of PushT: the arm wanders about the block."""
    root = tmp_path_factory.mktemp("data") / "pusht"
    features = {
        name: {"dtype": "float32", "shape": (size,), "names": None}
        for name, size in FEATURES.items()
    }
    made = LeRobotDataset.create("local/pusht", 10, features, root=root, use_videos=False)
    environment = gymnasium.make("gym_pusht/PushT-v0", obs_type="environment_state_agent_pos")
    random = np.random.default_rng(0)
    for seed, length in enumerate(LENGTHS):
        seen, _ = environment.reset(seed=seed)
        for _ in range(length):
            block = seen["environment_state"].reshape(-1, 2).mean(0)
            action = (0.5 * (seen["agent_pos"] + block) + random.normal(0, 20, 2)).clip(0, 512)
            values = (seen["agent_pos"], seen["environment_state"], action)
            frame = {n: v.astype(np.float32) for n, v in zip(FEATURES, values, strict=True)}
            made.add_frame({**frame, "task": "Push the T onto the mark"})
            seen, *_ = environment.step(action)
        made.save_episode()
    made.finalize()
    environment.close()
    return LeRobotDataset("local/pusht", root=root)


def lerobot(command: str, *arguments: str) -> str:
    """Run one of lerobot's commands; what it printed."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name(command)), *arguments],
        env={**os.environ, "SDL_VIDEODRIVER": "dummy", "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="session")
def run(data: LeRobotDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps of ``lerobot-train``, checkpoints after three and six."""
    out = tmp_path_factory.mktemp("train") / "run"
    lerobot(
        "lerobot-train", "--policy.type=ebt", "--policy.preset=tiny", "--policy.device=cpu",
        "--policy.push_to_hub=false", "--dataset.repo_id=local/pusht",
        f"--dataset.root={data.root}", "--dataset.eval_split=0.3", "--eval_steps=3", "--steps=6",
        "--save_freq=3", "--batch_size=16", "--num_workers=0", "--env_eval_freq=0",
        f"--output_dir={out}",
    )  # fmt: skip
    return out


@pytest.fixture(scope="session")
def checkpoint(run: Path) -> Path:
    return run / "checkpoints" / "last" / "pretrained_model"


@pytest.fixture
def policy(checkpoint: Path) -> EBTPolicy:
    return EBTPolicy.from_pretrained(checkpoint)


def windows(data: LeRobotDataset, steps: list[int]) -> dict[str, Tensor]:
    """Raw windows (b, 2, d) of some steps of the first episode."""
    return {
        name: torch.stack([torch.stack([data[s - 1][name], data[s][name]]) for s in steps])
        for name in (STATE, ENVIRONMENT)
    }


def batch_of(config: EBTConfig, samples: int = 5) -> dict[str, Tensor]:
    """A normalised batch as training has it."""
    random = torch.Generator().manual_seed(0)
    batch: dict[str, Tensor] = {
        name: torch.rand(samples, config.n_obs_steps, *f.shape, generator=random) * 2 - 1
        for name, f in config.input_features.items()
    }
    batch[ACTION] = torch.rand(samples, config.horizon, 2, generator=random) * 2 - 1
    batch["action_is_pad"] = torch.zeros(samples, config.horizon, dtype=torch.bool)
    return batch


def small(**settings: Any) -> EBTPolicy:
    """An untrained policy of PushT's features."""
    torch.manual_seed(0)
    states = {
        STATE: PolicyFeature(FeatureType.STATE, (2,)),
        ENVIRONMENT: PolicyFeature(FeatureType.ENV, (16,)),
    }
    config = EBTConfig(
        preset="tiny", device="cpu", input_features=settings.pop("input_features", states),
        output_features={ACTION: PolicyFeature(FeatureType.ACTION, (2,))}, **settings,
    )  # fmt: skip
    return EBTPolicy(config, dataset_stats=None, dataset_meta=None)


# -- commands ------------------------------------------------------------------------------


def test_train_writes_a_hub_folder(run: Path, checkpoint: Path) -> None:
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["000003", "000006", "last"]
    config = json.loads((checkpoint / "config.json").read_text())
    assert config["type"] == "ebt"
    assert set(config["input_features"]) == {STATE, ENVIRONMENT}
    assert config["network"]["width"] == 64  # as decided by the preset, and saved
    assert config["descent"]["steps"] == 2
    for name in ("model.safetensors", "train_config.json", "policy_preprocessor.json",
                 "policy_postprocessor.json"):  # fmt: skip
        assert (checkpoint / name).is_file()
    assert load_file(checkpoint / "model.safetensors")["updates"] == 6


def test_the_average_is_taken_once_each_step(run: Path) -> None:
    before, after = (
        load_file(run / "checkpoints" / step / "pretrained_model" / "model.safetensors")
        for step in ("000003", "000006")
    )
    name = "energy.ways.chunks.weight"
    learned, averaged = after[f"policy.{name}"], after[f"ema.{name}"]
    assert not torch.equal(learned, averaged)
    # Three more averages lie in the hull of the old one and the weights since.
    assert (averaged - before[f"ema.{name}"]).norm() < (learned - before[f"ema.{name}"]).norm()


def test_resume_goes_on_where_it_stopped(run: Path, tmp_path: Path) -> None:
    folder = run / "checkpoints" / "000003" / "pretrained_model"
    lerobot(
        "lerobot-train", f"--config_path={folder / 'train_config.json'}", "--resume=true",
        "--steps=5", f"--output_dir={tmp_path}",
    )  # fmt: skip
    before = load_file(folder / "model.safetensors")
    resumed = tmp_path / "checkpoints" / "000005" / "pretrained_model"
    after = load_file(resumed / "model.safetensors")
    assert after["updates"] == 5
    for part in ("policy", "ema"):
        name = f"{part}.energy.ways.chunks.weight"
        assert 0 < (after[name] - before[name]).abs().max() < 0.01


def test_eval_in_pusht(checkpoint: Path, tmp_path: Path) -> None:
    lerobot(
        "lerobot-eval", f"--policy.path={checkpoint}", "--policy.device=cpu",
        "--policy.descent.steps=3", "--env.type=pusht",
        "--env.obs_type=environment_state_agent_pos", "--env.episode_length=20",
        "--eval.n_episodes=2", "--eval.batch_size=2", "--eval.use_async_envs=false",
        f"--output_dir={tmp_path}",
    )  # fmt: skip
    results = json.loads((tmp_path / "eval_info.json").read_text())
    assert results["overall"]["n_episodes"] == 2
    assert np.isfinite(results["overall"]["avg_sum_reward"])


# -- folders -------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["policy", "ema"])
def test_missing_weights_are_noticed(checkpoint: Path, tmp_path: Path, part: str) -> None:
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    gone = next(name for name in sorted(tensors) if name.startswith(part))
    del tensors[gone]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(RuntimeError, match=gone):
        EBTPolicy.from_pretrained(tmp_path)
    config = PreTrainedConfig.from_pretrained(tmp_path)
    config.pretrained_path = tmp_path
    with pytest.raises(RuntimeError, match=gone):  # by lerobot's own way
        make_policy(config, env_cfg=pusht())


def pusht() -> Any:
    from lerobot.envs.configs import PushtEnv

    return PushtEnv(obs_type="environment_state_agent_pos")


def test_saved_and_loaded_acts_the_same(policy: EBTPolicy, tmp_path: Path) -> None:
    policy.save_pretrained(tmp_path)
    again = EBTPolicy.from_pretrained(tmp_path)
    batch = batch_of(policy.config)
    torch.manual_seed(1)
    before = policy.predict_action_chunk(batch)
    torch.manual_seed(1)
    assert torch.equal(before, again.predict_action_chunk(batch))


# -- the same as ours ----------------------------------------------------------------------


def test_actions_equal_our_own(
    data: LeRobotDataset, checkpoint: Path, policy: EBTPolicy, tmp_path: Path
) -> None:
    """lerobot's pipelines round its policy, against our policy alone, saved and loaded."""
    save_policy(to_energy_policy(checkpoint), tmp_path)
    ours = load_policy(tmp_path)
    assert isinstance(ours, EnergyPolicy)
    # The range that the processors took is the data's.
    low, high = (data.meta.stats[ACTION][bound] for bound in ("min", "max"))
    assert np.allclose(ours.action_normaliser.centre.numpy(), (low + high) / 2)
    assert np.allclose(ours.action_normaliser.half_range.numpy(), (high - low) / 2)
    preprocess, postprocess = make_pre_post_processors(policy.config, str(checkpoint))
    seen = windows(data, [1, 8, 15, 22])
    torch.manual_seed(3)
    chunk = policy.predict_action_chunk(preprocess(dict(seen)))
    torch.manual_seed(3)
    prediction = ours.predict_chunk(seen)
    normalised = ours.action_normaliser.normalise(torch.from_numpy(prediction.plan))[:, 1:]
    assert chunk.shape == (4, 15, 2)
    assert (chunk - normalised).abs().max() < 1e-5
    executed = postprocess(chunk)[:, :8].numpy()
    assert np.allclose(executed, prediction.actions, rtol=1e-5, atol=1e-5 * 512)


def test_on_a_robot_it_acts_as_our_own(
    data: LeRobotDataset, checkpoint: Path, policy: EBTPolicy
) -> None:
    """The engine of ``lerobot-rollout``, step by step, in the robot's units."""
    preprocess, postprocess = make_pre_post_processors(policy.config, str(checkpoint))
    engine = SyncInferenceEngine(
        policy, preprocess, postprocess, {ACTION: {"names": ["x", "y"]}}, ["x", "y"],
        task="Push", device="cpu", robot_type="none",
    )  # fmt: skip
    ours = to_energy_policy(checkpoint)
    for _ in range(2):
        engine.reset()
        ours.reset()
        for step in range(20):
            seen = {name: data[step][name].numpy() for name in (STATE, ENVIRONMENT)}
            torch.manual_seed(step)
            action = engine.get_action(seen)
            torch.manual_seed(step)
            expected = ours.select_action(seen)
            assert np.allclose(action.numpy(), expected, rtol=1e-5, atol=1e-5 * 512)


def test_loss_and_gradient_equal_our_own() -> None:
    policy = small()
    batch = batch_of(policy.config)
    batch["action_is_pad"][1, 5:] = True
    ours = EnergyPolicy(policy.config.policy_config)
    ours.load_state_dict(policy.policy.state_dict())
    streams = {name: batch[name] for name in (STATE, ENVIRONMENT)}
    torch.manual_seed(4)
    loss, extra = policy(batch)
    torch.manual_seed(4)
    expected = ours(Batch(streams, batch[ACTION], ~batch["action_is_pad"]))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert extra == {}
    loss.backward()
    expected.backward()
    for one, other in zip(policy.policy.parameters(), ours.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.allclose(one.grad, other.grad, atol=1e-6)
    assert all(p.grad is None for p in policy.ema.parameters())


# -- learning ------------------------------------------------------------------------------


def test_the_limit_holds_where_what_is_observed_is_scaled_to_it() -> None:
    scaled = small().config
    assert scaled.policy_config.observation_limit == 1.3
    scaled.normalization_mapping["STATE"] = NormalizationMode.MEAN_STD
    assert scaled.policy_config.observation_limit is None


def test_padding_teaches_nothing() -> None:
    policy = small()
    batch = batch_of(policy.config)
    batch["action_is_pad"][1:] = True
    losses, _ = policy.forward(batch, reduction="none")
    assert losses[0] > 0
    assert losses[1:].tolist() == [0.0] * 4


def test_a_loss_for_each_sample() -> None:
    policy = small()
    batch = batch_of(policy.config)
    torch.manual_seed(0)
    mean, _ = policy.forward(batch)
    torch.manual_seed(0)
    each, _ = policy.forward(batch, reduction="none")
    assert each.mean().item() == pytest.approx(mean.item(), rel=1e-6)


def test_evaluation_loss_is_that_of_the_average() -> None:
    policy = small()
    with torch.no_grad():
        for parameter in policy.policy.parameters():
            parameter.add_(0.1)
    batch = batch_of(policy.config)
    losses = []
    for mode in (True, False):
        policy.train(mode)
        torch.manual_seed(0)
        with torch.no_grad(), torch.autocast("cpu"):
            losses.append(policy.forward(batch)[0].item())
    assert np.isfinite(losses).all()
    assert losses[0] != losses[1]


def test_the_average_follows_its_formula() -> None:
    policy = small()
    learned, averaged = (next(iter(part.parameters())) for part in (policy.policy, policy.ema))
    start = averaged.clone()
    with torch.no_grad():
        learned.add_(1.0)
    policy.update()
    expected = start + 2**-0.75
    assert torch.allclose(averaged, expected)
    policy.update()
    assert torch.allclose(averaged, expected + 3**-0.75 * (learned - expected))
    assert set(map(id, policy.get_optim_params())) == set(map(id, policy.policy.parameters()))


# -- acting --------------------------------------------------------------------------------

CONTEXTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "no context": nullcontext,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu"),
}


@pytest.mark.parametrize("objective", ["basin", "unrolled"])
def test_acts_in_every_context(objective: Any) -> None:
    policy = small(objective=objective)
    preprocess, postprocess = make_ebt_pre_post_processors(policy.config)
    raw = {name: batch_of(policy.config)[name][:, 0] for name in (STATE, ENVIRONMENT)}
    results = []
    for context in CONTEXTS.values():
        with context():
            policy.reset()
            torch.manual_seed(2)
            inside = preprocess({name: values.clone() for name, values in raw.items()})
            chunk = postprocess(policy.predict_action_chunk(inside))
            torch.manual_seed(2)
            assert torch.equal(postprocess(policy.select_action(inside)), chunk[:, 0])
            results.append(chunk.clone())
    assert results[0].shape == (5, 15, 2)
    assert all(torch.equal(results[0], other) for other in results)
    # And it can still be trained.
    policy.train()
    policy.forward(batch_of(policy.config))[0].backward()


def test_a_single_observation_fills_the_window() -> None:
    policy = small(n_obs_steps=3)
    batch = batch_of(policy.config)
    single = {name: batch[name][:, -1] for name in (STATE, ENVIRONMENT)}
    repeated = {name: values[:, None].expand(-1, 3, -1) for name, values in single.items()}
    chunks = []
    for seen in (single, repeated):
        torch.manual_seed(0)
        chunks.append(policy.predict_action_chunk(seen))
    assert chunks[0].shape == (5, 14, 2)
    assert torch.equal(*chunks)


@pytest.mark.parametrize("warm_start", [False, True])
def test_actions_one_by_one_are_those_of_our_own(warm_start: bool) -> None:
    """Twenty steps of one robot: the same windows, queues and previous chunks."""
    policy = small(descent=DescentConfig(warm_start=warm_start))
    ours = EnergyPolicy(policy.config.policy_config)
    ours.load_state_dict(policy.ema.state_dict())
    random = np.random.default_rng(0)
    for episode in range(2):
        policy.reset()
        ours.reset()
        for step in range(20):
            seen = {name: random.uniform(-1, 1, FEATURES[name]) for name in (STATE, ENVIRONMENT)}
            torch.manual_seed(100 * episode + step)
            expected = ours.select_action(seen)
            torch.manual_seed(100 * episode + step)
            action = policy.select_action(
                {n: torch.from_numpy(v).float()[None] for n, v in seen.items()}
            )
            assert action.shape == (1, 2)
            assert np.abs(action[0].numpy() - expected).max() < 1e-5


def test_real_time_chunking_is_claimed_by_who_has_learned_it() -> None:
    assert not supports_rtc_inference(small())
    assert supports_rtc_inference(small(basin=BasinConfig(prefix_share=0.5)))


@pytest.mark.parametrize(("delay", "kept"), [(0, 0), (3, 3), (9, 6), (40, 6)])
def test_a_chunk_goes_on_from_the_actions_that_are_decided(delay: int, kept: int) -> None:
    policy = small(basin=BasinConfig(prefix_share=0.5))
    ours = EnergyPolicy(policy.config.policy_config)
    ours.load_state_dict(policy.ema.state_dict())
    random = np.random.default_rng(0)
    seen = {n: random.uniform(-1, 1, (1, FEATURES[n])) for n in (STATE, ENVIRONMENT)}
    left = torch.zeros(10, 2)
    left[:6] = torch.from_numpy(random.uniform(-1, 1, (6, 2)))
    torch.manual_seed(0)
    chunk = policy.predict_action_chunk(
        {n: torch.from_numpy(v).float() for n, v in seen.items()},
        inference_delay=delay, prev_chunk_left_over=left,
    )  # fmt: skip
    assert chunk.shape == (1, 15, 2)
    assert torch.allclose(chunk[0, :kept], left[:kept], atol=1e-5)
    prefix = torch.cat([left[:1], left[:kept]])[None].numpy() if kept else None
    torch.manual_seed(0)
    windows = {n: np.stack([v, v], 1) for n, v in seen.items()}
    plan = ours.predict_chunk(windows, prefix=prefix).plan
    assert np.abs(plan[0, 1:] - chunk[0].numpy()).max() < 1e-5


def test_the_engine_of_real_time_chunking_drives_a_robot(checkpoint: Path) -> None:
    """LeRobot's own thread asks for chunks while a robot takes actions at 50 Hz."""
    policy = EBTPolicy.from_pretrained(checkpoint)
    pre, post = make_ebt_pre_post_processors(policy.config, dataset_stats=None)
    for part in (policy, policy.policy, policy.ema):
        part.config = replace(part.config, basin=BasinConfig(prefix_share=0.5))
    features = {
        STATE: {"dtype": "float32", "shape": (2,), "names": ["x", "y"]},
        ENVIRONMENT: {"dtype": "float32", "shape": (16,), "names": [f"k{i}" for i in range(16)]},
    }
    robot = SimpleNamespace(robot_type="stub", action_features={"x": float, "y": float})
    engine = RTCInferenceEngine(
        policy, pre, post, robot, RTCConfig(execution_horizon=8), features, "push", 50.0, "cpu",
        rtc_queue_threshold=8,
    )  # fmt: skip
    seen = {name: 100.0 for feature in features.values() for name in feature["names"]}
    actions: list[torch.Tensor] = []
    engine.start()
    engine.resume()
    until = time.monotonic() + 60
    while len(actions) < 60 and time.monotonic() < until:
        engine.notify_observation(seen)
        action = engine.get_action(None)
        if action is not None:
            actions.append(action)
        time.sleep(0.02)
    engine.stop()
    assert not engine.failed
    assert len(actions) == 60
    assert torch.stack(actions).isfinite().all()


# -- mistakes ------------------------------------------------------------------------------


def parse(*arguments: str) -> EBTConfig:
    """A policy's settings from lerobot's command line."""
    config = draccus.parse(Command, args=["--policy.type=ebt", "--policy.device=cpu", *arguments])
    assert isinstance(config.policy, EBTConfig)
    return config.policy


@dataclass
class Command:
    policy: PreTrainedConfig


def test_settings_on_the_command_line() -> None:
    config = parse("--policy.preset=tiny", "--policy.basin.ways=4", "--policy.descent.steps=5")
    assert (config.network, config.optimizer_lr) == (PRESETS["tiny"].network, 2e-3)
    assert (config.basin.ways, config.descent) == (4, DescentConfig(steps=5))
    assert parse("--policy.optimizer_lr=0.5").get_optimizer_preset().lr == 0.5
    assert parse("--policy.objective=unrolled").descent == DESCENT_DEFAULTS["unrolled"]
    assert config.observation_delta_indices == [-1, 0]
    assert config.action_delta_indices == list(range(-1, 15))


def test_images_are_refused_with_what_to_do() -> None:
    features = {
        STATE: PolicyFeature(FeatureType.STATE, (6,)),
        "observation.images.wrist": PolicyFeature(FeatureType.VISUAL, (3, 96, 96)),
    }
    with pytest.raises(UserError, match=r"observation\.images\.wrist is an image") as error:
        small(input_features=features)
    advice = next(word for word in str(error.value).split("; ") if "--policy" in word)
    config = parse(advice.partition(": ")[2].replace("'", ""))
    assert config.input_features == {STATE: features[STATE]}


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="there is none"):
        small(input_features={})
    with pytest.raises(UserError, match="tiny, small, paper"):
        EBTConfig(preset="huge", device="cpu")
    with pytest.raises(UserError, match="exceeds horizon"):
        EBTConfig(n_action_steps=16, device="cpu")
    with pytest.raises(UserError, match="trains none"):
        small(objective="unrolled", descent=DescentConfig(steps=3))
    policy = small()
    with pytest.raises(UserError, match=f"no '{ENVIRONMENT}'"):
        policy.select_action({STATE: torch.zeros(1, 2)})
    with pytest.raises(UserError, match="nan"):
        policy.select_action({STATE: torch.zeros(1, 2), ENVIRONMENT: torch.full((1, 16), np.nan)})


def test_what_is_constant_in_the_data_is_only_centred(policy: EBTPolicy) -> None:
    stats = {
        name: {"min": np.zeros(size, np.float32), "max": np.ones(size, np.float32)}
        for name, size in FEATURES.items()
    }
    stats[STATE]["max"][1] = 0.0
    stats[ACTION]["max"][1] = 0.0
    preprocess, postprocess = make_ebt_pre_post_processors(policy.config, stats)
    seen = preprocess({STATE: torch.tensor([[0.5, 0.01]])})[STATE]
    assert torch.allclose(seen, torch.tensor([[0.0, 0.01]]))
    assert torch.allclose(postprocess(torch.tensor([[1.0, 0.7]])), torch.tensor([[1.0, 0.0]]))


def test_only_ranges_convert(checkpoint: Path, tmp_path: Path) -> None:
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    path = tmp_path / "policy_preprocessor.json"
    path.write_text(path.read_text().replace('"ACTION": "MIN_MAX"', '"ACTION": "MEAN_STD"'))
    with pytest.raises(UserError, match="MIN_MAX"):
        to_energy_policy(tmp_path)
