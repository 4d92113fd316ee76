"""Training any policy: AdamW, warm-up and cosine, EMA, on ``accelerate``.

A run is a folder: ``config.json`` and ``model.safetensors`` (the policy, with EMA weights),
``training.json`` (the settings), ``metrics.jsonl`` and ``tensorboard/`` (the curves),
``checkpoints/`` (to resume) and, when it has ended, ``summary.json``. While it is trained it also
holds ``arrays/``, the data as it is read. Features of pictures that are computed but once are for
all runs in the same folder: ``features/`` beside them.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import math
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextlib import nullcontext as nothing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, broadcast
from torch import Tensor
from tqdm import tqdm

from ebt_policy.config import PolicyConfig, TrainingConfig, WindowConfig, from_json, to_json
from ebt_policy.demonstrations import Demonstrations
from ebt_policy.errors import UserError
from ebt_policy.policies import make_policy
from ebt_policy.policies.base import Policy
from ebt_policy.policies.files import CONFIG_FILE, check_state, replace_file, save_policy
from ebt_policy.provenance import provenance
from ebt_policy.training.checkpoint import (
    Progress,
    checkpoint_folders,
    load_optimizer_tensors,
    optimizer_tensors,
    read_checkpoint,
    write_checkpoint,
)
from ebt_policy.training.features import keep_features
from ebt_policy.training.files import (
    ARRAYS_FOLDER,
    FEATURES_FOLDER,
    METRICS_FILE,
    SUMMARY_FILE,
    TRAINING_FILE,
    parse_record,
)
from ebt_policy.windows.arrays import map_arrays, store_arrays
from ebt_policy.windows.normaliser import Normaliser
from ebt_policy.windows.windows import BatchOrder, Windows, split_episodes, window_shares

_LOG_STEPS = 50
_BAR = "{desc} {percentage:3.0f}%|{bar:20}| {elapsed}<{remaining}{postfix}"
_VALIDATIONS = 10  # over the whole run


def train(
    demonstrations: Demonstrations,
    policy_config: PolicyConfig,
    config: TrainingConfig,
    run: Path,
    resume: bool = False,
) -> Policy:
    """Train a policy into a run folder.

    Args:
        demonstrations: what to learn from.
        policy_config: the policy.
        config: how to train it.
        run: the folder to make, or to continue.
        resume: continue from the newest checkpoint; a run that has none begins at the start.

    Returns:
        The policy with its EMA weights, as it is saved.

    Raises:
        UserError: the folder holds another run, data do not fit, the loss becomes NaN, or the
            disk is full.
        KeyboardInterrupt: after Ctrl-C; says at which step, where a checkpoint was saved (not
            where several processes train).
    """
    return Trainer(demonstrations, policy_config, config, run, resume).train()


def check_same_settings(kind: type, path: Path, given: Any) -> None:
    """Refuse to continue a run under other settings than those it began with.

    Raises:
        UserError: names the first setting that differs.
    """
    if not path.exists():
        raise UserError(f"--resume: {path} is missing; {path.parent} is no run of ebt-policy train")
    found = _difference(from_json(kind, path.read_text(), str(path)), given)
    if found is not None:
        raise UserError(f"--resume: {found} in {path}; give the same settings, or another --out")


def _difference(saved: Any, given: Any, prefix: str = "") -> str | None:
    """The first setting that differs, in words that end with its saved value."""
    for field in dataclasses.fields(given):
        name = prefix + field.name
        before, now = getattr(saved, field.name), getattr(given, field.name)
        if before == now:
            continue
        if isinstance(now, dict):
            if before.keys() != now.keys():
                return f"{name} are {', '.join(now)} now, but {', '.join(before)}"
            key = next(key for key in now if before[key] != now[key])
            name, before, now = f"{name}.{key}", before[key], now[key]
        if dataclasses.is_dataclass(now):
            return _difference(before, now, f"{name}.")
        return f"{name} is {now!r} now, but {before!r}"
    return None


def check_compiler(device: torch.device, asked_by: str) -> None:
    """Check that ``torch.compile`` will find what it needs.

    Raises:
        UserError: there is no C++ compiler, and training is on a CPU.
    """
    names = [os.environ.get("CXX", ""), "g++", "clang++"]
    if device.type == "cpu" and not any(shutil.which(name) for name in names if name):
        raise UserError(
            f"{asked_by}: no C++ compiler (g++, clang++ or $CXX) was found; install one, or go on "
            "without"
        )


class Trainer:
    """A run, ready to take its steps.

    Before :meth:`train` only ``arrays/`` and ``features/`` are written.

    Args:
        demonstrations, policy_config, config, run, resume: see :func:`train`.
    """

    def __init__(
        self,
        demonstrations: Demonstrations,
        policy_config: PolicyConfig,
        config: TrainingConfig,
        run: Path,
        resume: bool = False,
    ) -> None:
        self.config, self.run = config, run
        folders = checkpoint_folders(run)
        if resume and (run / CONFIG_FILE).exists():
            check_same_settings(PolicyConfig, run / CONFIG_FILE, policy_config)
            check_same_settings(TrainingConfig, run / TRAINING_FILE, config)
        elif not resume and (folders or (run / CONFIG_FILE).exists()):
            raise UserError(
                f"{run}: holds a run already; continue it with --resume, or use another --out"
            )
        torch.set_num_threads(config.threads)
        # A scalar head's last bias does not move the energy's gradient: it has none.
        unused = policy_config.policy in ("ebt", "ibc") and policy_config.form == "scalar"
        # Without prefixes the far landscape sees no chunk.
        unused = unused or policy_config.basin.split
        # A pretrained backbone has parts that only its own training used.
        unused = unused or policy_config.vision.encoder == "pretrained"
        self.accelerator = Accelerator(
            mixed_precision="bf16" if config.bf16 else "no",
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=unused)],
        )
        self.device = self.accelerator.device
        world = self.accelerator.num_processes
        started = int(os.environ.get("WORLD_SIZE", "1"))
        if started != world:
            raise UserError(
                f"torchrun has started {started} processes, and each of them would train alone; on "
                "a CPU set ACCELERATE_USE_CPU=true"
            )
        if config.batch_size % (world * config.accumulation):
            raise UserError(
                f"training.batch_size = {config.batch_size} cannot be shared by {world} processes "
                f"in {config.accumulation} parts each (training.accumulation)"
            )
        if config.shard_optimizer and world == 1:
            raise UserError(
                "training.shard_optimizer = true: there is one process; start several with "
                "'accelerate launch' or torchrun"
            )
        if config.weights and len(demonstrations.parts) != len(config.weights):
            raise UserError(
                f"--weights: {len(config.weights)} of them; it takes one for each of several --data"
            )
        longest = int(np.diff(demonstrations.episode_ends, prepend=0).max())
        horizon = policy_config.windows.horizon
        if horizon > max(longest, WindowConfig.horizon):  # short episodes are padded to that
            raise UserError(
                f"windows.horizon = {horizon}: the longest episode of {demonstrations.path} has "
                f"{longest} steps"
            )
        if config.compile:
            check_compiler(self.device, "training.compile = true")
        torch.manual_seed(config.seed)
        policy = make_policy(policy_config)
        if not (resume and folders):
            policy.load_pretrained()
        with self.accelerator.main_process_first():
            if self.accelerator.is_main_process:
                store_arrays(demonstrations, policy_config.streams, run / ARRAYS_FOLDER)
            arrays = map_arrays(run / ARRAYS_FOLDER)
        self.data: dict[str, Any] = {
            "name": demonstrations.path.name,
            "episodes": demonstrations.episodes,
            "steps": demonstrations.steps,
            "sha256": arrays.sha256,
        }
        training, validation = split_episodes(
            demonstrations.episodes, config.validation_share, config.seed
        )
        ends, windows = demonstrations.episode_ends, policy_config.windows
        self.windows = Windows(arrays, ends, training, windows)
        self.validation = Windows(arrays, ends, validation, windows) if len(validation) else None
        policy.fit_normalisers(
            arrays.observations, arrays.actions, self.windows.steps.numpy(),
            str(demonstrations.path), arrays.sentences,
        )  # fmt: skip
        still = (policy.action_normaliser.moves == 0).nonzero().flatten().tolist()
        if still and self.accelerator.is_main_process:
            print(f"constant action dimensions, kept at their value: {still}")
        constant = [
            name
            for name, normaliser in policy.named_normalisers()
            if isinstance(normaliser, Normaliser)
            and policy_config.streams[name].kind == "numbers"
            and not normaliser.moves.any()
        ]
        if constant and self.accelerator.is_main_process:
            print(f"constant observations, which tell nothing: {', '.join(constant)}")
        shares = None
        if config.weights:
            part_ends = np.cumsum([part.steps for part in demonstrations.parts])
            shares = window_shares(self.windows.steps.numpy(), part_ends, config.weights)
        self.order = BatchOrder(len(self.windows), config.batch_size, config.seed, shares)
        if self.order.batch_size < world * config.accumulation:
            raise UserError(
                f"{demonstrations.path}: {len(self.windows)} training windows cannot be shared by "
                f"{world} processes in {config.accumulation} parts each (training.accumulation)"
            )
        self.ema = copy.deepcopy(policy).to(self.device).eval().requires_grad_(False)
        self.policy = policy.to(self.device).train()
        settings: dict[str, Any] = {
            "lr": config.learning_rate, "weight_decay": config.weight_decay,
            # A resumed sharded optimiser has its step counts on the CPU, which fused kernels on
            # an accelerator do not take.
            "fused": not config.shard_optimizer,
        }  # fmt: skip
        self.shards: Any = None
        if config.shard_optimizer:
            from torch.distributed.optim import ZeroRedundancyOptimizer

            self.shards = ZeroRedundancyOptimizer(
                self.policy.parameters(), torch.optim.AdamW, **settings
            )
        self.optimizer = self.shards or torch.optim.AdamW(self.policy.parameters(), **settings)
        self.model = self.accelerator.prepare(self.policy)
        # Steps to come that compile, or record graphs on a GPU: no budget counts them.
        self._preparing = 0
        if config.compile:
            # On a GPU such small networks wait for their kernels to be started, one after another.
            # A graph's gradients are written over when it runs again: one part, one process.
            has_graphs = self.device.type == "cuda" and world == config.accumulation == 1
            self.model = torch.compile(
                self.model, mode="reduce-overhead" if has_graphs else "default"
            )
            self._preparing = 3 if has_graphs else 1
        # Each process draws its own noise.
        torch.manual_seed(config.seed * 1000 + self.accelerator.process_index)
        self.step, self.seconds = 0, 0.0
        if resume and folders:
            self._restore(folders[-1])
        if policy_config.vision.keeps_features and policy_config.cameras:
            # Validation goes on to see pictures, as acting does.
            kept = keep_features(self.policy, arrays, run.parent / FEATURES_FOLDER)
            self.windows.observations |= {n: torch.from_numpy(v) for n, v in kept.items()}
        self._mark = self.clock()
        self.logger: Any = None
        self._interrupted = False

    # -- time ----------------------------------------------------------------------------

    def clock(self) -> float:
        """Seconds: CPU time per thread on a CPU, wall-clock on an accelerator."""
        if self.device.type == "cpu":
            return time.process_time() / torch.get_num_threads()
        return time.perf_counter()

    def _count(self) -> None:
        """Add the training time since the last count."""
        now = self.clock()
        self.seconds += now - self._mark
        self._mark = now

    @contextmanager
    def _uncounted(self) -> Iterator[None]:
        """What is done inside is not training time."""
        self._count()
        yield
        self._mark = self.clock()

    def _progress(self) -> float:
        """Share of the run that is done, the same in every process."""
        if self.config.steps is not None:
            return self.step / self.config.steps
        assert self.config.budget_seconds is not None
        self._count()
        share = self.seconds / self.config.budget_seconds
        if self.accelerator.num_processes > 1:
            share = broadcast(torch.tensor(share, device=self.device)).item()
        return share

    # -- the loop ------------------------------------------------------------------------

    def train(self) -> Policy:
        """Run until the steps or the budget are used up."""
        main = self.accelerator.is_main_process
        if main:
            replace_file(self.run / TRAINING_FILE, to_json(self.config).encode())
            save_policy(self.ema, self.run)
            self._open_logs()
        saved_at = time.perf_counter()
        progress = self._progress()
        validated = math.floor(progress * _VALIDATIONS)
        began, began_step = self.seconds, self.step
        with self._interruptible(), tqdm(
            total=100, desc=self.policy.config.policy, unit="%", disable=not main,
            mininterval=1.0, bar_format=_BAR,
        ) as bar:  # fmt: skip
            while progress < 1:
                loss, norm, rate = self.one_step(progress)
                progress = self._progress()
                if self.step % _LOG_STEPS == 0:
                    with self._uncounted():
                        loss = self._mean(loss)
                        speed = (
                            (self.step - began_step) * self.order.batch_size
                            / max(self.seconds - began, 1e-9)
                        )  # fmt: skip
                        bar.set_postfix_str(
                            f"step {self.step}, loss {loss:.4f}, {speed:.0f} samples/s",
                            refresh=False,
                        )
                        self._log(
                            loss=loss, gradient_norm=norm, learning_rate=rate,
                            samples_per_second=speed,
                        )  # fmt: skip
                bar.update(100 * min(progress, 1) - bar.n)
                if math.floor(progress * _VALIDATIONS) > validated:
                    validated = math.floor(progress * _VALIDATIONS)
                    with self._uncounted():
                        self._validate()
                due = time.perf_counter() - saved_at >= self.config.checkpoint_seconds
                interrupted = self._interrupted
                if self._agreed(due or interrupted):
                    with self._uncounted():
                        self._checkpoint()
                    saved_at = time.perf_counter()
                if interrupted:
                    raise KeyboardInterrupt(f"at step {self.step}")
        self._count()
        self._checkpoint()
        if main:
            self._finish()
            shutil.rmtree(self.run / ARRAYS_FOLDER)
        self.accelerator.end_training()
        return self.ema

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Ctrl-C lets the step end, for the run to be saved; a second one ends it at once."""
        usual = signal.default_int_handler
        is_usual = signal.getsignal(signal.SIGINT) is usual
        # Several processes are told twice, by the terminal and by what started them.
        alone = self.accelerator.num_processes == 1
        if not (alone and is_usual and threading.current_thread() is threading.main_thread()):
            yield
            return

        def interrupt(*_: Any) -> None:
            self._interrupted = True
            signal.signal(signal.SIGINT, usual)
            tqdm.write("saving after this step; Ctrl-C again ends at once", file=sys.stderr)

        signal.signal(signal.SIGINT, interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, usual)

    def one_step(self, progress: float) -> tuple[float, float, float]:
        """One optimiser step, ``progress`` of the run done; loss, gradient norm, learning rate."""
        config = self.config
        rate = (
            config.learning_rate
            * min(1.0, (self.step + 1) / config.warmup_steps)
            * 0.5
            * (1 + math.cos(math.pi * min(progress, 1.0)))
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        indices = self.order.indices(self.step)
        share = len(indices) // self.accelerator.num_processes
        mine = indices[self.accelerator.process_index * share :][:share]
        value = 0.0
        with self._uncounted() if self._preparing else nothing():
            self.optimizer.zero_grad()
            for part in range(config.accumulation):
                own = mine[part :: config.accumulation]
                batch = self.windows.gather(own).to(self.device)
                is_last = part + 1 == config.accumulation
                # Processes add up their gradients once, with the last part's.
                with nothing() if is_last else self.accelerator.no_sync(self.model):
                    loss = self.model(batch) * (len(own) / share)
                    self.accelerator.backward(loss)
                value += loss.item()
        self._preparing = max(0, self._preparing - 1)
        norm = self.accelerator.clip_grad_norm_(self.policy.parameters(), config.gradient_clip)
        size = float(norm)
        if not (math.isfinite(value) and math.isfinite(size)):
            kept = checkpoint_folders(self.run)
            raise UserError(
                f"{self.run}: the loss is {value} and its gradient norm {size} at step "
                f"{self.step + 1}; "
                + (f"the last good checkpoint is {kept[-1]}; " if kept else "")
                + f"try a lower learning rate than {config.learning_rate:g}"
            )
        self.optimizer.step()
        self.step += 1
        decay = 1 - (1 + self.step) ** -config.ema_power
        torch._foreach_lerp_(
            list(self.ema.parameters()),
            [p.detach() for p in self.policy.parameters()],
            1 - decay,
        )
        return value, size, rate

    def _mean(self, value: float) -> float:
        """The mean over all processes."""
        if self.accelerator.num_processes == 1:
            return value
        return self.accelerator.reduce(torch.tensor(value, device=self.device), "mean").item()

    def _agreed(self, wish: bool) -> bool:
        """Process 0's wish, so that all processes stop to save at the same step."""
        if self.accelerator.num_processes == 1:
            return wish
        return bool(broadcast(torch.tensor(int(wish), device=self.device)).item())

    # -- validation ----------------------------------------------------------------------

    def _validate(self) -> None:
        """Mean squared error of predicted chunks on held-out episodes (normalised actions)."""
        if self.validation is None or not self.accelerator.is_main_process:
            return
        count = min(self.config.validation_windows, len(self.validation))
        chosen = np.linspace(0, len(self.validation) - 1, count).round()
        batch = self.validation.gather(torch.from_numpy(chosen.astype(np.int64)))
        generators = [torch.Generator().manual_seed(i) for i in range(count)]
        with torch.random.fork_rng(devices=[]):
            prediction = self.ema.predict_chunk(batch.observations, generators)
        normalise = copy.deepcopy(self.ema.action_normaliser).cpu().normalise
        plan = torch.from_numpy(prediction.plan)
        errors = (normalise(plan) - normalise(batch.actions)).square().mean(-1)
        self._log(validation_action_mse=errors[batch.valid].mean().item())

    # -- logs ----------------------------------------------------------------------------

    def _open_logs(self) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.logger = SummaryWriter(self.run / "tensorboard", purge_step=self.step + 1)
        path = self.run / METRICS_FILE
        if path.exists():  # what came after the checkpoint will be written again
            lines = path.read_text().splitlines()
            kept = [line for line in lines if parse_record(line)["step"] <= self.step]
            replace_file(path, "".join(f"{line}\n" for line in kept).encode())

    def _log(self, **values: float) -> None:
        if not self.accelerator.is_main_process:
            return
        record = {"step": self.step, "seconds": round(self.seconds, 3), **values}
        try:
            with (self.run / METRICS_FILE).open("a") as file:
                file.write(json.dumps(record) + "\n")
            for name, value in values.items():
                self.logger.add_scalar(name, value, self.step)
        except OSError as error:
            raise UserError(
                f"{self.run / METRICS_FILE}: cannot be written ({error.strerror or error}); free "
                "some space and continue with --resume"
            ) from error

    def _finish(self) -> None:
        self.logger.close()
        summary = {
            "policy": self.policy.config.policy,
            "steps": self.step,
            "seconds": round(self.seconds, 3),
            "samples": self.step * self.order.batch_size,
            "parameters": sum(p.numel() for p in self.policy.parameters()),
            "data": self.data,
            "training": {k: v for k, v in dataclasses.asdict(self.config).items() if k != "data"},
            **provenance(),
        }
        replace_file(self.run / SUMMARY_FILE, (json.dumps(summary, indent=2) + "\n").encode())

    # -- checkpoints ---------------------------------------------------------------------

    def _checkpoint(self) -> None:
        if self.shards is not None:
            self.shards.consolidate_state_dict(to=0)
        random = torch.get_rng_state()[None].to(self.device)
        tensors = {"random": self.accelerator.gather(random)}
        if self.device.type == "cuda":
            own = torch.cuda.get_rng_state(self.device)[None].to(self.device)
            tensors["random_cuda"] = self.accelerator.gather(own)
        if self.accelerator.is_main_process:
            tensors |= {f"raw.{n}": t for n, t in self.policy.state_dict().items()}
            tensors |= {f"ema.{n}": t for n, t in self.ema.state_dict().items()}
            tensors |= optimizer_tensors(self.optimizer)
            progress = Progress(self.step, self.seconds, self._data_digest())
            write_checkpoint(self.run, progress, tensors)
            save_policy(self.ema, self.run)

    def _data_digest(self) -> str:
        return hashlib.sha256(json.dumps(self.data["sha256"], sort_keys=True).encode()).hexdigest()

    def _restore(self, folder: Path) -> None:
        progress, tensors = read_checkpoint(folder)
        digest = self._data_digest()
        if progress.data_sha256 != digest:
            raise UserError(
                f"--resume: {self.run} was trained on other data (SHA-256 of what it reads "
                f"{progress.data_sha256[:12]}…, now {digest[:12]}…)"
            )
        for prefix, module in (("raw.", self.policy), ("ema.", self.ema)):
            part = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
            check_state(module, part, str(folder))
            module.load_state_dict(part)
        load_optimizer_tensors(self.optimizer, tensors)
        index, processes = self.accelerator.process_index, self.accelerator.num_processes
        torch.set_rng_state(_row(tensors["random"], index, processes, folder))
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(
                _row(tensors["random_cuda"], index, processes, folder), self.device
            )
        self.step, self.seconds = progress.step, progress.seconds


def _row(states: Tensor, index: int, processes: int, folder: Path) -> Tensor:
    if processes != len(states):
        raise UserError(
            f"--resume: {folder} was written by {len(states)} processes; use as many again"
        )
    return states[index].clone()  # set_rng_state cannot read a part of a larger tensor
