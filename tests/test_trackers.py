"""Trackers: killed and resumed in the same tracked run, each step once; no fault of theirs ends a training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from tiny_project import hurts_itself, make_project

from tunesmith.errors import SetupError, Stopped, TunesmithError
from tunesmith.recipe import Recipe
from tunesmith.recipe_file import load_recipe
from tunesmith.run import Run
from tunesmith.train import trackers
from tunesmith.train.log import Log
from tunesmith.train.track_wandb import _records, require_key, steps_in
from tunesmith.train.trackers import open_trackers

PLUG_IN = '''
import json
from pathlib import Path

class Book:
    """A tracker whose service is a file."""

    def __init__(self, recipe, run, id):
        self.id = id or f"book-{len(list(run.path.glob('book-*')))}"
        self.file = run.path / self.id
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        self.last_step = max((json.loads(line)["step"] for line in lines if "step" in line), default=0)

    def log(self, step, figures, at):
        with self.file.open("a") as file:
            file.write(json.dumps({"step": step, "at": at, **figures}) + "\\n")

    def close(self, outcome):
        with self.file.open("a") as file:
            file.write(json.dumps(outcome) + "\\n")

class Forgetful(Book):
    """The mutant: it doesn't know what has arrived."""
    def __init__(self, recipe, run, id):
        super().__init__(recipe, run, id)
        self.last_step = 0

def unreachable(recipe, run, id):
    raise ConnectionError("nobody there")

class Failing(Book):
    def log(self, step, figures, at):
        if step == 3:
            raise RuntimeError("quota")
        super().log(step, figures, at)

class Hanging(Book):
    def log(self, step, figures, at):
        import time
        time.sleep(600)
'''


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "mine.py").write_text(PLUG_IN)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("mine", None)


def recipe(*names: str, **train: Any) -> Recipe:
    sections = {"name": "tiny", "model": {"base": "starter"}, "data": {"train": "starter"}}
    return Recipe.model_validate(sections | {"train": {"epochs": 1.0, "trackers": names} | train})


def line(step: int) -> dict[str, Any]:
    return {"step": step, "loss": 1 / step, "validation_loss": None if step % 2 else 2 / step,
            "learning_rate": 0.1, "gradient_norm": 1.0, "tokens": 10 * step, "learned_tokens": step}  # fmt: skip


def log(run: Run, of: Recipe, keep: int, last: int) -> None:
    """Lines keep + 1 … last, as a training that goes on at step `keep` writes them."""
    with Log(run, keep=keep, device=torch.device("cpu"), trackers=open_trackers(of, run)) as to:
        for step in range(keep + 1, last + 1):
            to.metrics(line(step))


def book(run: Run, name: str = "book-0") -> list[Any]:
    return [json.loads(one) for one in (run.path / name).read_text().splitlines()]


def steps(lines: list[Any]) -> list[int]:
    return [one["step"] for one in lines if isinstance(one, Mapping)]


def test_a_tracker_of_ones_own_gets_each_line_once(place: Path) -> None:
    run, of = Run(place), recipe("mine:Book")
    log(run, of, 0, 6)
    log(run, of, 4, 9)  # steps 5 and 6 were logged before the kill
    found = book(run)
    assert steps(found) == list(range(1, 10)) and found[6] == found[-1] == "finished"
    assert {key: found[1][key] for key in ("loss/train", "loss/validation", "learning_rate")} == {
        "loss/train": 0.5, "loss/validation": 1.0, "learning_rate": 0.1}  # fmt: skip
    assert "loss/validation" not in found[0] and found[0]["tokens_per_second"] > 0
    assert found[0]["at"] == json.loads(run.timing_file.read_text().splitlines()[0])["time"]


def test_a_mutant_that_forgets_what_arrived_logs_twice(place: Path) -> None:
    run, of = Run(place), recipe("mine:Forgetful")
    log(run, of, 0, 6)
    log(run, of, 4, 9)
    assert steps(book(run)) != list(range(1, 10))


def test_a_tracker_that_comes_late_gets_all_lines(place: Path) -> None:
    run = Run(place)
    log(run, recipe(), 0, 6)
    log(run, recipe("mine:Book"), 6, 8)
    assert steps(book(run)) == list(range(1, 9))


def test_another_recipe_from_the_start_is_another_tracked_run(place: Path) -> None:
    run = Run(place)
    log(run, recipe("mine:Book"), 0, 3)
    log(run, recipe("mine:Book"), 0, 3)  # killed before its first checkpoint: the same lines again
    assert steps(book(run)) == [1, 2, 3] and not (run.path / "book-1").exists()
    log(run, recipe("mine:Book", learning_rate=1e-3), 0, 2)
    assert steps(book(run, "book-1")) == [1, 2]


@pytest.mark.parametrize(
    ("error", "outcome"), [(Stopped("by a signal"), "stopped"), (ValueError("x"), "failed")]
)
def test_the_outcome_is_told(place: Path, error: Exception, outcome: str) -> None:
    run, of = Run(place), recipe("mine:Book")
    with (
        pytest.raises(type(error)),
        Log(run, keep=0, device=torch.device("cpu"), trackers=open_trackers(of, run)),
    ):
        raise error
    assert book(run) == [outcome]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mine:unreachable", "mine:unreachable is left out from here on: ConnectionError: nobody there"),
        ("mine:Failing", "mine:Failing is left out from here on: RuntimeError: quota"),
        ("mine:Hanging", "mine:Hanging has not answered within"),
    ],
)
def test_no_fault_of_a_tracker_ends_a_training(
    place: Path, name: str, words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(trackers._AT_THE_END, "finished", 3.0 if name == "mine:Hanging" else 60.0)
    begin = time.monotonic()
    log(Run(place), recipe(name, "mine:Book"), 0, 5)
    assert time.monotonic() - begin < 50
    said = capsys.readouterr().err
    assert words in said and said.count("warning: ") == 1
    assert len((place / "metrics.jsonl").read_text().splitlines()) == 5
    assert (
        steps(book(Run(place))) == [1, 2, 3, 4, 5] or name != "mine:unreachable"
    )  # the other one is complete


def test_what_is_missing_is_told_before_training(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TunesmithError, match="did you mean 'wandb'"):
        trackers.require(recipe("wandbb"))
    for name in ("wandb", "mlflow"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)  # as if it were not installed
            with pytest.raises(SetupError, match="is not installed") as told:
                trackers.require(recipe(name))
            assert told.value.fix == f'pip install "tunesmith[{name}]"'
    trackers.require(recipe("tensorboard"))


def test_a_missing_key_is_told_before_training(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(place))
    monkeypatch.setenv("NETRC", str(place / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(place))
    script = "from tunesmith.train.track_wandb import require_key; require_key()"

    def code(**environment: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-c", script], env=os.environ | environment, capture_output=True, text=True
        )
        return done.returncode, done.stderr

    failed, said = code()
    assert failed and "there is no key for Weights & Biases" in said and "wandb login" in said
    assert code(WANDB_MODE="offline")[0] == 0
    (place / "netrc").write_text("machine api.wandb.ai login user password " + "0" * 40 + "\n")
    (place / "netrc").chmod(0o600)
    assert code()[0] == 0
    assert code(WANDB_BASE_URL="https://wandb.example.org")[0] != 0
    (place / "netrc").unlink()
    (place / ".env").write_text("WANDB_API_KEY=" + "0" * 40 + "\n")
    assert code()[0] == 0


OFFLINE = {"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
LOGGING = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_trackers import log, recipe
from tunesmith.run import Run
log(Run(Path("run")), recipe("wandb"), {keep}, {last})
"""


def log_apart(place: Path, keep: int, last: int) -> None:
    """`log` in a process of its own: W&B starts a service for each."""
    (place / "run").mkdir(exist_ok=True)
    script = LOGGING.format(tests=str(Path(__file__).parent), keep=keep, last=last)
    done = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | OFFLINE, capture_output=True, text=True, cwd=place
    )
    assert done.returncode == 0 and "warning" not in done.stderr, done.stderr


def wandb_lines(run: Path) -> list[dict[str, Any]]:
    """What all of the run's W&B files hold, in the order in which they were begun."""
    id = json.loads((run / "trackers" / "wandb.json").read_text())["id"]
    found = []
    for path in sorted((run / "wandb").glob("offline-run-*/*.wandb")):
        assert path.stem == f"run-{id}"
        for record in _records(path.read_bytes()):
            if record.WhichOneof("record_type") == "history":
                items = {item.key or ".".join(item.nested_key): item for item in record.history.item}
                found.append({key: json.loads(item.value_json) for key, item in items.items()})
    return found


def test_a_torn_file_of_wandb_tells_what_has_arrived(place: Path) -> None:
    """A SIGKILL leaves W&B's file at any length: what is missing in it is logged again, what is there is not."""
    log_apart(place, 0, 40)
    (file,) = (place / "run" / "wandb").glob("offline-run-*/*.wandb")
    id = file.stem.removeprefix("run-")
    content = file.read_bytes()
    assert steps_in(place / "run" / "wandb", id) == set(range(1, 41))
    file.write_bytes(content[: len(content) // 2])
    arrived = steps_in(place / "run" / "wandb", id)
    assert arrived == set(range(1, len(arrived) + 1)) and 5 < len(arrived) < 35
    log_apart(place, 30, 50)
    assert [one["_step"] for one in wandb_lines(place / "run")] == list(range(1, 51))
    assert steps_in(place / "run" / "wandb", "another") == set()


def test_a_training_that_is_killed_goes_on_in_the_same_tracked_runs(place: Path) -> None:
    """`tunesmith train`, SIGKILLed and given again: W&B's files and MLflow's data base hold metrics.jsonl, once."""
    names = ["wandb", "mlflow"]
    made = make_project(
        place, rows=40, name="tiny", train={"trackers": names, "log_every": 1, "save_every": 5}
    )
    command = [sys.executable, "-m", "tunesmith.cli", "train", str(made)]
    environment = os.environ | OFFLINE | {"MLFLOW_TRACKING_URI": f"sqlite:///{place}/mlflow.db"}
    # a kill while MLflow makes its tables would leave it a data base that it can't open
    tables = "from mlflow import MlflowClient; MlflowClient().search_experiments()"
    subprocess.run(
        [sys.executable, "-c", tables], cwd=place, env=environment, check=True, capture_output=True
    )
    run = place / "runs" / "tiny"
    hurt = environment | hurts_itself(place, "after the save of step 5")
    assert subprocess.run(command, cwd=place, env=hurt, stderr=subprocess.DEVNULL).returncode == -9
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "resumed at step" in done.stderr and "left out" not in done.stderr
    wanted = [json.loads(one) for one in (run / "metrics.jsonl").read_text().splitlines()]
    names_of = {"loss": "loss/train", "validation_loss": "loss/validation", "learning_rate": "learning_rate"}
    lines = wandb_lines(run)
    assert [one["_step"] for one in lines] == [one["step"] for one in wanted]
    for key, tag in names_of.items():
        assert [one.get(tag) for one in lines] == [one[key] for one in wanted]
    found = read_mlflow(run, environment, list(names_of.values()))
    assert found["runs"] == 1 and found["status"] == "FINISHED"
    assert found["params"]["train.learning_rate"] == "0.01" and found["params"]["name"] == "tiny"
    for key, tag in names_of.items():
        assert found[tag] == [[one["step"], one[key]] for one in wanted if one[key] is not None]


def test_a_start_that_is_killed_while_wandb_opens_is_gone_on_with(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files carry an id that the next start has to know."""
    asked: list[str | None] = []

    def killed(recipe: Recipe, run: Run, id: str | None) -> NoReturn:
        asked.append(id)
        raise KeyboardInterrupt  # nothing behind it runs, as after a SIGKILL

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setitem(trackers.TRACKERS, "wandb", killed)
    monkeypatch.setattr("threading.excepthook", lambda told: None)
    recipe, run = load_recipe(make_project(place, rows=40, train={"trackers": ["wandb"]})), Run(place / "run")
    for _ in range(2):
        (one,) = open_trackers(recipe, run)
        one.begin([])
        one._thread.join()
    assert asked[0] and asked == [asked[0]] * 2


READ = """
import json, sys
from mlflow import MlflowClient
client, id = MlflowClient(), sys.argv[1]
run = client.get_run(id)
found = {"status": run.info.status, "params": run.data.params}
found["runs"] = len(client.search_runs([run.info.experiment_id]))
for name in sys.argv[2:]:
    found[name] = [[one.step, one.value] for one in client.get_metric_history(id, name)]
print(json.dumps(found))
"""


def read_mlflow(run: Path, environment: Mapping[str, str], names: list[str]) -> dict[str, Any]:
    """What MLflow's own client reads."""
    id = json.loads((run / "trackers" / "mlflow.json").read_text())["id"]
    command = [sys.executable, "-c", READ, id, *names]
    done = subprocess.run(command, env=dict(environment), capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_key_is_nowhere_in_the_run(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "k" * 40
    monkeypatch.setenv("WANDB_API_KEY", secret)
    require_key()
    log_apart(place, 0, 2)
    files = [path for path in (place / "run").rglob("*") if path.is_file()]
    assert len(files) > 3 and not [path for path in files if secret.encode() in path.read_bytes()]
