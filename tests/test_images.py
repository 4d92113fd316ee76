"""Image streams: from the file to the action, uint8 all the way to the device."""

from __future__ import annotations

import copy
import fcntl
import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import config, generators, write_zarr
from ebt_policy import Batch, UserError, load_policy, save_policy
from ebt_policy.cli.main import main
from ebt_policy.config import (
    PolicyConfig,
    StreamConfig,
    TrainingConfig,
    VisionConfig,
    from_json,
    to_json,
)
from ebt_policy.demonstrations import open_demonstrations
from ebt_policy.demonstrations.robomimic import Episode as Recorded
from ebt_policy.demonstrations.robomimic import write_robomimic
from ebt_policy.energy.model import EnergyModel
from ebt_policy.energy.pretrained import PretrainedBackbone
from ebt_policy.energy.vision import SpatialSoftmax, make_backbone, make_vision
from ebt_policy.evaluation.calibration import calibrate
from ebt_policy.evaluation.energy_quality import pixel_saliency
from ebt_policy.evaluation.rollout import Rollout, evaluate, observed
from ebt_policy.policies import Policy, make_policy
from ebt_policy.policies.export import check_exportable, export_onnx
from ebt_policy.serving.episode import Episode
from ebt_policy.tasks import make_task
from ebt_policy.training import features
from ebt_policy.training.checkpoint import checkpoint_folders
from ebt_policy.training.features import keep_features
from ebt_policy.training.trainer import Trainer, train
from ebt_policy.windows.arrays import Arrays, load_arrays, map_arrays, store_arrays
from ebt_policy.windows.images import ImageNormaliser
from ebt_policy.windows.windows import choose_streams

SIDE = 40
STREAMS = {
    "state": StreamConfig((5,), elements=(0, 1)),
    "front": StreamConfig((SIDE, SIDE, 3), kind="image"),
    "wrist": StreamConfig((SIDE, 34, 3), kind="image"),
}


def seeing(vision: VisionConfig | None = None, **changes: Any) -> Policy:
    """An untrained policy with two cameras."""
    torch.manual_seed(0)
    made = make_policy(config(streams=STREAMS, vision=vision or VisionConfig(), **changes))
    random = np.random.default_rng(0)
    made.fit_normalisers(
        {"state": random.normal(size=(50, 5))}, random.normal(size=(50, 2)), np.arange(50), "test"
    )
    return made


def seen(batch: int, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    windows: dict[str, np.ndarray] = {"state": random.normal(size=(batch, 2, 5)).astype(np.float32)}
    for name in ("front", "wrist"):
        shape = (batch, 2, *STREAMS[name].shape)
        windows[name] = random.integers(0, 256, shape, dtype=np.uint8)
    return windows


# -- from the file ---------------------------------------------------------------------------


def test_obs_takes_images_and_elements(tmp_path: Path) -> None:
    demonstrations = open_demonstrations(write_zarr(tmp_path / "buffer.zarr"))
    assert choose_streams(demonstrations, "img,state:elements=2+0:angles=2") == {
        "img": StreamConfig((8, 8, 3), kind="image"),
        "state": StreamConfig((3,), angles=(2,), elements=(0, 2)),
    }
    assert choose_streams(demonstrations, None) == {"state": StreamConfig((3,))}
    for keys, message in [
        ("img:angles=0", "an image, which has no angles, elements or dropout"),
        ("state:elements=3", "'state' has 3 elements, counted from 0"),
        ("state:elements=", "no element is left"),
        ("state:elements=0:angles=1", "angle 1 is not among the elements"),
    ]:
        with pytest.raises(UserError, match=message):
            choose_streams(demonstrations, keys)

    def depth(arrays: dict[str, Any]) -> None:
        arrays["img"] = arrays["img"][..., :1]

    demonstrations = open_demonstrations(write_zarr(tmp_path / "depth.zarr", depth))
    with pytest.raises(UserError, match=r"\(8, 8, 1\) per step is neither numbers nor an RGB"):
        choose_streams(demonstrations, "img")


@pytest.mark.parametrize("stored", [np.uint8, np.float32, np.int64])
def test_images_are_uint8_in_memory_and_in_files_whatever_the_file_has(
    tmp_path: Path, stored: type
) -> None:
    written: dict[str, np.ndarray] = {}

    def convert(arrays: dict[str, Any]) -> None:
        written["img"], arrays["img"] = arrays["img"], arrays["img"].astype(stored)

    demonstrations = open_demonstrations(write_zarr(tmp_path / "buffer.zarr", convert))
    streams = choose_streams(demonstrations, "img,state")
    store_arrays(demonstrations, streams, tmp_path / "arrays")
    for arrays in (load_arrays(demonstrations, streams), map_arrays(tmp_path / "arrays")):
        assert arrays.observations["img"].dtype == np.uint8
        assert (arrays.observations["img"] == written["img"]).all()
        assert arrays.observations["state"].dtype == np.float32
    sizes = [file.stat().st_size for file in (tmp_path / "arrays").iterdir()]
    assert max(sizes) == 40 * 8 * 8 * 3


@pytest.mark.parametrize("value", [0.5, -1.0, 256.0, np.nan])
def test_floats_that_are_no_image_are_named(tmp_path: Path, value: float) -> None:
    def spoil(arrays: dict[str, Any]) -> None:
        arrays["img"] = arrays["img"].astype(np.float32)
        arrays["img"][20, 1, 2, 0] = value

    demonstrations = open_demonstrations(write_zarr(tmp_path / "buffer.zarr", spoil))
    streams = choose_streams(demonstrations, "img")
    message = f"img is {value} in episode 1, step 5, element 1, 2, 0; an image is whole numbers"
    with pytest.raises(UserError, match=message):
        store_arrays(demonstrations, streams, tmp_path / "arrays")
    assert not (tmp_path / "arrays").exists()


def test_a_corrupt_frame_and_another_size_are_named(tmp_path: Path) -> None:
    path = write_zarr(tmp_path / "buffer.zarr")
    demonstrations = open_demonstrations(path)
    with pytest.raises(UserError, match=r"'img' has shape \(8, 8, 3\) per step, the policy expe"):
        load_arrays(demonstrations, {"img": StreamConfig((9, 8, 3), kind="image")})
    streams = choose_streams(demonstrations, "img")
    chunk = path / "data" / "img" / "1.0.0.0"
    chunk.write_bytes(chunk.read_bytes()[:40])
    with pytest.raises(UserError, match=r"data/img cannot be decoded \(chunk 1.0.0.0 has 40"):
        load_arrays(open_demonstrations(path), streams)
    chunk.unlink()
    with pytest.raises(UserError, match="data/img has 3 of 4 chunks"):
        load_arrays(open_demonstrations(path), streams)


# -- on the device ---------------------------------------------------------------------------


def test_training_crops_a_window_at_one_random_place_acting_the_middle() -> None:
    torch.manual_seed(0)
    height, width, count = 20, 30, 200
    # The colours of a pixel say where it is.
    y, x = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    image = np.stack([y, x, np.zeros_like(x)], -1).astype(np.uint8)
    windows = torch.from_numpy(np.tile(image, (count, 2, 1, 1, 1)))
    made = ImageNormaliser((height, width, 3), VisionConfig(crop=0.5, jitter=0.0))

    def corners(normalised: torch.Tensor) -> torch.Tensor:
        pixels = ((normalised + 1) * 127.5).round()
        assert pixels.shape == (count, 2, 3, 10, 15)
        offsets = pixels[:, :, :2, 0, 0]
        steps = pixels[:, :, :2] - offsets[..., None, None]  # a whole part of the picture
        assert (steps[:, :, 0] == torch.arange(10.0)[:, None]).all()
        assert (steps[:, :, 1] == torch.arange(15.0)).all()
        return offsets

    drawn = corners(made.train().normalise(windows))
    assert (drawn[:, 0] == drawn[:, 1]).all()
    assert drawn[:, 0, 0].unique().tolist() == list(range(11))
    assert drawn[:, 0, 1].max() == 15
    middle = corners(made.eval().normalise(windows))
    assert (middle == torch.tensor([5.0, 7.0])).all()


def test_colours_change_with_the_window_in_training_alone() -> None:
    torch.manual_seed(0)
    made = ImageNormaliser((6, 6, 3), VisionConfig(crop=1.0, jitter=0.2))
    windows = torch.full((40, 2, 6, 6, 3), 255, dtype=torch.uint8)
    assert (made.eval().normalise(windows) == 1).all()
    changed = made.train().normalise(windows)
    assert (changed == changed[:, :1, :, :1, :1]).all()  # one colour per window
    assert changed[:, 0, :, 0, 0].std(0).min() > 0.05
    assert (changed - 1).abs().max() <= 0.4 + 1e-6


def test_spatial_softmax_finds_the_place() -> None:
    head = SpatialSoftmax(1, 1)
    torch.nn.init.ones_(head.maps.weight)
    maps = torch.zeros(2, 1, 5, 9)
    maps[0, 0, 4, 0] = maps[1, 0, 2, 6] = 10
    assert torch.allclose(head(maps), torch.tensor([[-1.0, 1.0], [0.5, 0.0]]), atol=1e-4)


# -- the policy ------------------------------------------------------------------------------


def test_elements_and_their_angles_are_features() -> None:
    streams = {"state": StreamConfig((5,), angles=(4,), elements=(0, 2, 3, 4))}
    made = make_policy(config(streams=streams))
    state = torch.tensor([[[1.0, 2.0, 3.0, 4.0, torch.pi / 2]]])
    found = made.normalise_observation({"state": state})["state"]
    assert torch.allclose(found, torch.tensor([[[1.0, 3.0, 4.0, 1.0, 0.0]]]), atol=1e-6)


@pytest.mark.parametrize(
    "vision", [VisionConfig(), VisionConfig("resnet18"), VisionConfig(shared=True)]
)
def test_policies_see_save_and_load(tmp_path: Path, vision: VisionConfig) -> None:
    made = seeing(vision)
    windows = seen(4)
    together = made.predict_chunk(windows, generators(4)).plan
    alone = made.predict_chunk({k: v[2:3] for k, v in windows.items()}, [generators(4)[2]]).plan
    assert abs(alone[0] - together[2]).max() < 1e-4
    for name in ("front", "wrist"):
        other = made.predict_chunk(windows | {name: seen(4, 1)[name]}, generators(4)).plan
        assert abs(other - together).max() > 1e-6
    changed = windows["state"].copy()
    changed[..., 2:] += 1
    assert (made.predict_chunk(windows | {"state": changed}, generators(4)).plan == together).all()
    floats = {k: v.astype(np.float32) for k, v in windows.items()}
    assert (made.predict_chunk(floats, generators(4)).plan == together).all()
    tensors = {k: torch.from_numpy(v) for k, v in windows.items()}
    assert (made.predict_chunk(tensors, generators(4)).plan == together).all()
    save_policy(made, tmp_path)
    assert (load_policy(tmp_path).predict_chunk(windows, generators(4)).plan == together).all()
    assert from_json(type(made.config), to_json(made.config), "test") == made.config


def test_resnet18_has_its_size() -> None:
    backbone = make_backbone(VisionConfig("resnet18"))
    assert 11.1e6 < sum(p.numel() for p in backbone.parameters()) < 11.3e6
    assert backbone(torch.zeros(1, 3, 64, 96)).shape == (1, 512, 2, 3)


@pytest.mark.parametrize("name", ["ebt", "diffusion", "regression"])
def test_a_chunk_that_only_the_picture_tells_is_learnt(name: Any) -> None:
    made = seeing(VisionConfig(crop=1.0, jitter=0.0), policy=name)
    random = np.random.default_rng(0)
    windows = seen(16)
    windows["front"][:] = 0
    places = random.integers(4, SIDE - 4, (16, 2))
    for window, (y, x) in zip(windows["front"], places, strict=True):
        window[:, y - 2 : y + 3, x - 2 : x + 3] = 255
    target = torch.from_numpy(2.0 * places / SIDE - 1).float()[:, None].expand(16, 16, 2)
    observations = {k: torch.from_numpy(v) for k, v in windows.items()}
    batch = Batch(observations, target, torch.ones(16, 16, dtype=torch.bool))
    optimizer = torch.optim.AdamW(made.parameters(), 5e-3)

    def error() -> float:
        plan = made.predict_chunk(windows, generators(16)).plan
        return float(np.sqrt(np.mean((plan - target.numpy()) ** 2)))

    before = error()
    for _ in range(80):
        optimizer.zero_grad()
        made(batch).backward()
        optimizer.step()
    assert error() < 0.5 * before


def test_what_is_no_image_is_refused_when_acting() -> None:
    made = seeing()
    good = {name: values[0, 0] for name, values in seen(1).items()}
    made.select_action(good)
    half = good["front"].astype(np.float32) / 255
    cases: list[tuple[Callable[[], dict[str, Any]], str]] = [
        (lambda: {k: v for k, v in good.items() if k != "wrist"}, "no stream 'wrist'"),
        (lambda: good | {"front": good["front"][:-1]}, r"\(39, 40, 3\), expected \(40, 40, 3\)"),
        (lambda: good | {"front": np.moveaxis(good["front"], -1, 0)}, r"shape \(3, 40, 40\)"),
        (lambda: good | {"front": half}, "'front' holds 0.*; an image is uint8, or whole numbers"),
        (lambda: good | {"front": good["front"].astype(np.int64) - 300}, "'front' holds -"),
    ]
    for make, message in cases:
        with pytest.raises(UserError, match=message):
            made.select_action(make())


def test_settings_of_images_that_make_no_sense() -> None:
    for make, message in [
        (lambda: StreamConfig((3, 8, 8), kind="image"), "expected \\(H, W, 3\\)"),
        (lambda: StreamConfig((8, 8, 3), angles=(1,), kind="image"), "not for an image"),
        (lambda: VisionConfig(crop=1.2), "vision.crop = 1.2"),
        (lambda: VisionConfig(encoder="pretrained"), "train --encoder NAME sets"),
    ]:
        with pytest.raises(UserError, match=message):
            make()


def test_a_served_policy_takes_images() -> None:
    episode = Episode(seeing())
    episode.observe({f"observation/{k}": v[0, 0] for k, v in seen(1).items()})
    assert episode.window()["front"].shape == (1, 2, SIDE, SIDE, 3)
    assert episode.window()["front"].dtype == np.uint8


def test_exported_policy_takes_uint8(tmp_path: Path) -> None:
    made, path = seeing(policy="regression"), tmp_path / "policy.onnx"
    export_onnx(made, path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    windows = seen(1)
    plan = session.run(["plan"], dict(windows))[0]
    assert abs(plan - made.predict_chunk(windows).plan).max() < 1e-4
    with pytest.raises(UserError, match="pretrained image encoders are not exported"):
        check_exportable(
            config(
                streams=STREAMS,
                vision=VisionConfig("pretrained", pretrained="some/model", architecture={}),
            )
        )


# -- pretrained backbones --------------------------------------------------------------------

TINY = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip


@pytest.fixture(params=["dinov2", "dinov3_vit", "siglip"])
def backbone(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A small vision transformer in a folder, as the hub has large ones."""
    from transformers import AutoConfig, AutoModel

    torch.manual_seed(0)
    if request.param == "siglip":
        words = {k: v for k, v in TINY.items() if k not in ("image_size", "patch_size")}
        made = AutoConfig.for_model("siglip", vision_config=TINY, text_config=words)
    else:
        made = AutoConfig.for_model(request.param, **TINY)
    folder = tmp_path / "backbone"
    AutoModel.from_config(made).save_pretrained(folder)
    shown = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}
    (folder / "preprocessor_config.json").write_text(json.dumps(shown))
    return folder


def test_pretrained_backbone_is_frozen_and_kept_with_the_policy(
    backbone: Path, tmp_path: Path
) -> None:
    vision = replace(make_vision(str(backbone)), pixels=48, shared=True)
    made = seeing(vision)
    before = copy.deepcopy(made.state_dict())
    made.load_pretrained()
    loaded = {n for n, v in made.state_dict().items() if not torch.equal(v, before[n])}
    assert all("backbones.0" in name for name in loaded)
    assert any("mean" in name for name in loaded)
    windows = seen(2)
    plan = made.predict_chunk(windows, generators(2)).plan
    other = made.predict_chunk(windows | {"front": seen(2, 1)["front"]}, generators(2)).plan
    assert abs(other - plan).max() > 1e-6
    batch = Batch(
        {k: torch.from_numpy(v) for k, v in windows.items()},
        torch.zeros(2, 16, 2), torch.ones(2, 16, dtype=torch.bool),
    )  # fmt: skip
    made.train()(batch).backward()
    trained = {n for n, p in made.named_parameters() if p.grad is not None}
    assert not any("backbones" in name for name in trained)
    assert any("cameras.heads.1" in name for name in trained)
    save_policy(made, tmp_path / "run")
    shutil.rmtree(backbone)  # a trained policy needs it no longer
    assert (load_policy(tmp_path / "run").predict_chunk(windows, generators(2)).plan == plan).all()


def test_pretrained_backbone_can_be_trained_further(backbone: Path) -> None:
    made = seeing(replace(make_vision(str(backbone)), pixels=32, frozen=False))
    made.load_pretrained()
    batch = Batch(
        {k: torch.from_numpy(v) for k, v in seen(2).items()},
        torch.zeros(2, 16, 2), torch.ones(2, 16, dtype=torch.bool),
    )  # fmt: skip
    made.train()(batch).backward()
    assert any(
        "backbones.1.model" in name and p.grad is not None and p.grad.abs().max() > 0
        for name, p in made.named_parameters()
    )


@pytest.mark.parametrize("backbone", ["dinov2"], indirect=True)
def test_what_is_no_backbone_is_named(backbone: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: cannot be loaded, neither conv, resnet18 nor"):
        make_vision(str(tmp_path / "empty"))
    vision = make_vision(str(backbone))
    with pytest.raises(UserError, match=r"vision.pixels = 7: a patch of .* alone has 8"):
        seeing(replace(vision, pixels=7))
    weights = load_file(backbone / "model.safetensors")
    lost = max(weights)
    save_file(
        {k: v for k, v in weights.items() if k != lost}, backbone / "model.safetensors",
        {"format": "pt"},
    )  # fmt: skip
    with pytest.raises(UserError, match=f"it has no weights {lost}"):
        seeing(vision).load_pretrained()
    (backbone / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UserError, match="a bert is no vision transformer"):
        make_vision(str(backbone))


# -- the whole way ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pusht_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some pushes at random, seen by the camera."""
    environment = make_task("pusht").make()
    environment.cameras = {"img": (SIDE, SIDE)}
    random, episodes = np.random.default_rng(0), []
    for seed in range(3):
        observations, actions = [environment.reset(seed)], []
        for _ in range(12):
            actions.append(random.uniform(100, 400, 2).astype(np.float32))
            observations.append(environment.step(actions[-1]).observation)
        kept = {k: np.stack([o[k] for o in observations[:-1]]) for k in observations[0]}
        episodes.append(Recorded(kept, np.stack(actions), np.zeros(12), True, seed))
    environment.close()
    path = tmp_path_factory.mktemp("images") / "pusht.hdf5"
    write_robomimic(path, episodes, "pusht", {"control_freq": 10})
    return path


def test_train_on_images_and_roll_out(pusht_file: Path, tmp_path: Path) -> None:
    demonstrations = open_demonstrations(pusht_file)
    streams = choose_streams(demonstrations, "img,state:elements=0+1")
    run = tmp_path / "run"
    settings = TrainingConfig(data="x", steps=3, batch_size=8, warmup_steps=1)
    train(demonstrations, config(streams=streams), settings, run)
    result = evaluate(Rollout(str(run), "pusht"), 2, 100_000, progress=False)
    assert result["episodes"] == 2
    first, last = result["moments"][0], result["moments"][-1]
    pictures = observed(last, "img")
    assert pictures.shape == (2, SIDE, SIDE, 3)
    assert pictures.dtype == np.uint8
    assert (pictures != observed(first, "img")).any()  # rendered anew along the episode
    assert observed(last, "state").shape == (2, 5)
    with pytest.raises(UserError, match=r"sees images \(img\); the energy of observations is of"):
        calibrate(run, str(demonstrations.path), 0.1, None, 1, 0)


def test_resumed_training_draws_the_same_crops(pusht_file: Path, tmp_path: Path) -> None:
    demonstrations = open_demonstrations(pusht_file)
    policy = config(streams=choose_streams(demonstrations, "img"))
    settings = TrainingConfig(
        data="x", steps=4, batch_size=8, warmup_steps=1, checkpoint_seconds=0.0
    )
    whole = train(demonstrations, policy, settings, tmp_path)
    shutil.rmtree(checkpoint_folders(tmp_path)[-1])
    resumed = train(demonstrations, policy, settings, tmp_path, resume=True)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


# -- features that are computed once ---------------------------------------------------------


def still(backbone: Path, **changes: Any) -> VisionConfig:
    """Pictures whole and in their own colours."""
    vision = replace(make_vision(str(backbone)), pixels=48, crop=1.0, jitter=0.0)
    return replace(vision, **changes)


def looking(pusht_file: Path, vision: VisionConfig, **changes: Any) -> PolicyConfig:
    streams = choose_streams(open_demonstrations(pusht_file), "img,state:elements=0+1")
    return config(streams=streams, vision=vision, **changes)


BRIEF = TrainingConfig(data="x", steps=4, batch_size=8, warmup_steps=1, checkpoint_seconds=0.0)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures a backbone was shown at a time."""
    counts = []
    forward = PretrainedBackbone.forward

    def counted(self: PretrainedBackbone, pictures: torch.Tensor) -> torch.Tensor:
        counts.append(len(pictures))
        return forward(self, pictures)

    monkeypatch.setattr(PretrainedBackbone, "forward", counted)
    monkeypatch.setattr("ebt_policy.training.features._BATCH", 16)
    return counts


@pytest.mark.parametrize("name", ["ebt", "diffusion"])
def test_training_reads_features_and_has_the_losses_of_pictures(
    backbone: Path, pusht_file: Path, tmp_path: Path, encoded: list[int], name: Any
) -> None:
    demonstrations = open_demonstrations(pusht_file)
    policy = looking(pusht_file, still(backbone), policy=name)
    trainers = [Trainer(demonstrations, policy, BRIEF, tmp_path / run) for run in ("a", "b")]
    assert encoded == [16, 16, 4]  # of 36 steps, once for both runs
    pictures = torch.from_numpy(load_arrays(demonstrations, policy.streams).observations["img"])
    trainers[1].windows.observations["img"] = pictures
    losses: list[list[float]] = []
    for trainer in trainers:
        torch.manual_seed(0)
        losses.append([trainer.one_step(0.0)[0] for _ in range(4)])
    assert encoded[3:] == [16] * 4  # two pictures in each of eight windows
    # To the rounding of float16.
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    # Acting looks at pictures.
    window = trainers[0].windows.gather(torch.arange(3)).observations | {"img": pictures[:6]}
    window["img"] = window["img"].unflatten(0, (3, 2))
    plans = [t.policy.predict_chunk(window, generators(3)).plan for t in trainers]
    assert encoded[7:] == [6, 6]
    assert plans[0] == pytest.approx(plans[1], abs=2e-2)


@pytest.mark.parametrize("backbone", ["dinov2"], indirect=True)
def test_resumed_training_reads_the_same_features(
    backbone: Path, pusht_file: Path, tmp_path: Path
) -> None:
    demonstrations = open_demonstrations(pusht_file)
    policy, run = looking(pusht_file, still(backbone)), tmp_path / "run"
    whole = train(demonstrations, policy, BRIEF, run)
    (file,) = (tmp_path / "features").glob("*.float16")
    assert file.stat().st_size == 36 * 16 * 6 * 6 * 2
    shutil.rmtree(checkpoint_folders(run)[-1])
    shutil.rmtree(backbone)
    file.unlink()  # and computed again, from the checkpoint's weights
    resumed = train(demonstrations, policy, BRIEF, run, resume=True)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert list((tmp_path / "features").glob("*.float16")) == [file]


@pytest.mark.parametrize("backbone", ["dinov2"], indirect=True)
def test_features_are_of_these_weights_settings_and_pictures(
    backbone: Path, pusht_file: Path, tmp_path: Path
) -> None:
    streams = looking(pusht_file, still(backbone)).streams
    arrays = load_arrays(open_demonstrations(pusht_file), streams)

    def kept(arrays: Arrays = arrays, **changes: Any) -> np.ndarray:
        made = make_policy(looking(pusht_file, still(backbone, **changes)))
        made.load_pretrained()
        return keep_features(made, arrays, tmp_path)["img"]

    def files() -> int:
        return len(list(tmp_path.glob("*.float16")))

    first = kept()
    assert kept().tobytes() == first.tobytes()
    assert kept(keypoints=4).tobytes() == first.tobytes()  # of the head, not of the backbone
    assert files() == 1
    assert kept(pixels=40).shape == (36, 16, 5, 5)
    dark = {"img": arrays.observations["img"] // 2}
    other = kept(replace(arrays, observations=dark, sha256={"img": "of the dark ones"}))
    assert abs(other - first).max() > 1e-3
    shown = {"image_mean": [0.1, 0.1, 0.1], "image_std": [0.2, 0.2, 0.2]}
    (backbone / "preprocessor_config.json").write_text(json.dumps(shown))
    assert abs(kept() - first).max() > 1e-3
    weights = load_file(backbone / "model.safetensors")
    save_file(
        {k: 1.1 * v for k, v in weights.items()}, backbone / "model.safetensors", {"format": "pt"}
    )
    assert abs(kept() - first).max() > 1e-3
    assert files() == 5


@pytest.mark.parametrize("backbone", ["dinov2"], indirect=True)
def test_features_are_whole_or_absent(
    backbone: Path, pusht_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_policy(looking(pusht_file, still(backbone)))
    arrays = load_arrays(open_demonstrations(pusht_file), made.config.streams)
    folder, forward = tmp_path / "features", PretrainedBackbone.forward
    monkeypatch.setattr("ebt_policy.training.features._BATCH", 16)
    calls = []

    def stopped(self: PretrainedBackbone, pictures: torch.Tensor) -> torch.Tensor:
        calls.append(pictures)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return forward(self, pictures)

    monkeypatch.setattr(PretrainedBackbone, "forward", stopped)
    with pytest.raises(KeyboardInterrupt):
        keep_features(made, arrays, folder)
    assert [path.name for path in folder.iterdir()] == [".lock"]
    monkeypatch.setattr(PretrainedBackbone, "forward", lambda *given: 1e6 * forward(*given))
    with pytest.raises(UserError, match="a feature of 'img' is beyond float16's 65504"):
        keep_features(made, arrays, folder)
    monkeypatch.setattr(PretrainedBackbone, "forward", forward)
    message = r"features: the features of the pictures, 4.15e-05 GB, cannot be written \(.*jitter"
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=40_000))
        with pytest.raises(UserError, match=message):
            keep_features(made, arrays, folder)
    (folder / "killed.part").touch()
    assert keep_features(made, arrays, folder)["img"].any((1, 2, 3)).all()
    assert not list(folder.glob("*.part"))


@pytest.mark.parametrize("backbone", ["dinov2"], indirect=True)
def test_features_are_computed_by_one_process_at_a_time(
    backbone: Path, pusht_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_policy(looking(pusht_file, still(backbone)))
    arrays = load_arrays(open_demonstrations(pusht_file), made.config.streams)
    said: SimpleQueue[str] = SimpleQueue()
    monkeypatch.setattr(features, "print", lambda text, **_: said.put(text), raising=False)
    with ThreadPoolExecutor(1) as pool:
        with (tmp_path / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            waiting = pool.submit(keep_features, made, arrays, tmp_path)
            assert "another process computes features" in said.get(timeout=60)
            assert not waiting.done()
            assert not list(tmp_path.glob("*.*16"))
        assert waiting.result(60)["img"].any()


@pytest.mark.parametrize("backbone", ["dinov2"], indirect=True)
def test_features_of_pictures_that_change_are_not_kept(
    backbone: Path, pusht_file: Path, tmp_path: Path
) -> None:
    vision = still(backbone)
    for changed in (
        replace(vision, jitter=0.1), replace(vision, crop=0.9), replace(vision, frozen=False),
    ):  # fmt: skip
        trainer = Trainer(
            open_demonstrations(pusht_file), looking(pusht_file, changed), BRIEF, tmp_path / "run"
        )
        assert trainer.windows.observations["img"].dtype == torch.uint8
    assert not (tmp_path / "features").exists()


def test_a_camera_that_the_task_lacks_is_named(pusht_file: Path, tmp_path: Path) -> None:
    streams = {"behind": StreamConfig((SIDE, SIDE, 3), kind="image")}
    save_policy(make_policy(config(streams=streams)), tmp_path)
    with pytest.raises(UserError, match="--task pusht: observation has no stream 'behind'"):
        evaluate(Rollout(str(tmp_path), "pusht"), 1, 0, progress=False)


def test_bench_encoders_tells_encoding_from_descent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ebt_policy.benchmarks.encoders._WARMUP", 0)
    path = tmp_path / "encoders.json"
    command = ["bench", "encoders", "--preset", "tiny", "--rounds", "1", "--json", str(path)]
    assert main(command) == 0
    rows = json.loads(path.read_text())["rows"]
    assert {(row["encoder"], row["policy"], row["steps"]) for row in rows} >= {
        ("conv", "ebt", 2), ("resnet18", "ebt", 2), ("conv", "diffusion", 10),
    }  # fmt: skip
    for row in rows:
        assert row["share"] == pytest.approx(row["encode_ms"] / row["p50_ms"], abs=2e-3)
        assert row["parameters"] > (1e7 if row["encoder"] == "resnet18" else 1e5)


def test_pixels_that_matter_are_those_that_change_the_energy() -> None:
    made = seeing().eval()
    windows = seen(2)
    pictures, slopes = pixel_saliency(made, windows, "front")
    assert pictures.shape == (*slopes.shape, 3)
    assert 0 <= pictures.min() <= pictures.max() <= 1
    place = np.unravel_index(slopes[0].argmax(), slopes[0].shape)
    # The same by differences, in the picture's units of [-1, 1].
    plan = made.predict_chunk(windows, generators(2)).plan
    chunks = made.action_normaliser.normalise(torch.from_numpy(plan))
    model = made.core
    assert isinstance(model, EnergyModel)
    changes = []
    for channel in range(3):
        energies = []
        for step in (-0.02, 0.02):
            changed = made.normalise_observation(made.raw_windows(windows))
            changed["front"][0, 1, channel, place[0], place[1]] += step
            with torch.no_grad():
                energies.append(model(chunks, model.remember(changed))[0].item())
        changes.append((energies[1] - energies[0]) / 0.04)
    assert np.linalg.norm(changes) == pytest.approx(slopes[0][place], rel=0.1)
