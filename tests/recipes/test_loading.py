import re
from pathlib import Path

import pytest

from viewalign.errors import UserError
from viewalign.recipes import loading
from viewalign.recipes.files import RECIPES


@pytest.mark.parametrize("name", RECIPES.names())
def test_every_recipe_is_valid_and_described(name):
    recipe = loading.load(name)
    assert recipe.method
    assert re.fullmatch(r".{20,}\.", RECIPES.headline(name)), "a complete sentence"


def test_the_published_settings():
    resenc, primus = loading.load("cva-resenc-l"), loading.load("cva-primus-m")
    assert (resenc.views.patch_size, resenc.batch, resenc.steps) == ((128, 128, 128), 4, 250 * 250)
    assert (resenc.optim.name, resenc.optim.lr, resenc.optim.momentum, resenc.optim.clip) == ("sgd", 0.01, 0.99, 12.0)
    assert (primus.views.patch_size, primus.batch, primus.steps) == ((160, 160, 160), 4, 150 * 250)
    assert (primus.optim.name, primus.optim.lr, primus.optim.warmup_steps) == ("adamw", 3e-4, 10 * 250)
    for recipe in (resenc, primus):
        terms = recipe.objectives
        weights = (terms.reconstruction_weight, terms.consistency_weight, terms.contrastive_weight)
        assert weights == (5.0, 1.0, 0.1)
        assert (terms.temperature, terms.cells, terms.samples, recipe.teacher.momentum) == (0.5, (7, 7, 7), 2, 0.995)
        assert (recipe.views.overlap, recipe.masking.ratio) == ((0.4, 0.8), 0.75)


ROWS = {
    "ae": (5.0, 0.5, 0.0, "cosine"),
    "mae-cva": (5.0, 1.0, 0.0, "cosine"),
    "mae-ccva": (5.0, 0.2, 0.0, "nt_xent"),
    "mae-con": (5.0, 0.0, 0.1, "cosine"),
    "cva": (5.0, 1.0, 0.1, "cosine"),
    "mae-ccva-con": (5.0, 0.2, 0.1, "nt_xent"),
    "gram": (5.0, 2.0, 0.1, "gram"),
}


@pytest.mark.parametrize("network", ["resenc-l", "primus-m"])
@pytest.mark.parametrize("row", ROWS)
def test_the_rows_of_the_paper_s_table(row, network):
    recipe = loading.load(f"{row}-{network}")
    terms = recipe.objectives
    weights = (terms.reconstruction_weight, terms.consistency_weight, terms.contrastive_weight, terms.consistency)
    assert weights == ROWS[row]
    assert recipe.network.name == network
    assert recipe.network.drop_path == (0.2 if network == "primus-m" else 0.0)
    assert (recipe.masking.ratio, recipe.teacher.momentum) == ((0.0, 0.0) if row == "ae" else (0.75, 0.995))
    assert recipe.steps == (62_500 if network == "resenc-l" else 37_500)


@pytest.mark.parametrize("network", ["resenc-l", "primus-m"])
def test_stage_one(network):
    recipe = loading.load(f"mae-{network}")
    assert (recipe.method, recipe.network.name, recipe.views.patch_size) == ("mae", network, (160, 160, 160))
    assert (recipe.objectives.reconstruction, recipe.objectives.reconstruction_weight) == ("huber", 5.0)
    assert (recipe.steps, recipe.batch, recipe.masking.ratio) == (250_000, 8, 0.75)


def test_settings_of_one_method_alone():
    assert loading.load("genesis-resenc-xs").pretext["p_nonlinear"] == 0.9  # filled in, so that a config tells all
    assert loading.load("genesis-resenc-xs", ["pretext.p_nonlinear=0.5"]).pretext["p_nonlinear"] == 0.5
    assert loading.load("cva-resenc-xs").pretext == {}
    with pytest.raises(UserError, match=r"'pretext\.p_nonlinea'.*'pretext\.p_nonlinear'"):
        loading.load("genesis-resenc-xs", ["pretext.p_nonlinea=0.5"])
    with pytest.raises(UserError, match=r"'pretext\.p_nonlinear'"):
        loading.load("cva-resenc-xs", ["pretext.p_nonlinear=0.5"])
    with pytest.raises(UserError, match=r"pretext\.p_nonlinear = 2"):
        loading.load("genesis-resenc-xs", ["pretext.p_nonlinear=2"])


def test_a_recipe_may_build_on_another(tmp_path):
    (tmp_path / "mine.yaml").write_text("base: cva-resenc-xs\noptim: {lr: 0.5}\n")
    mine, theirs = loading.load(str(tmp_path / "mine.yaml")), loading.load("cva-resenc-xs")
    assert mine.optim.lr == 0.5
    assert mine.optim.betas == theirs.optim.betas
    assert mine.network == theirs.network
    (tmp_path / "lost.yaml").write_text("base: nowhere\n")
    with pytest.raises(UserError, match="'nowhere'"):
        loading.load(str(tmp_path / "lost.yaml"))


def test_a_shorthand_of_a_base_is_kept_below_settings_of_its_group(tmp_path):
    (tmp_path / "a.yaml").write_text("base: cva-primus-xs\ninit: somewhere/run\n")
    changes = "network: {channels: 2}\ninit: {min_share: 0.5}\n"
    (tmp_path / "b.yaml").write_text(f"base: {tmp_path / 'a.yaml'}\n{changes}")
    recipe = loading.load(str(tmp_path / "b.yaml"))
    assert (recipe.network.name, recipe.network.channels) == ("primus-xs", 2)
    assert recipe.init.weights.endswith("somewhere/run")
    assert recipe.init.min_share == 0.5


def test_settings_in_a_file_may_have_dotted_keys(tmp_path):
    """They were refused as unknown, with themselves as the nearest known ones."""
    (tmp_path / "run").mkdir()
    (tmp_path / "a.yaml").write_text("network.channels: 2\nbase: cva-resenc-xs\nnetwork: primus-xs\noptim.lr: 0.5\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\ninit.weights: run\noptim: {clip: 2}\n")
    recipe = loading.load(str(tmp_path / "b.yaml"))
    assert (recipe.network.name, recipe.network.channels) == ("primus-xs", 2)
    assert (recipe.optim.lr, recipe.optim.clip) == (0.5, 2)
    assert recipe.init.weights == str(tmp_path / "run")
    (tmp_path / "b.yaml").write_text("base: a.yaml\noptim.learningrate: 1\n3: 4\n")
    with pytest.raises(UserError, match=r"'optim\.lr'"):
        loading.load(str(tmp_path / "b.yaml"))


def test_overrides_of_every_kind():
    recipe = loading.load(
        "cva-resenc-xs", ["optim.lr=1e-4", "network=primus-xs", "views.patch_size=[24,32,32]", "optim.clip=null"]
    )
    assert (recipe.optim.lr, recipe.network.name, recipe.views.patch_size) == (1e-4, "primus-xs", (24, 32, 32))
    assert recipe.optim.clip is None
    assert loading.load("cva-resenc-xs", ["views.patch_size=48"]).views.patch_size == (48, 48, 48)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("steps=true", "must be a number, not true or false"),
        ("views.patch_size=[32,32,true]", "must be a number, not true or false"),
        ("optim.learningrate=1", "There is no setting 'optim.learningrate' (did you mean 'optim.lr'?)."),
        ("patch_size=64", "(did you mean 'views.patch_size'?)"),
        ("optim.lrr=1", "(did you mean 'optim.lr'?)"),
        ("lr=1", "(did you mean 'optim.lr'?)"),
        ("optim.lr=-1", "optim.lr = -1: must be greater than 0"),
        ("views.patch_size=[1,2]", "one number or three"),
        ("views.overlap=[0.9,0.2]", "views.overlap = "),
        ("views.overlap=[0,0.2]", "views.overlap.0 = 0"),
        ("views.scale=[0.9,0.2]", "views.scale = "),
        ("optim.betas=0.9,1", "optim.betas.1 = 1"),
        ("network.drop_path=1", "network.drop_path = 1"),
        ("views.photometric.noise_variance=-0.1,0.1", "views.photometric.noise_variance.0 = -0.1"),
        ("views.photometric.gamma=-1,1", "views.photometric.gamma.0 = -1"),
        ("views.photometric.blur_sigma=2,1", "views.photometric.blur_sigma = "),
        ("views.photometric.blur_sigma=0,1", "views.photometric.blur_sigma.0 = 0"),
        ("views.photometric.low_resolution=0,1", "views.photometric.low_resolution.0 = 0"),
        ("views.overlap=0.5", "views.overlap = 0.5: needs two numbers, LOW,HIGH, not 0.5."),
        ("batch=many", "batch = 'many'"),
        ("nonsense", "write key=value"),
        ("views.patch_size=[1", "cannot be read"),
    ],
)
def test_invalid_settings_are_explained_in_a_sentence(override, sentence):
    with pytest.raises(UserError) as caught:
        loading.load("cva-resenc-xs", [override])
    assert sentence in str(caught.value)


def test_unknown_recipes_and_files(tmp_path):
    with pytest.raises(UserError, match="'cva-resenc-xs'"):
        loading.load("cva-resnet-xs")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(UserError, match=r"bad\.yaml.*YAML"):
        loading.load(str(tmp_path / "bad.yaml"))
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(UserError, match=r"list\.yaml"):
        loading.load(str(tmp_path / "list.yaml"))
    (tmp_path / "odd.yaml").write_text("optim: {learningrate: 1}\nsteps: 3")
    with pytest.raises(UserError, match=r"'optim\.learningrate'.*'optim\.lr'"):
        loading.load(str(tmp_path / "odd.yaml"))


def test_a_run_is_not_a_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    Path("run/config.yaml").touch()
    with pytest.raises(UserError, match=r"by its recipe, run/config\.yaml"):
        loading.load("run")


def test_a_recipe_based_on_itself_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text("base: b.yaml\n")
    Path("b.yaml").write_text("base: a.yaml\n")
    with pytest.raises(UserError, match=r"a\.yaml → b\.yaml → a\.yaml"):
        loading.load("a.yaml")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: &a [1, 1]\nb: [*a, *a]\n", r"alias.*line 2"),
        ("x: " + "[" * 5000 + "]" * 5000, "20 levels.*line 1"),
        ("x: " + "{a: " * 5000 + "}" * 5000, "20 levels.*line 1"),
    ],
)
def test_yaml_that_would_grow_is_rejected(text, sentence, tmp_path):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(UserError, match=sentence):
        loading.load(str(tmp_path / "a.yaml"))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "mine.yaml has no settings. Name at least what it is based on, such as base: ae-primus-m."),
        (b"# nothing but a comment\n", "mine.yaml has no settings"),
        (b"base: cva-resenc-xs\nsteps: 3\nviews: {}\nsteps: 4\n", "mine.yaml sets 'steps' twice, in lines 2 and 4."),
        (b"views:\n  overlap: 0.5\n  overlap: 0.6\n", "mine.yaml sets 'overlap' twice, in lines 2 and 3."),
        (bytes(range(256)), "mine.yaml is not a text file in UTF-8."),
        (b"base: cva-resenc-xs\nviews:\n\tpatch_size: 32\n", "mine.yaml is not valid YAML"),
        (b"- a\n- b\n", "mine.yaml must contain settings"),
        (b"hello world\n", "mine.yaml must contain settings"),
    ],
)
def test_files_that_are_no_recipe_start_no_run_with_defaults(content, sentence, tmp_path):
    (tmp_path / "mine.yaml").write_bytes(content)
    with pytest.raises(UserError, match=re.escape(sentence)):
        loading.load(str(tmp_path / "mine.yaml"))


@pytest.mark.parametrize("size", ["32x32x32", "(32,32,32)", "[32,32]"])
def test_a_size_that_is_no_size_is_reported_once(size):
    with pytest.raises(UserError) as problem:
        loading.load("cva-resenc-xs", [f"views.patch_size={size}"])
    assert str(problem.value).count("needs one number or three in the order (D, H, W)") == 1
    assert "patch_size.0" not in str(problem.value)
    with pytest.raises(UserError, match=r"views\.patch_size = 0: must be at least 1\.$"):
        loading.load("cva-resenc-xs", ["views.patch_size=0"])


def test_a_recipe_written_out_reads_back_the_same(tmp_path):
    recipe = loading.load("cva-primus-m", ["data=/store", "seed=5"])
    file = tmp_path / "config.yaml"
    file.write_text(loading.to_yaml(recipe))
    assert loading.load(str(file)) == recipe


def test_names_are_matched_in_any_case_and_files_are_not_taken_for_names():
    with pytest.raises(UserError, match=r"did you mean 'cva-resenc-xs'"):
        loading.load("CVA-ResEnc-XS")
    for name in ("nosuch.yaml", "folder/cva-resenc-xs"):
        with pytest.raises(UserError, match=f"no file {name}") as problem:
            loading.load(name)
        assert len(str(problem.value)) < 60


def test_paths_in_a_file_are_relative_to_it(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "weights.pt").touch()
    task = "validate: {probe: {task: ../task}}"
    (tmp_path / "mine/base.yaml").write_text(f"base: mae-resenc-xs\ndata: ../store\ninit: ../weights.pt\n{task}\n")
    (tmp_path / "mine/run.yaml").write_text("base: base.yaml\nout: run\n")
    monkeypatch.chdir("/")
    recipe = loading.load(str(tmp_path / "mine/run.yaml"))
    paths = recipe.data, recipe.init.weights, recipe.validate_.probe.task, recipe.out
    places = ("store", "weights.pt", "task", "mine/run")
    assert [Path(path).resolve() for path in paths] == [tmp_path / place for place in places]
    assert loading.load(str(tmp_path / "mine/run.yaml"), ["data=there"]).data == "there", "relative to the user"


def test_names_in_a_file_stay_names_and_a_home_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.yaml").write_text("base: mae-resenc-l\ninit: openmind-mae-resenc-l\ndata: ~/store\n")
    recipe = loading.load(str(tmp_path / "mine.yaml"), ["out=~/run"])
    assert recipe.init.weights == "openmind-mae-resenc-l"
    assert (recipe.data, recipe.out) == (f"{tmp_path}/store", f"{tmp_path}/run")
