"""Sentences: from the demonstrations to the action, and which task is done."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import config, episodes, generators
from ebt_policy import UserError, load_policy, save_policy
from ebt_policy.cli.main import main
from ebt_policy.config import StreamConfig
from ebt_policy.demonstrations import Demonstrations, open_demonstrations
from ebt_policy.demonstrations.conversion import convert
from ebt_policy.demonstrations.mixture import MixedDemonstrations
from ebt_policy.demonstrations.robomimic import write_robomimic
from ebt_policy.evaluation.energy_quality import sentence_quality, word_saliency
from ebt_policy.evaluation.rollout import EpisodeRecord, of_records
from ebt_policy.policies import Policy, make_policy
from ebt_policy.serving.episode import Episode
from ebt_policy.tasks import make_task
from ebt_policy.tasks.collection import collect
from ebt_policy.tasks.metaworld import PUCK_TASKS, done_with_puck
from ebt_policy.tasks.metaworld_sentences import PHRASES, meaning, sentence
from ebt_policy.windows.arrays import load_arrays, map_arrays, store_arrays
from ebt_policy.windows.sentences import HASHED, MAX_WORDS, embed
from ebt_policy.windows.windows import BatchOrder, Windows, choose_streams, window_shares

STREAMS = {
    "state": StreamConfig((3,)),
    "task": StreamConfig((256,), kind="text", encoder=HASHED),
}
SENTENCES = ("go to the middle", "stay where you are", "go to the middle", "please stay")


def told(path: Path, sentences: tuple[str | None, ...] = SENTENCES, keys: str = "state") -> Path:
    """Demonstrations with a sentence for each episode."""
    made = episodes([20, 25, 30, 15])
    for episode, text in zip(made, sentences, strict=True):
        episode.sentence = text
        episode.observations = {keys: episode.observations["state"]} | episode.observations
    write_robomimic(path, made, "toy", {"control_freq": 10})
    return path


def obedient(demonstrations: Demonstrations, **changes: Any) -> tuple[Policy, Windows]:
    """An untrained policy with normalisers of some demonstrations, and all their windows."""
    torch.manual_seed(0)
    policy = make_policy(config(streams=STREAMS, **changes))
    arrays, ends = load_arrays(demonstrations, STREAMS), demonstrations.episode_ends
    windows = Windows(arrays, ends, np.arange(len(ends)), policy.config.windows)
    policy.fit_normalisers(
        arrays.observations, arrays.actions, windows.steps.numpy(), "test", arrays.sentences
    )
    return policy, windows


# -- sentence to vector ------------------------------------------------------------------


def test_hashed_sentences_are_the_same_everywhere_and_alike_by_their_words() -> None:
    # The first bits of SHAKE-256("open"), as any implementation of it has them.
    assert embed("open", HASHED)[:8].tolist() == [1, 1, -1, 1, -1, -1, -1, 1]
    first = embed("Open the drawer!", HASHED)
    assert np.array_equal(first, embed("open the  drawer", HASHED))
    likeness = [
        float(first @ embed(other, HASHED)) / len(first)
        for other in ("please open the drawer", "close the drawer", "press a button")
    ]
    assert likeness == sorted(likeness, reverse=True)
    assert abs(likeness[-1]) < 0.2
    assert not np.array_equal(embed("push a b", HASHED), embed("push b a", HASHED))


def tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {w: i for i, w in enumerate(["[UNK]", "[PAD]", "open", "the", "drawer"])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="[UNK]", pad_token="[PAD]"
    ).save_pretrained(folder)


@pytest.mark.parametrize("kind", ["bert", "clip", "t5"])
def test_text_encoders_are_read_from_a_folder(kind: str, tmp_path: Path) -> None:
    import transformers

    small: dict[str, Any] = {"num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 9}
    small |= {"hidden_size": 8, "intermediate_size": 8, "max_position_embeddings": 12}
    small |= {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 0}
    if kind == "bert":
        model: Any = transformers.BertModel(transformers.BertConfig(**small))
    elif kind == "clip":
        vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
                  "num_attention_heads": 2, "image_size": 8, "patch_size": 4}  # fmt: skip
        model = transformers.CLIPModel(
            transformers.CLIPConfig(text_config=small, vision_config=vision)
        )
    else:
        model = transformers.T5Model(
            transformers.T5Config(
                vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2
            )
        )  # fmt: skip
    model.save_pretrained(tmp_path)
    tokenizer(tmp_path)
    found = embed("open the drawer", str(tmp_path))
    assert found.shape == (8,)
    assert np.square(found).mean() == pytest.approx(1, rel=1e-5)
    assert not np.allclose(found, embed("the drawer", str(tmp_path)))
    assert embed("open the drawer", str(tmp_path)) is found  # read once, then remembered
    assert embed("drawer " * MAX_WORDS, str(tmp_path)).shape == (8,)  # as many as it can read


def test_a_missing_text_encoder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"encoder=.*nowhere: cannot be loaded, neither hashed"):
        embed("open the drawer", str(tmp_path / "nowhere"))


# -- data --------------------------------------------------------------------------------


def test_sentences_reach_the_windows(tmp_path: Path) -> None:
    demonstrations = open_demonstrations(told(tmp_path / "told.hdf5"))
    assert list(demonstrations.tasks) == ["go to the middle", "stay where you are", "please stay"]
    assert list(choose_streams(demonstrations, None)) == ["state"]
    streams = choose_streams(demonstrations, "state,task")
    assert streams == STREAMS
    arrays = load_arrays(demonstrations, streams)
    store_arrays(demonstrations, streams, tmp_path / "run" / "arrays")
    mapped = map_arrays(tmp_path / "run" / "arrays")
    assert mapped.sha256 == arrays.sha256
    for name in ("state", "task"):
        assert np.array_equal(mapped.observations[name], arrays.observations[name])
    windows = Windows(mapped, demonstrations.episode_ends, np.arange(4), config().windows)
    batch = windows.gather(torch.tensor([0, 21, 80]))
    for row, episode in enumerate((0, 1, 3)):
        wanted = torch.from_numpy(np.array(embed(SENTENCES[episode], HASHED)))
        assert torch.equal(batch.observations["task"][row], wanted.expand(2, -1))


def test_sentences_survive_a_conversion(tmp_path: Path) -> None:
    source = open_demonstrations(told(tmp_path / "told.hdf5"))
    convert(source, tmp_path / "lerobot", "lerobot", progress=False)
    converted = open_demonstrations(tmp_path / "lerobot")
    assert converted.tasks == source.tasks
    assert np.array_equal(np.asarray(converted.task_of_step), np.asarray(source.task_of_step))


@pytest.mark.parametrize(
    ("sentences", "keys", "message"),
    [
        (("a", "b", "", "c"), "state,task", "told.hdf5: the sentence '' has no words"),
        (("a", "b", "go " * 65, "c"), "state,task", "has 65 words; at most 64 are read"),
        (("a", "b", None, "c"), "state,task", "no observation key 'task'"),
        (SENTENCES, "state,task:angles=1", "write task or task:encoder=NAME"),
    ],
)
def test_bad_sentences_in_the_data(
    sentences: tuple[str | None, ...], keys: str, message: str, tmp_path: Path
) -> None:
    demonstrations = open_demonstrations(told(tmp_path / "told.hdf5", sentences))
    with pytest.raises(UserError, match=message):
        load_arrays(demonstrations, choose_streams(demonstrations, keys))


def test_data_without_sentences_are_refused_by_a_policy_that_reads_them(hdf5: Path) -> None:
    with pytest.raises(UserError, match="no sentence says what is done"):
        load_arrays(open_demonstrations(hdf5), STREAMS)


def test_a_mixture_reads_as_its_parts(tmp_path: Path) -> None:
    paths = [told(tmp_path / "a.hdf5", keys="more"), told(tmp_path / "b.hdf5")]
    parts = [open_demonstrations(path) for path in paths]
    mixture = MixedDemonstrations(parts)
    assert list(choose_streams(mixture, None)) == ["state"]  # what both have
    assert (mixture.episodes, mixture.steps, mixture.rate) == (8, 180, 10)
    assert mixture.tasks == parts[0].tasks
    both = np.concatenate([part.read("state", 0, part.steps) for part in parts])
    assert np.array_equal(mixture.read("state", 85, 97), both[85:97])
    assert np.array_equal(mixture.read_actions(95, 180), parts[1].read_actions(5, 90))
    assert mixture.task_of_step is not None
    assert mixture.task_of_step[90:].tolist() == np.asarray(parts[1].task_of_step).tolist()
    other = tmp_path / "other.hdf5"
    made = episodes([20])
    made[0].actions = made[0].actions[:, :1]
    write_robomimic(other, made, "toy", {})
    with pytest.raises(UserError, match=r"other.hdf5: its actions have shape \(1,\)"):
        MixedDemonstrations([parts[0], open_demonstrations(other)])


def test_weights_are_shares_of_what_is_learned_from() -> None:
    steps = np.arange(1000)
    shares = window_shares(steps, np.array([900, 1000]), (1.0, 3.0))
    order = BatchOrder(1000, 100, 0, shares)
    drawn = torch.cat([order.indices(step) for step in range(10)])
    assert (drawn >= 900).float().mean().item() == pytest.approx(0.75, abs=0.05)
    again = BatchOrder(1000, 100, 0, shares)
    assert torch.equal(again.indices(7), drawn[700:800])  # whatever came before


def test_one_policy_from_two_data_sets_by_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = [str(told(tmp_path / "a.hdf5")), str(told(tmp_path / "b.hdf5"))]
    both = [part for path in data for part in ("--data", path)]
    common = ["train", "--obs", "state,task", "--preset", "tiny", "--steps", "2"]
    run = tmp_path / "run"
    assert main([*common, *both, "--weights", "3,1", "--out", str(run)]) == 0
    said = capsys.readouterr().out
    assert "a.hdf5+b.hdf5: 8 episodes, 180 steps; observing state, task" in said
    assert "3 sentences, hashed" in said
    policy = load_policy(run)
    assert policy.select_action({"state": np.zeros(3), "task": "please stay"}).shape == (2,)
    for wrong, message in (("1", "1 of them; it takes one"), ("1,0", "each must be above 0")):
        assert main([*common, *both, "--weights", wrong, "--out", str(tmp_path / "no")]) == 2
        assert message in capsys.readouterr().err


# -- policy ------------------------------------------------------------------------------


def test_a_policy_acts_by_its_sentence_as_in_training(tmp_path: Path) -> None:
    demonstrations = open_demonstrations(told(tmp_path / "told.hdf5"))
    policy, windows = obedient(demonstrations)
    save_policy(policy, tmp_path / "run")
    policy = load_policy(tmp_path / "run")
    batch = windows.gather(torch.tensor([0, 40]))
    words = np.array([[SENTENCES[0]] * 2, [SENTENCES[1]] * 2])
    vectors = policy.predict_chunk(batch.observations, generators(2))
    text = policy.predict_chunk({**batch.observations, "task": words}, generators(2))
    assert np.array_equal(vectors.plan, text.plan)
    other = policy.predict_chunk({**batch.observations, "task": words[::-1]}, generators(2))
    assert not np.allclose(text.plan, other.plan)
    one = {"state": np.zeros(3), "task": SENTENCES[0]}
    assert policy.select_action(one).shape == (2,)


def test_in_training_a_sentence_is_a_neighbourhood(tmp_path: Path) -> None:
    """Other noise for each window, the same at all its steps; none when acting or of numbers."""
    policy, windows = obedient(open_demonstrations(told(tmp_path / "d.hdf5")), sentence_noise=0.3)
    raw = windows.gather(torch.tensor([0, 0])).observations
    policy.eval()
    acting = policy.normalise_observation(raw)
    policy.train()
    training = policy.normalise_observation(raw)
    assert torch.equal(training["state"], acting["state"])
    change = training["task"] - acting["task"]
    assert change.std() > 0.1
    assert torch.allclose(change[:, 0], change[:, -1], atol=1e-5)
    assert not torch.allclose(change[0], change[1], atol=0.1)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("", "the sentence '' has no words"),
        ("?!", "has no words"),
        ("go on " * 40, "has 80 words; at most 64 are read"),
        (b"go", "is no sentence"),
        (["go", "on"], r"has shape \(2, 256\), expected \(256,\)"),
    ],
)
def test_bad_sentences_are_named(said: Any, message: str, tmp_path: Path) -> None:
    policy, _ = obedient(open_demonstrations(told(tmp_path / "told.hdf5")))
    with pytest.raises(UserError, match=message):
        policy.select_action({"state": np.zeros(3), "task": said})
    with pytest.raises(UserError, match="no stream 'task'"):
        policy.select_action({"state": np.zeros(3)})


def test_served_policies_are_told_by_openpis_prompt(tmp_path: Path) -> None:
    policy, _ = obedient(open_demonstrations(told(tmp_path / "told.hdf5")))
    windows = []
    for key in ("task", "observation/task", "prompt"):
        episode = Episode(policy)
        episode.observe({"state": np.zeros(3), key: SENTENCES[0]})
        windows.append(episode.window()["task"])
    wanted = np.broadcast_to(embed(SENTENCES[0], HASHED), (1, 2, 256))
    assert all(np.array_equal(window, wanted) for window in windows)
    with pytest.raises(UserError, match="has no words"):
        Episode(policy).observe({"state": np.zeros(3), "prompt": ""})


def test_energy_that_does_not_read_prefers_no_sentence(tmp_path: Path) -> None:
    policy, windows = obedient(open_demonstrations(told(tmp_path / "told.hdf5")))
    meanings = ["go", "stay", "stay"]
    found = sentence_quality(policy, windows, meanings, 20, seed=0)
    assert found["by_meaning"].keys() == {"go", "stay"}
    encoder: Any = policy.core.network.encoder  # type: ignore[union-attr]
    torch.nn.init.zeros_(encoder.streams[encoder.names.index("task")].weight)
    deaf = sentence_quality(policy, windows, meanings, 20, seed=0)
    for measure in ("auroc_energy", "auroc_excess", "auroc_step"):
        assert deaf[measure] == [0.5, 0.5, 0.5]


def test_every_word_matters_by_what_is_done_without_it(tmp_path: Path) -> None:
    policy, windows = obedient(open_demonstrations(told(tmp_path / "told.hdf5")))
    batch = windows.gather(torch.tensor([0, 5, 9])).observations
    seen = {"state": batch["state"].numpy(), "task": np.full((3, 2), "Go to the middle!")}
    said, moved = word_saliency(policy, seen, "task")
    assert said == ["go", "to", "the", "middle"]
    assert moved.shape == (3, 4)
    assert np.abs(moved).max() > 0
    encoder: Any = policy.core.network.encoder  # type: ignore[union-attr]
    torch.nn.init.zeros_(encoder.streams[encoder.names.index("task")].weight)
    assert np.abs(word_saliency(policy, seen, "task")[1]).max() < 1e-6


# -- tasks -------------------------------------------------------------------------------


def test_every_meta_world_task_has_sentences_of_its_own() -> None:
    assert len(PHRASES) == 50
    phrases = [phrase for three in PHRASES.values() for phrase in three]
    assert len(set(phrases)) == len(phrases)
    for task in PHRASES:
        make_task(f"metaworld/{task}")  # there is such a task
        seen = {sentence(task, seed) for seed in range(60)}
        unseen = {sentence(task, seed, unseen=True) for seed in range(20)}
        assert len(seen) == 8
        assert len(unseen) == 3
        assert not seen & unseen
        assert {meaning(text) for text in seen | unseen} == {task}


def test_mt10_takes_its_tasks_in_turn_and_counts_each() -> None:
    task = make_task("metaworld/mt10")
    environment = task.make()
    first = environment.reset(14)
    assert meaning(str(first["task"])) == "drawer-open" == environment.facts()["task"]
    single = make_task("metaworld/drawer-open").make()
    alone = single.reset(1)
    assert np.array_equal(first["state"], alone["state"])
    assert first["task"] == alone["task"]
    environment.reset(23)
    again = environment.reset(14)
    assert np.array_equal(again["state"], first["state"])
    assert again["task"] == first["task"]
    recorded = collect(task, 1, 14, progress=False)[0]
    assert recorded.sentence == str(first["task"])
    assert recorded.observations.keys() == {"state"}
    other = make_task("metaworld/mt10+paraphrase").make()
    assert str(other.reset(14)["task"]) == sentence("drawer-open", 1, unseen=True)
    for made in (environment, single, other):
        made.close()
    records = [
        dataclasses.asdict(
            EpisodeRecord(seed, seed < 3, 0.0, 9, [2], facts={"task": "ab"[seed % 2]})
        )
        for seed in range(6)
    ]
    per_task = of_records(records, replace(task, summarise=None))["per_task"]
    assert {name: found["success_rate"] for name, found in per_task.items()} == {
        "a": pytest.approx(2 / 3), "b": pytest.approx(1 / 3),
    }  # fmt: skip


def test_no_task_but_those_with_sentences_is_paraphrased() -> None:
    with pytest.raises(UserError, match="no sentence says what is to be done"):
        make_task("planar/fork+paraphrase").make()
    with pytest.raises(UserError, match="paraphrase takes no strength"):
        make_task("metaworld/puck+paraphrase=2")


def state(hand: tuple[float, ...], puck: tuple[float, ...]) -> np.ndarray:
    values = np.zeros(39, np.float32)
    values[:3], values[4:7], values[-3:] = hand, puck, (0.1, 0.8, 0.2)
    return values


@pytest.mark.parametrize(
    ("hand", "puck", "did"),
    [
        ((0, 0.6, 0.2), (0, 0.65, 0.02), None),
        ((0.1, 0.8, 0.23), (0, 0.65, 0.02), "reach"),
        ((0.1, 0.8, 0.07), (0.1, 0.78, 0.02), "push"),
        ((0.1, 0.8, 0.23), (0.1, 0.8, 0.19), "pick-place"),
        ((0.05, 0.75, 0.15), (0.05, 0.75, 0.11), None),  # on the way
    ],
)
def test_what_was_done_with_the_puck(
    hand: tuple[float, ...], puck: tuple[float, ...], did: str | None
) -> None:
    assert done_with_puck(state(hand, puck)) == did


def test_one_start_three_sentences() -> None:
    task = make_task("metaworld/puck")
    environment = task.make()
    starts, facts = [], []
    for seed in range(6):
        observation = environment.reset(seed)
        starts.append(observation["state"])
        assert meaning(str(observation["task"])) == PUCK_TASKS[seed % 3]
        if seed < 3:
            assert task.make_expert is not None
            expert, ended = task.make_expert(seed), False
            while not ended:
                outcome = environment.step(expert(observation))
                observation, ended = outcome.observation, outcome.success or outcome.done
            facts.append(environment.facts())
    assert [fact["did"] for fact in facts] == list(PUCK_TASKS)
    assert np.array_equal(starts[0], starts[1])
    assert np.array_equal(starts[0], starts[2])
    assert not np.array_equal(starts[0], starts[3])
    assert task.summarise is not None
    did = task.summarise(facts)["did"]
    assert did["push"] == {"reach": 0, "push": 1, "pick-place": 0, "nothing": 0}
    environment.close()
