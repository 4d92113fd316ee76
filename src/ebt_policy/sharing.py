"""Runs on the Hugging Face Hub: a policy with its card, and back."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ebt_policy.errors import UserError
from ebt_policy.evaluation.results import RESULTS_FOLDER
from ebt_policy.policies.alarm import ALARM_FILE
from ebt_policy.policies.files import CONFIG_FILE, WEIGHTS_FILE, load_policy
from ebt_policy.report.card import model_card
from ebt_policy.training.files import METRICS_FILE, SUMMARY_FILE, TRAINING_FILE

_FILES = [
    CONFIG_FILE, WEIGHTS_FILE, ALARM_FILE, TRAINING_FILE, SUMMARY_FILE, METRICS_FILE,
    f"{RESULTS_FOLDER}/*.json",
]  # fmt: skip


def push(run: Path, repository: str, private: bool) -> str:
    """Put a run, without its checkpoints, into a repository of the Hub; made if there is none.

    Args:
        run: folder of a policy.
        repository: ``user/name``.
        private: whether a new repository is for its owner alone.

    Returns:
        The commit's address.

    Raises:
        UserError: the run holds no policy, or the Hub refuses it or cannot be reached.
    """
    from huggingface_hub import HfApi

    card = model_card(run, repository)
    with _hub(repository):
        hub = HfApi()
        hub.create_repo(repository, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            for path in (path for pattern in _FILES for path in run.glob(pattern)):
                copy = Path(folder) / path.relative_to(run)
                copy.parent.mkdir(exist_ok=True)
                shutil.copyfile(path, copy)
            (Path(folder) / "README.md").write_text(card)
            commit = hub.upload_folder(
                repo_id=repository, folder_path=folder, commit_message="A policy and its card"
            )
    return str(commit.commit_url)


def pull(repository: str, out: Path, revision: str | None = None) -> None:
    """Bring a run from the Hub; the folder appears whole or not at all.

    Args:
        repository: ``user/name``.
        out: the new run's folder.
        revision: branch, tag or commit; the newest by default.

    Raises:
        UserError: the folder exists, the Hub has no such run or cannot be reached, or what it has
            is no policy.
    """
    from huggingface_hub import snapshot_download

    if out.exists():
        raise UserError(f"--out {out}: exists already")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as folder:
        with _hub(repository):
            snapshot_download(
                repository, revision=revision, local_dir=folder,
                allow_patterns=[*_FILES, "README.md"],
            )  # fmt: skip
        shutil.rmtree(Path(folder) / ".cache", ignore_errors=True)
        try:
            load_policy(folder)
        except UserError as error:
            raise UserError(str(error).replace(folder, repository)) from error
        Path(folder).rename(out)
        Path(folder).mkdir()  # for the context to remove


@contextmanager
def _hub(repository: str) -> Iterator[None]:
    """Say in one line what is wrong with a repository.

    Raises:
        UserError: it is.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    # What the transport raises is the base of what the Hub answers.
    transport: Any = HfHubHTTPError.__mro__[1]
    try:
        yield
    except (HFValidationError, transport, OSError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), repr(error))
        is_answer = isinstance(error, HfHubHTTPError) or not isinstance(error, transport)
        # What a download makes of no answer: that no copy is kept here either.
        if not is_answer or isinstance(error, LocalEntryNotFoundError):
            reason = f"the Hub, {constants.ENDPOINT}, cannot be reached ({reason})"
        raise UserError(f"{repository}: {reason}") from error
