"""Recipes: what they say of themselves and of every value, and that the command each names starts."""

import re
import shlex

import pytest
import torch

from recipe_helpers import CONFIGS, RECIPES, Amount, Recipe, places_for, read_recipe, row, run_recipe
from vitrail.cli import evaluate, main
from vitrail.cli.parsing import read
from vitrail.data.loader import check_share
from vitrail.engine import optim
from vitrail.engine.optim import build_optimizer, build_schedule, peak_lr, run_steps
from vitrail.errors import UserError
from vitrail.flops.reported import PAPERS, read_rows
from vitrail.tasks import TASKS, build_task

MARKS = ("printed", "code", "default", "inferred")
#: families whose authors published code
WITH_CODE = ("pslt", "lvt")
#: lines that name the row of the paper and where data are, and open a group
UNMARKED = re.compile(r"(task|model|head|data): .+|\w+:")
#: numbers in heads that are Swin-T's, of a text that contradicts its table, of a damaged row, or millions of parameters
NOT_OURS = {"43.7", "39.8", "44.5", "49.2", "52.5", "43.1", "70.5", "8.7", "9.0"}
SMALL_RECIPES = [path for path in RECIPES if path.parent.name == "mini" or path.stem in ("digits", "cifar10_small")]
PAPER_RECIPES = [path for path in RECIPES if path.parent.name in PAPERS]

every_recipe = pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(CONFIGS)))
paper_recipes = pytest.mark.parametrize("path", PAPER_RECIPES, ids=lambda path: str(path.relative_to(CONFIGS)))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tmp_path_factory.mktemp("recipes")


def test_all_six_papers_have_a_recipe():
    assert {path.parent.name for path in CONFIGS.glob("*/imagenet.yaml")} == set(PAPERS)


# ---- what a recipe says -----------------------------------------------------------------------------------------


@every_recipe
def test_a_recipe_opens_with_result_hardware_and_command(path):
    recipe = read_recipe(path)
    for word in ("Expected:", "Hardware:", "Command:"):
        assert recipe.head.count(f"# {word} ") == 1
    assert recipe.argv[recipe.argv.index("--config") + 1] == f"configs/{recipe.name}"


@paper_recipes
def test_every_value_says_where_it_comes_from(path):
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    assert len(lines) > 20
    for line in lines:
        value, _, comment = line.partition("  # ")
        if not UNMARKED.fullmatch(value.strip()):
            assert re.match(rf"({'|'.join(MARKS)})\b", comment), line
            assert not comment.startswith("code") or path.parent.name in WITH_CODE, line
            assert re.fullmatch(r"\w+: [^{}]+", value.strip()), f"one value a line, so that one mark is for one: {line}"
        # a default or a reading names whose or why, as far as it is not all there is to say
        assert comment != "default", line


def test_a_mark_that_is_none_would_be_found():
    assert not UNMARKED.fullmatch("epochs: 3")
    assert UNMARKED.fullmatch("optim:")
    assert UNMARKED.fullmatch("data: {name: coco, workers: 8}")


@paper_recipes
def test_the_numbers_of_a_head_are_those_of_the_paper(path):
    recipe = read_recipe(path)
    family, task, head = path.parent.name, recipe.values["task"], recipe.values.get("head")
    if task == "classification":
        name = recipe.values["data"]["name"]
        tasks = {"cifar10": {"cifar10"}, "cifar100": {"cifar100"}}.get(name, {"classification"})
        rows = [r for r in read_rows(family) if r["task"] in tasks]
    else:
        rows = [r for r in read_rows(family) if (r["task"], r["head"]) == (task, head)]
    known = {value for r in rows for value in re.findall(r"=(\d+\.\d+)", r["metrics"])}
    said = re.sub(r"Tables? [\d.]+( and [\d.]+)?", "", recipe.head[: recipe.head.index("# Hardware:")])
    numbers = set(re.findall(r"\d+\.\d+", said)) - NOT_OURS
    assert numbers
    assert numbers <= known


def test_every_downstream_row_has_a_recipe():
    with_heads = set(TASKS) - {"classification"}
    for family in PAPERS:
        rows = [r for r in read_rows(family) if r["head"] and r["model"]]
        wanted = {(r["task"], r["head"]) for r in rows if r["task"] in with_heads}
        recipes = [read_recipe(path) for path in (CONFIGS / family).glob("*.yaml")]
        found = {(r.values["task"], r.values.get("head")) for r in recipes}
        assert wanted <= found, family


# ---- that its command starts ------------------------------------------------------------------------------------


@every_recipe
def test_a_command_reaches_its_first_step(path, base, monkeypatch):
    """All before the first step, as the trainer does it, for the command's own words and number of processes."""
    recipe = read_recipe(path)
    config = recipe.config(places_for(base, recipe, Amount(images=16, classes=1000, identities=751)))
    check_share(config.batch_size, recipe.processes)
    task = build_task(config)
    batches = task.train_batches(recipe.processes - 1, recipe.processes)
    assert len(batches) > 0
    with torch.device("meta"):
        model = task.build_model()
    assert sum(p.numel() for p in model.parameters()) > 1e6
    monkeypatch.setattr(optim, "FUSED", ())  # PyTorch's fused kernels know no meta tensors
    optimizer = build_optimizer(model, config, lambda name: task.is_head(name, model))
    check_schedule(config, optimizer)


def check_schedule(config, optimizer) -> None:
    """Over a long run: from the warm-up's first rate to the peak, and to what the schedule ends with."""
    per_epoch = 1000
    schedule = build_schedule(optimizer, config, per_epoch)
    total = run_steps(config, per_epoch)

    def rate(step: int) -> float:
        schedule.step_update(step)
        return max(group["lr"] for group in optimizer.param_groups)

    o = config.optim
    warmup = o.warmup_iterations if o.warmup_epochs is None else round(o.warmup_epochs * per_epoch)
    peak = peak_lr(config)
    if warmup:
        assert rate(0) == pytest.approx(o.warmup_lr)
    assert max(rate(warmup), rate(warmup + 1)) == pytest.approx(peak, rel=0.05)
    end = o.min_lr if o.schedule in ("cosine", "poly") else peak * o.decay_rate ** len(o.decay_epochs)
    assert rate(total) == pytest.approx(end, rel=1e-3, abs=1e-9)


@paper_recipes
def test_iterations_are_those_of_the_paper(path):
    recipe = read_recipe(path)
    values, o = recipe.values, recipe.values["optim"]
    if values["task"] == "semantic_segmentation":
        assert values["epochs"] is None
        assert values["iterations"] in (80000, 160000)
    if o.get("warmup_iterations"):
        assert o["warmup_epochs"] is None
        assert o["warmup_iterations"] == (1500 if values["task"] == "semantic_segmentation" else 500)
    if "ssdlite" not in str(path) and o.get("warmup_iterations") == 500:
        assert o["warmup_lr"] == pytest.approx(values["lr"] * 1e-3)
    if o.get("warmup_iterations") == 1500:
        assert o["warmup_lr"] == pytest.approx(values["lr"] * 1e-6)


def test_a_batch_that_processes_cannot_share_is_refused():
    with pytest.raises(UserError, match="--batch_size 4 cannot be shared by 8 processes: give a multiple of 8"):
        check_share(4, 8)
    check_share(4, 2)


def variants(recipe: Recipe) -> list[list[str]]:
    """What the head says to add to the command for other rows or readings, each as words."""
    text = re.sub(r"\n#   ", " ", recipe.head[recipe.head.index("# Command:") :])
    lines = [line for line in text.splitlines()[1:] if "vitrail evaluate" not in line]
    option = r"--[\w.]+ (?:'[^']*'|\[[^]]*\]|[^\s;:,]*[^\s;:,.])"
    return [shlex.split(found) for line in lines for found in re.findall(rf"{option}(?: {option})*", line)]


@every_recipe
def test_what_a_head_says_to_add_is_taken(path, base):
    recipe = read_recipe(path)
    places = places_for(base, recipe, Amount(images=16, classes=1000, identities=751))
    for words in variants(recipe):
        with torch.device("meta"):
            build_task(recipe.config(places, *words)).build_model()


def test_the_other_readings_are_found():
    found = variants(read_recipe(CONFIGS / "mat" / "detection_ssdlite.yaml"))
    assert len(found) == 2
    assert found[1][:4] == ["--epochs", "12", "--lr", "0.0001"]
    assert found[1][-2:] == ["--optim.warmup_lr", "1.0e-7"]
    assert ["--model", "pale_base", "--model_options", '{"drop_path_rate": 0.5}', "--optim.weight_decay", "0.1"] in (
        variants(read_recipe(CONFIGS / "pale" / "imagenet.yaml"))
    )


@every_recipe
def test_the_measurements_a_head_names_are_commands(path):
    for line in read_recipe(path).head.splitlines():
        if "vitrail evaluate" in line:
            read(evaluate.parser(), shlex.split(line[line.index("vitrail evaluate") :])[2:])


def test_several_scales_are_measured_where_the_paper_did():
    head = read_recipe(CONFIGS / "pslt" / "semantic_segmentation_upernet.yaml").head
    line = next(line for line in head.splitlines() if "At several:" in line)
    options = read(evaluate.parser(), shlex.split(line[line.index("vitrail evaluate") :])[2:]).values
    assert options["inference"].scales == [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]
    assert options["inference"].flip is True


@pytest.mark.parametrize("path", SMALL_RECIPES, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_a_small_recipe_trains(path, base, tmp_path):
    recipe = read_recipe(path)
    words = recipe.filled(places_for(base / "few", recipe, Amount(images=4, classes=8, identities=16)))
    assert main([*words, "--output", str(tmp_path / "run"), "--max_steps", "1", "--device", "cpu"]) == 0
    assert (tmp_path / "run" / "best.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.timeout(2000)
@every_recipe
def test_a_command_trains(path, base):
    """`python tests/recipe_helpers.py` prints the same as a table."""
    found = run_recipe(read_recipe(path), base / "small")
    print(row(found))
    assert found["steps"] == 2
