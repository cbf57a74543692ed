import csv
import errno
import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from safetensors import SafetensorError

from vitrail.checkpoint.run_dir import STATE_VERSION, RunDirectory, TrainerState, saving
from vitrail.config.data import DataConfig
from vitrail.config.train import OptimConfig, TrainConfig
from vitrail.errors import UserError
from vitrail.utils.environment import git_commit, hardware, versions
from vitrail.utils.plain import from_dict, to_dict


@pytest.fixture
def run(tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.begin(TrainConfig(output=str(run.path)))
    yield run
    run.lock.release()


def files_in(run):
    """All files but the marker and the lock."""
    found = {p.relative_to(run.path).as_posix() for p in run.path.rglob("*") if p.is_file()}
    return found - {".vitrail-run", ".vitrail-lock"}


def put_state(run, step):
    (run.new_state() / "weights").write_text(str(step))
    run.commit_state(TrainerState(step=step))


def newest(run):
    state = run.state()
    return None if state is None else (run.trainer_state().step, (state / "weights").read_text())


# ---- configuration ----------------------------------------------------------------------------------------------


def test_config_returns_from_the_run_as_it_was(tmp_path):
    config = TrainConfig(
        image_size=(64, 96),
        mean=(0.5, 0.5, 0.5),
        model_options={"depths": [1, 2], "drop_path_rate": 0.1},
        data=DataConfig("folder", root="photos"),
        optim=OptimConfig(betas=(0.9, 0.95), decay_epochs=[1, 2]),
        output=str(tmp_path / "run"),
    )
    run = RunDirectory(config.output)
    run.begin(config)
    assert run.config() == config


def test_unknown_entry_names_the_nearest():
    with pytest.raises(UserError, match=r"Unknown option 'optim.layer_dekay': did you mean layer_decay"):
        from_dict(TrainConfig, {"optim": {"layer_dekay": 0.5}})


def test_plain_values_only():
    def kinds(value):
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        return {type(value)}.union(*map(kinds, inner))

    assert kinds(to_dict(TrainConfig())) <= {dict, list, str, int, float, bool, type(None)}


# ---- beginning --------------------------------------------------------------------------------------------------


def test_continuation_may_differ_where_it_changes_nothing(run):
    put_state(run, 1)
    same = replace(TrainConfig(), resume=True, device="cpu", max_steps=3, output="elsewhere")
    same.data = DataConfig(root=None, workers=2)
    run.begin(same)
    with pytest.raises(UserError, match=r"started with --optim.schedule cosine, not step.*--init"):
        run.begin(replace(same, optim=OptimConfig(schedule="step")))
    with pytest.raises(UserError, match=r"started with --data.val_fraction 0.2, not 0.5"):
        run.begin(replace(same, data=DataConfig(val_fraction=0.5)))


def test_damaged_config_is_said(run):
    (run.path / "config.yaml").write_text("model: [")
    with pytest.raises(UserError, match=r"config.yaml is damaged"):
        run.begin(TrainConfig(resume=True))


def test_output_that_is_a_file(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match="is a file; name a folder"):
        RunDirectory(tmp_path / "taken").begin(TrainConfig())


def test_overwriting_deletes_the_run_and_nothing_else(run):
    put_state(run, 1)
    (run.path / "photo.png").write_text("mine")
    (run.path / "events").mkdir()
    run.begin(TrainConfig(overwrite=True))
    assert files_in(run) == {"config.yaml", "photo.png"}
    assert (run.path / "events").is_dir()  # empty, and not made by a run


# ---- states -----------------------------------------------------------------------------------------------------


class Killed(BaseException):
    pass


@pytest.mark.parametrize("call", range(1, 11))
def test_a_whole_state_remains_wherever_saving_is_cut_off(run, monkeypatch, call):
    """Each system call of `commit_state` in turn is the last one of the process."""
    put_state(run, 1)
    for name in ("notes.txt", "loop.json.bak"):  # a user's own files in a state's folder stay
        (run.path / "last" / name).write_text("mine")
    (run.new_state() / "weights").write_text("2")
    count = 0

    def dying(original):
        def act(*args, **kwargs):
            nonlocal count
            count += 1
            if count >= call:
                raise Killed
            return original(*args, **kwargs)

        return act

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", dying(os.fsync))
        patch.setattr("os.rename", dying(os.rename))
        patch.setattr("pathlib.Path.unlink", dying(Path.unlink))
        patch.setattr("pathlib.Path.rmdir", dying(Path.rmdir))
        try:
            run.commit_state(TrainerState(step=2))
        except Killed:
            died = True
        else:
            died = False
    assert newest(run) in {(1, "1"), (2, "2")}
    assert died == (call <= 9)  # 2 files to disk, 2 renames, 2 files deleted and 2 moved, the folder
    put_state(run, 3)  # and the next session saves as ever
    assert newest(run) == (3, "3")
    ours = {"last/weights", "last/loop.json"}
    assert files_in(run) == {"config.yaml", *ours, "last/notes.txt", "last/loop.json.bak"}
    assert not (run.path / ".last.old").exists()
    run.clear()
    assert files_in(run) == {"last/notes.txt", "last/loop.json.bak"}


def test_no_state_yet(run):
    assert newest(run) is None
    assert run.trainer_state() == TrainerState()


def test_trainer_state_survives_exactly(run):
    state = TrainerState(3, 4, 100, 1 / 3, 17.0, 99, 2, 12.5, {"epoch": 1, "top1": 200 / 3}, [{"epoch": 0, "lr": 0.1}])
    run.new_state()
    run.commit_state(state)
    assert run.trainer_state() == state
    assert asdict(run.trainer_state()) == asdict(state)


@pytest.mark.parametrize(("version", "said"), [(None, "1"), (1, "1"), (99, "99"), ("x" * 500, "'x+\\.\\.\\.")])
def test_a_state_of_another_format_is_refused_before_anything_changes(run, version, said):
    put_state(run, 1)
    file = run.path / "last" / "loop.json"
    values = json.loads(file.read_text())
    assert values.pop("version") == STATE_VERSION
    file.write_text(json.dumps(values if version is None else {**values, "version": version}))
    (run.path / "config.yaml").write_text("an_option_of_then: 1")  # another version's recipe may be unreadable, too
    before = {name: (run.path / name).read_bytes() for name in files_in(run)}
    with pytest.raises(
        UserError, match=rf"another version of vitrail \(format {said}, this .*--overwrite, or .*--init"
    ):
        run.begin(TrainConfig(output=str(run.path), resume=True))
    assert {name: (run.path / name).read_bytes() for name in files_in(run)} == before
    run.begin(TrainConfig(output=str(run.path), overwrite=True))
    assert files_in(run) == {"config.yaml"}


def test_metrics_table(run):
    run.write_metrics([{"epoch": 0, "lr": 0.1}, {"epoch": 1, "lr": 0.05, "val_top1": 50.0}])
    with open(run.path / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [{"epoch": "0", "lr": "0.1", "val_top1": ""}, {"epoch": "1", "lr": "0.05", "val_top1": "50.0"}]


# ---- the disk ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 640 vs 534"),
        RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed"),
    ],
)
def test_a_full_disk_is_one_sentence(error, run):
    with pytest.raises(UserError, match=r"No space left on the disk of .*: no state was saved yet"), saving(run.path):
        raise error
    put_state(run, 1)
    with pytest.raises(UserError, match=r"state saved before is intact, .*--resume"), saving(run.path):
        raise error


def test_a_folder_that_cannot_be_written_to_is_one_sentence():
    with pytest.raises(UserError, match="Cannot write to runs/a: denied"), saving("runs/a"):
        raise PermissionError(errno.EACCES, "denied")


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="shapes"), saving("runs/a"):
        raise RuntimeError("shapes")


def test_environment_is_described():
    assert {"vitrail", "python", "torch", "timm"} <= set(versions())
    assert hardware()["threads"] >= 1
    commit = git_commit()
    assert commit is None or len(commit.rstrip("+")) == 40


# ---- what is not ours -------------------------------------------------------------------------------------------


def begin(run, **changes):
    try:
        RunDirectory(run.path).check(replace(TrainConfig(output=str(run.path)), **changes))
        run.begin(replace(TrainConfig(output=str(run.path)), **changes))
    finally:
        run.lock.release()


@pytest.mark.parametrize(
    "name",
    [
        "config.yaml",
        "examples/notes.txt",
        "last/thesis.tex",
        "panoptic/truth.png",
        "events/a",
        "summary.json",
        "curves.png",
    ],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_the_users_is_refused_and_stays(tmp_path, name, overwrite):
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("mine")
    with pytest.raises(UserError, match=rf"holds {name.split('/')[0]}, which no run of vitrail wrote") as said:
        begin(RunDirectory(tmp_path), overwrite=overwrite)
    assert "--overwrite" not in str(said.value)
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()] == [name]
    assert file.read_text() == "mine"


def test_files_beside_a_run_stay_when_it_is_overwritten(run):
    put_state(run, 1)
    mine = {"examples/notes.txt", "last/thesis.tex", "panoptic/truth.png", "own.txt"}
    for name in mine:
        (run.path / name).parent.mkdir(exist_ok=True)
        (run.path / name).write_text("mine")
    with run.files.adding() as (folder, _):
        (folder / "examples").mkdir()
        (folder / "examples" / "1.jpg").write_text("ours")
    run.lock.release()
    begin(run, overwrite=True)
    assert files_in(run) == {"config.yaml", *mine}


def test_a_file_of_the_users_with_a_name_of_ours_is_refused(run):
    put_state(run, 1)
    (run.path / "summary.json").write_text("mine")
    run.lock.release()
    for changes in ({"overwrite": True}, {"resume": True}):
        with pytest.raises(UserError, match=r"summary\.json was not written by this run and would be replaced"):
            begin(run, **changes)
    assert (run.path / "summary.json").read_text() == "mine"


def test_a_run_that_never_came_to_a_state_is_begun_anew(run):
    run.write_metrics([{"epoch": 0}])
    (run.path / "mine.txt").write_text("mine")
    run.lock.release()
    begin(run, lr=0.5)
    assert files_in(run) == {"config.yaml", "mine.txt"}
    assert run.config().lr == 0.5
    begin(run, lr=0.25, resume=True)  # a script that always resumes
    assert run.config().lr == 0.25
    put_state(run, 1)
    with pytest.raises(UserError, match="already holds a run"):
        begin(run)


def test_a_run_of_an_earlier_version_goes_on_and_is_never_deleted(run):
    put_state(run, 3)
    run.lock.release()
    (run.path / ".vitrail-run").unlink()
    before = files_in(run)
    for changes in ({}, {"overwrite": True}):
        with pytest.raises(UserError, match="holds a run without the list of its files"):
            begin(RunDirectory(run.path), **changes)
    assert files_in(run) == before
    old = RunDirectory(run.path)
    begin(old, resume=True)
    assert old.trainer_state().step == 3
    put_state(old, 4)
    begin(old, overwrite=True)  # from now on it is ours
    assert files_in(old) == {"config.yaml"}


def test_outputs_that_are_no_folder_names(tmp_path):
    for output, sentence in (("", "is empty"), ("  ", "is empty"), (str(tmp_path / ("x" * 300)), "too long")):
        with pytest.raises(UserError, match=sentence):
            RunDirectory(output).check(TrainConfig(output=output))


def test_a_second_start_in_the_same_folder_is_refused(run):
    other = RunDirectory(run.path)
    for changes in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(UserError, match=rf"worked on by process {os.getpid()} on "):
            other.check(replace(TrainConfig(output=str(run.path)), **changes))
    with run:
        pass  # its end gives the lock back
    other.check(TrainConfig(output=str(run.path)))


# ---- links ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"resume": True}, {"overwrite": True}, {}])
@pytest.mark.parametrize("name", ["last", ".last.new", ".last.old", "examples", "events", "panoptic", ".vitrail-new"])
def test_a_folder_of_a_run_that_is_a_link_is_refused_before_anything_changes(tmp_path, name, options):
    photos, run = tmp_path / "photos", RunDirectory(tmp_path / "run")
    with run:
        run.begin(TrainConfig(output=str(run.path)))
        put_state(run, 1)
        run.files.adopt([f"{name}/thesis.tex", "last/thesis.tex", "last/loop.json"])
    photos.mkdir()
    for file in ("thesis.tex", "photo.png"):
        (photos / file).write_text(f"mine, {file}")
    if name == "last":  # a whole state, so that the run goes on from it
        for file in (run.path / "last").iterdir():
            file.rename(photos / file.name)
        (run.path / "last").rmdir()
    (run.path / name).symlink_to(photos)
    before = {file.name: file.read_bytes() for file in photos.iterdir()}
    again = RunDirectory(run.path)
    with pytest.raises(UserError, match=rf"{name} is a link"):
        again.begin(TrainConfig(output=str(run.path), **options))
    assert {file.name: file.read_bytes() for file in photos.iterdir()} == before
    assert not (run.path / ".vitrail-lock").exists()


@pytest.mark.parametrize("options", [{"resume": True}, {"overwrite": True}])
@pytest.mark.parametrize("name", ["best.safetensors", "metrics.csv", "summary.json", "curves.png"])
def test_a_file_of_a_run_that_is_a_link_is_refused_before_the_old_run_is_deleted(run, tmp_path, name, options):
    put_state(run, 1)
    run.files.adopt([name])
    run.lock.release()
    (tmp_path / "mine").write_text("mine")
    (run.path / name).symlink_to(tmp_path / "mine")
    before = files_in(run)
    with pytest.raises(UserError, match=rf"{name} is a link"):
        RunDirectory(run.path).begin(TrainConfig(output=str(run.path), **options))
    assert files_in(run) == before
    assert (tmp_path / "mine").read_text() == "mine"


@pytest.mark.parametrize("name", ["config.yaml", "metrics.csv", "summary.json", ".vitrail-run"])
def test_a_run_never_writes_through_a_link_that_lies_beside_its_file(run, tmp_path, name):
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    (run.path / f".{name}.new").symlink_to(mine)
    run.write("config.yaml", "x")
    run.write_metrics([{"epoch": 0}])
    run.write_summary({"a": 1})
    assert mine.read_text() == "mine"
    assert not (run.path / name).is_symlink()


def test_the_folder_of_a_run_may_be_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    with RunDirectory(tmp_path / "run") as run:
        run.begin(TrainConfig(output=str(run.path)))
        put_state(run, 1)
        put_state(run, 2)
        assert newest(run) == (2, "2")
