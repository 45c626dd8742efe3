"""An experiment says what it means, or is refused in one line."""

from functools import partial
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from bts_lightning.config import reach, targets
from bts_lightning.config.build import SUPPLIED, as_yaml, build, check, load
from bts_lightning.config.merge import SEARCH
from bts_lightning.errors import ConfigError
from bts_lightning.networks.unet import UNet
from tests import parts

BASE = """
net: ???
task:
  _target_: tests.parts.Task
  net: ${net}
  optimizer: {_target_: torch.optim.AdamW, _partial_: true, lr: 1.0e-3}
data: {_target_: tests.parts.Data, root: data}
trainer: {_target_: lightning.Trainer, accelerator: cpu, max_epochs: 1, logger: false}
callbacks:
  ema: {_target_: lightning.pytorch.callbacks.EMAWeightAveraging, decay: 0.9}
  rate: {_target_: lightning.pytorch.callbacks.LearningRateMonitor}
seed: 0
"""
FILES = {
    "base": BASE,
    "small": "extends: [base.yaml]\nnet: {_target_: tests.parts.Net, width: 8}",
    "aligned": "task: {net: {_target_: tests.parts.Aligned, backbone: '${net}'}}",
    "fast": "trainer: {precision: bf16-mixed, max_epochs: 7}",
    "both": "extends: [small.yaml, fast]\nnet: {dropout: 0.25}",
    "no_ema": "callbacks: {ema: null}",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    return tmp_path


@pytest.fixture
def read(folder: Path):
    def read(line: str, *more: str) -> DictConfig:
        config = load([*line.split(), *more], allow=["tests"], search=[folder])
        check(config)
        return config

    return read


@pytest.fixture
def refusal(read):
    def refusal(line: str, *more: str) -> str:
        with pytest.raises(ConfigError) as caught:
            read(line, *more)
        text = str(caught.value)
        assert "\n" not in text
        return text

    return refusal


# --- merging


def test_files_merge_left_to_right_and_overrides_come_last(read):
    config = read("trainer.max_epochs=9 small fast net.width=16")
    assert config.net.width == 16
    assert config.trainer.precision == "bf16-mixed"
    assert config.trainer.max_epochs == 9
    assert read("small fast").trainer.max_epochs == 7


def test_a_file_extends_others_by_file_and_by_name(read):
    config = read("both")
    assert (config.net.width, config.net.dropout) == (8, 0.25)
    assert config.trainer.precision == "bf16-mixed"
    assert "extends" not in config


def test_a_mix_in_named_before_the_experiment_is_not_undone_by_the_base(read):
    assert read("aligned small").task.net._target_ == "tests.parts.Aligned"
    assert read("small aligned").task.net._target_ == "tests.parts.Aligned"


def test_another_target_replaces_the_node_and_the_same_one_merges(read):
    config = read("small net.dropout=0.5 net._target_=tests.parts.Net")
    assert (config.net.width, config.net.dropout) == (8, 0.5)
    config = read("small net._target_=torch.nn.Linear net.in_features=2 net.out_features=1")
    assert set(config.net) == {"_target_", "in_features", "out_features"}


def test_a_new_target_and_its_arguments_come_in_any_order(read):
    line = "small net.in_features=2 net.out_features=1 net._target_=torch.nn.Linear"
    assert read(line).net.in_features == 2


def test_null_takes_a_callback_out(read):
    assert set(read("small no_ema").callbacks) == {"rate"}
    assert set(read("small callbacks.rate=None").callbacks) == {"ema"}
    assert set(read("small no_ema callbacks.ema._target_=lightning.Callback").callbacks) == {
        "ema",
        "rate",
    }


def test_small_takes_the_sizes_of_the_class_and_no_key_that_it_lacks(folder: Path):
    (folder / "tiny.yaml").write_text("net: {_small_: true}")

    def net(*words: str) -> dict[str, object]:
        return dict(load(words, allow=["tests"], search=[folder, *SEARCH]).net)

    usual = net("unet")
    assert net("unet", "tiny") == usual | UNet.small() == net("tiny", "unet")
    assert net("unet", "tiny", "net.poolings=2")["poolings"] == 2
    assert net("small", "tiny") == net("small"), "a guest's class that gives no sizes"
    # What follows the data goes on following them.
    assert OmegaConf.is_interpolation(load(["mmformer", "smoke"]).net, "patch")


def test_a_misspelt_key_beside_small_is_found(refusal, folder: Path):
    (folder / "tiny.yaml").write_text("net: {_small_: true}")
    assert refusal("small tiny net.widht=8").startswith("unknown key 'net.widht'")


def test_a_list_is_replaced(read):
    assert read("small net.heads=[3,4,5]").net.heads == [3, 4, 5]


def test_an_entry_of_a_list_in_a_file_can_be_overridden(folder, read):
    (folder / "heads.yaml").write_text("net: {heads: [3, 4]}")
    assert read("small heads net.heads.1=9").net.heads == [3, 9]


@pytest.mark.parametrize(
    ("mix_in", "word"),
    [
        ("mri_artifacts", "data.transforms.motion.p=0.5"),
        ("mri_artifacts", "data.transforms.motion.include=[t1c]"),
        ("missing_rates", "data.availability.rates.0=0.5"),
    ],
)
def test_what_the_docs_say_of_names_and_numbers_is_taken(mix_in: str, word: str):
    config = load(["uhemis", mix_in, word])
    check(config, supplied=SUPPLIED)
    key, _, value = word.partition("=")
    assert str(OmegaConf.select(config, key.replace(".0", "[0]"))).replace("'", "") == value


def test_an_entry_beyond_a_list_is_refused(folder, refusal):
    (folder / "heads.yaml").write_text("net: {heads: [3, 4]}")
    assert refusal("small heads net.heads.2=9") == "net.heads.2: the list has 2 entries, from 0"


def test_a_path_to_a_file_is_an_experiment_too(folder, read):
    assert read(f"{folder}/small.yaml").net.width == 8


def test_the_own_folder_comes_before_the_package(tmp_path, folder):
    own = tmp_path / "own"
    own.mkdir()
    (own / "small.yaml").write_text("extends: [base.yaml]\nnet: {_target_: torch.nn.Identity}")
    config = load(["small"], search=[own, folder])
    assert config.net._target_ == "torch.nn.Identity"
    assert config.seed == 0


def test_an_own_base_may_extend_the_one_of_the_package(tmp_path, folder):
    own = tmp_path / "own"
    own.mkdir()
    (own / "base.yaml").write_text("extends: [base.yaml]\nseed: 5")
    config = load(["small"], search=[own, folder])
    assert config.seed == 0, "a file's own neighbour comes first"
    config = load(["base"], search=[own, folder])
    assert config.seed == 5
    assert config.trainer.max_epochs == 1


def test_files_that_extend_each_other_are_refused(folder, refusal):
    (folder / "one.yaml").write_text("extends: [two.yaml]")
    (folder / "two.yaml").write_text("extends: [one.yaml]")
    assert "one.yaml: extends itself, through two.yaml" in refusal("one")


# --- values


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("None", None),
        ("null", None),
        ("True", True),
        ("false", False),
        ("1e-5", 1e-5),
        ("3", 3),
        ("[1, None, 1e-3]", [1, None, 1e-3]),
        ("{a: 1}", {"a": 1}),
        ("a=b", "a=b"),
        ("'3'", "3"),
        ("${seed}", 0),
    ],
)
def test_values_are_read_as_yaml_and_python_write_them(folder, text, value):
    config = load(["small", f"net.it={text}"], search=[folder])
    assert config.net.it == value
    assert type(config.net.it) is type(value) or OmegaConf.is_config(config.net.it)


def test_overrides_may_have_dashes_as_sweep_agents_write_them(read):
    assert read("small --net.width=16").net.width == 16


def test_an_argument_that_no_yaml_lists_can_be_set(read):
    assert build(read("small net.dropout=0.5").net).dropout == 0.5


def test_references_are_kept_in_the_yaml_and_followed_when_built(read):
    config = read("small aligned net.width=4")
    assert "net: ${net}" in as_yaml(read("small"))
    assert build(config.task).net.backbone.width == 4


def test_a_whole_number_will_do_for_a_float_and_a_list_for_a_tuple(read):
    net = build(read("small net.dropout=0 net.heads=[3] net.shape=[1,2,3]").net)
    assert type(net.dropout) is float
    assert (net.heads, net.shape) == ((3,), (1, 2, 3))


def test_a_path_arrives_as_a_path(read):
    assert build(read("small").data).root == Path("data")


# --- refusals, word for word where the words are promised


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("small net.widht=16", "unknown key 'net.widht'; did you mean net.width?"),
        ("small nett.width=16", "unknown key 'nett.width'; did you mean net.width?"),
        ("small width=16", "unknown key 'width'; did you mean net.width?"),
        ("small task.optimizer.l_r=1", "unknown key 'task.optimizer.l_r'; did you mean "),
        ("small net.width=abc", "net.width=abc: expected int, got str"),
        ("small net.width=null", "net.width=None: expected int, got NoneType"),
        ("small data.batch_size=2.5", "data.batch_size=2.5: expected int, got float"),
        ("small data.batch_size=True", "data.batch_size=True: expected int, got bool"),
        ("small net.dropout=True", "net.dropout=True: expected float, got bool"),
        (
            "small net.fusion=men",
            "net.fusion=men: expected mean | max, got str; did you mean mean?",
        ),
        (
            "small net.shape=[1,2]",
            "net.shape=[1, 2]: expected int | tuple[int, int, int], got list",
        ),
        ("small net.heads=[1,x]", "net.heads=[1, 'x']: expected tuple[int, ...], got list"),
        (
            "small net._target_=tests.parts.Nte",
            "net._target_=tests.parts.Nte: module tests.parts has no class 'Nte'; "
            "did you mean Net?",
        ),
        ("small net._target_=tests.part.Net", "tests has no module 'part'; did you mean parts?"),
        ("base", "net has no value yet; name an experiment that sets it"),
        ("fast", "net has no value yet"),
        ("", "net has no value yet"),
        ("small net.width=???", "net.width has no value yet"),
        ("small data._target_=tests.parts.Data data.root=???", "data.root has no value yet"),
        ("smal", "no experiment is named 'smal'; did you mean small?"),
        ("small.yml", "no experiment is named 'small.yml'; did you mean small?"),
        ("small +net.width=3", "cannot read the override '+net.width=3'; write key=value"),
        ("small net.width=[1", "cannot read the value in 'net.width=[1'"),
        ("small task.net=${nett}", "task.net=${nett}: Interpolation key 'nett' not found; "),
        ("small task.net.width=4", "task.net is ${net}; set net.width instead"),
        ("small net.width=${net}", "net.width=${net}: Interpolation to parent node detected"),
        ("small callbacks.eam.decay=0.5", "callbacks.eam needs a _target_; did you mean ema?"),
        ("small callbacks=[]", "callbacks: expected a mapping from names to nodes"),
        ("small net=3", "net needs a _target_, the class to build"),
        ("small trainer=${net}", "trainer=Net: expected a lightning.pytorch.Trainer"),
        ("small seed=0.5", "seed=0.5: expected int, got float"),
        ("small trainer.max_epoch=3", "unknown key 'trainer.max_epoch'; did you mean "),
        ("small trainer.precision=bf17", "did you mean bf16?"),
        ("small callbacks.ema.decy=0.1", "did you mean callbacks.ema.decay?"),
        ("small net._partial_=true", "net._partial_: a factory is of no use here"),
    ],
)
def test_a_mistake_is_refused_in_one_line(refusal, line, text):
    assert text in refusal(line)


@pytest.mark.parametrize("value", ["/data/set #1", "#1", "[a, b] # two", "'/data' #1"])
def test_what_yaml_takes_for_a_comment_is_refused(refusal, value):
    text = refusal("small", f"data.root={value}")
    assert "takes what follows # for a comment; quote the value" in text


def test_a_quoted_hash_is_a_part_of_the_value():
    assert load(["a2fseg", 'data.root="/data/set #1"']).data.root == "/data/set #1"
    assert load(["a2fseg", "data.root=/data/set#1"]).data.root == "/data/set#1"


def test_a_mistake_is_named_where_it_was_written_not_where_it_is_referred_to():
    with pytest.raises(ConfigError, match=r"'evaluation.overlp'; did you mean evaluation.overlap"):
        check(load(["a2fseg", "evaluation.overlp=0.3"]), supplied=SUPPLIED)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("trainr: {max_epochs: 3}", "did you mean trainer?"),
        ("net: {width: 1, width: 2}", "duplicate key width"),
        ("net: [", "not readable as YAML"),
        ("- net", "expected a mapping with the keys net, task,"),
        ("extends: [bse.yaml]", "no experiment is named 'bse.yaml'; did you mean base?"),
    ],
)
def test_a_wrong_file_is_named(folder, refusal, content, text):
    (folder / "wrong.yaml").write_text(content)
    message = refusal("small wrong")
    assert text in message
    assert "wrong.yaml" in message


def test_a_network_of_the_wrong_class_is_refused(refusal):
    text = refusal("small aligned", "task.net.backbone={_target_: torch.nn.Identity}")
    assert "task.net.backbone: expected Net, got an object of Identity" in text


def test_an_optimizer_that_is_no_factory_gets_the_advice(refusal):
    text = refusal("small", "task.optimizer={_target_: torch.optim.SGD, _partial_: false}")
    assert "add `_partial_: true`, it is made later" in text


def test_a_factory_of_the_wrong_thing_is_refused(refusal):
    text = refusal("small", "task.optimizer={_target_: tests.parts.Net, _partial_: true}")
    assert "expected factory of Optimizer, got a factory of Net" in text


def test_a_factory_where_a_thing_is_wanted_is_refused(refusal):
    text = refusal("small", "data.transforms=[{_target_: torch.nn.Identity, _partial_: true}]")
    assert text.startswith("data.transforms=[factory of Identity]: expected list[Module] | None")


def test_an_argument_that_the_caller_supplies_may_be_missing_in_the_yaml(folder):
    config = load(
        ["small", "logger.csv._target_=lightning.pytorch.loggers.CSVLogger"],
        allow=["tests"],
        search=[folder],
    )
    with pytest.raises(ConfigError, match=r"logger\.csv\.save_dir has no value yet"):
        check(config)
    check(config, supplied=["logger.*.save_dir"])
    assert build(config.logger.csv, save_dir="here").root_dir == "here/lightning_logs"


def test_an_experiment_that_refers_to_itself_is_refused(refusal):
    text = refusal("small", "net={_target_: tests.parts.Aligned, backbone: '${task}'}")
    assert text == "task refers to itself: task → net → task"


# --- what a stranger's experiment may do


def test_a_class_that_starts_a_process_is_refused_in_every_place(refusal):
    process = "{_target_: bts_lightning.runs.processes.Process, command: [touch, x], run: r}"
    for line in (
        f"evaluation={process}",
        f"logger.x={process}",
        f"callbacks.x={process}",
        f"callbacks.rate.logging_interval={process}",
        f"data.transforms=[{process}]",
        f"net.width={process}",
    ):
        assert "Process: not a kind of thing" in refusal("small", line)


def test_a_place_of_which_nobody_says_what_it_takes_takes_no_class(refusal):
    layer = "{_target_: torch.nn.Identity}"
    text = refusal(
        "small", f"logger.x={{_target_: lightning.pytorch.loggers.CSVLogger, name: {layer}}}"
    )
    assert "logger.x.name: expected" in text
    text = refusal(
        "small",
        f"logger.x={{_target_: lightning.pytorch.loggers.WandbLogger, save_dir: w, more: {layer}}}",
    )
    assert text == "logger.x.more: WandbLogger does not say what it takes here; got Identity"


SAVES = "callbacks.x={_target_: lightning.pytorch.callbacks.ModelCheckpoint"
LOGS = "logger.x={_target_: lightning.pytorch.loggers.CSVLogger, save_dir: logs"


@pytest.mark.parametrize(
    "line",
    [
        f"{SAVES}, filename: ../../../x}}",
        f"{SAVES}, filename: /tmp/x}}",
        f"{SAVES}, filename: a/../b}}",
        f"{SAVES}, dirpath: 's3://x/y'}}",
        f"{LOGS}, name: ~x}}",
        f"{LOGS}, version: ..}}",
        f"{LOGS}, prefix: '${{oc.env:BTS_PLACE}}'}}",
        "trainer.profiler={_target_: lightning.pytorch.profilers.SimpleProfiler, dirpath: /tmp}",
    ],
)
def test_no_name_in_an_experiment_leaves_the_run_folder(refusal, monkeypatch, line):
    monkeypatch.setenv("BTS_PLACE", "/tmp")
    assert "leads out of the run folder" in refusal("small", line)


WANDB = "_target_: lightning.pytorch.loggers.WandbLogger, save_dir: w"


@pytest.mark.parametrize(
    ("settings", "host"),
    [
        ("settings: {base_url: 'http://elsewhere.org:8080'}", "elsewhere.org"),
        ("settings: {base_url: elsewhere.org}", "elsewhere.org"),
        ("settings: {https_proxy: 'elsewhere.org:3128'}", "elsewhere.org"),
        ("notes: 'https://elsewhere.org/'", "elsewhere.org"),
    ],
)
def test_an_experiment_chooses_no_server(refusal, read, monkeypatch, settings, host):
    monkeypatch.setattr(reach, "_allowed_hosts", set())
    line = f"logger.x={{{WANDB}, {settings}}}"
    assert f"If you trust this one: --allow-host {host}" in refusal("small", line)
    targets.allow(["//other.org"])
    assert f"--allow-host {host}" in refusal("small", line)
    targets.allow([f"//{host}"])
    read("small", line)


def test_an_experiment_brings_no_credentials(refusal):
    for name in ("api_key", "identity_token_file"):
        text = refusal("small", f"logger.x={{{WANDB}, settings: {{{name}: stranger}}}}")
        assert f"logger.x.settings.{name}: credentials do not belong here" in text


def test_an_experiment_reads_only_listed_variables(refusal, read, monkeypatch):
    for name in ("WANDB_API_KEY", "SLURM_JWT"):
        monkeypatch.setenv(name, "hidden")
        for text in (
            f"${{oc.env:{name}}}",
            f"${{oc.decode:${{oc.env:{name}}}}}",
            f"x ${{oc.env:{name},none}} y",
        ):
            said = refusal("small", f"data.root={text}")
            assert f"{name} may hold a secret" in said
            assert "hidden" not in said
    for name in ("DATA", "SLURM_JOB_ID", "BTS_RUN"):
        monkeypatch.setenv(name, "here")
        assert build(read("small", f"data.root=${{oc.env:{name}}}").data).root == Path("here")
    monkeypatch.delenv("DATA")
    assert build(read("small", "data.root=${oc.env:DATA,other}").data).root == Path("other")
    assert "'DATA' not found" in refusal("small", "data.root=${oc.env:DATA}")


def test_the_name_of_what_reads_the_environment_cannot_be_put_together(refusal, monkeypatch):
    monkeypatch.setenv("TOKEN", "hidden")
    words = ["net.it=env", "data.root=${oc.${net.it}:TOKEN}"]
    text = refusal("small", *words)
    assert "hidden" not in text


def test_a_node_that_is_built_unchecked_reads_only_listed_variables(monkeypatch):
    monkeypatch.setenv("TOKEN", "3")
    node = {"_target_": "torch.nn.Linear", "in_features": "${oc.env:TOKEN}", "out_features": 1}
    with pytest.raises(ConfigError, match="TOKEN may hold a secret"):
        build(node)


def test_a_tag_in_yaml_builds_nothing(folder, refusal):
    (folder / "tagged.yaml").write_text("seed: !!python/object/apply:os.getpid []")
    assert "not readable as YAML" in refusal("small tagged")
    text = refusal("small", "seed=!!python/object/apply:os.getpid []")
    assert "cannot read the value" in text


def test_other_configurations_of_the_process_read_what_they_like(read, monkeypatch):
    monkeypatch.setenv("TOKEN", "3")
    read("small")
    own = OmegaConf.create({"a": "${oc.env:TOKEN}", "b": "${oc.env:GONE,null}"})
    assert (own.a, own.b) == ("3", None)


# --- building


def test_a_partial_node_builds_a_factory(read):
    task = build(read("small task.optimizer.lr=0.5").task)
    assert isinstance(task.make_optimizer, partial)
    assert task.make_optimizer(task.parameters()).defaults["lr"] == 0.5


def test_a_mapping_of_nodes_builds_a_mapping_of_things(read):
    callbacks = build(read("small").callbacks)
    assert [type(one).__name__ for one in callbacks.values()] == [
        "EMAWeightAveraging",
        "LearningRateMonitor",
    ]


def test_a_list_of_nodes_builds_a_list_of_things(read):
    data = build(read("small", "data.transforms=[{_target_: torch.nn.Identity}]").data)
    assert type(data.transforms[0]) is torch.nn.Identity


def test_extra_arguments_win_over_the_yaml(read):
    assert build(read("small").net, width=3).width == 3


def test_the_trainer_is_built_from_its_own_signature(read):
    trainer = build(read("small trainer.limit_val_batches=1").trainer, callbacks=[])
    assert (trainer.max_epochs, trainer.limit_val_batches) == (1, 1)
    assert type(trainer.limit_val_batches) is int, "1 batch, not the whole"


def test_what_a_constructor_refuses_is_one_line_with_the_key(read):
    with pytest.raises(ConfigError, match=r"^net: Net: width 0 is less than 1$"):
        build(read("small net.width=0").net)


def test_what_the_trainer_refuses_is_one_line_with_the_key(read):
    config = read("small trainer.deterministic=warn trainer.strategy=no_such_strategy")
    with pytest.raises(ConfigError, match=r"^trainer: Trainer: .*no_such_strategy"):
        build(config.trainer)


def test_a_plain_mapping_builds_as_well():
    net = build({"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 1})
    assert net.weight.shape == (1, 2)


def test_a_saved_experiment_reads_as_the_same(read, tmp_path):
    config = read("small aligned fast net.width=4")
    file = tmp_path / "saved.yaml"
    file.write_text(as_yaml(config))
    assert load([str(file)]) == config
    assert isinstance(build(load([str(file)]).task), parts.Task)
