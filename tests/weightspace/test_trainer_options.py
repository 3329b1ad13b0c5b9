"""Options of the trainer: each works, or is refused in one line of ours, and runs stand in folders of their own."""

# Lightning's log handler keeps the stderr of its first import, which must outlive the capture of one test.
import lightning.pytorch
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import LearningRateFinder
from lightning.pytorch.loggers import Logger

from tests.weightspace.test_cli import CONFIG, call
from tests.weightspace.test_module import module_of
from tests.weightspace.zoos import write_zoo
from weightspace.data.datamodule import ZooDataModule
from weightspace.families.elman import Elman
from weightspace.objectives.supervised import Supervised
from weightspace.training.module import fit

WORK = [
    "accelerator auto",
    "accumulate_grad_batches 2",
    "benchmark true",
    "callbacks EarlyStopping --trainer.callbacks.monitor val/loss",
    "callbacks LearningRateMonitor",
    "callbacks ModelCheckpoint",
    "check_val_every_n_epoch 2",
    "detect_anomaly true",
    "deterministic true",
    "devices auto",
    "enable_checkpointing false",
    "enable_model_summary true",
    "enable_progress_bar true",
    "fast_dev_run true",
    "gradient_clip_algorithm value",
    "gradient_clip_val null",
    "inference_mode false",
    "limit_train_batches 1",
    "limit_val_batches 0",
    "log_every_n_steps 2",
    "logger false",
    "logger true",
    "max_epochs 2",
    "max_steps 2",
    "max_time 00:00:01:00",
    "num_sanity_val_steps 2",
    "plugins AsyncCheckpointIO",
    "precision bf16-mixed",
    "profiler simple",
    "reload_dataloaders_every_n_epochs 1",
    "use_distributed_sampler true",
    "val_check_interval 0.5",
]
REFUSED = {
    "accelerator gpu": "No supported gpu backend found",
    "barebones true": "takes away the metrics and checkpoints",
    "devices 0": "devices",
    "limit_val_batches 0.5": "limit_val_batches",
    "overfit_batches 2": "use `limit_train_batches`",
    "overfit_batches 0.5": "use `limit_train_batches`",
    "precision 16-true": "choose `32-true`, `bf16-mixed`",
    "precision 64-true": "choose `32-true`, `bf16-mixed`",
    "precision bf16-true": "choose `32-true`, `bf16-mixed`",
    "strategy nonsense": "nonsense",
}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    return write_zoo(tmp_path_factory.mktemp("options") / "zoo", models=10, rollouts=False)


@pytest.fixture
def fitted(zoo, tmp_path, monkeypatch):
    """Exit status of `weightspace fit` with these options."""
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "recipe.yaml"
    config.write_text(yaml.safe_dump({**CONFIG, "data": {"zoo": str(zoo), "batch_size": 16}}))
    return lambda *options: call("fit", "--config", config, *options)


# What Lightning says of these options is for users; the tests ask for what is left behind.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("option", WORK)
def test_an_option_of_the_trainer_works(option, fitted, tmp_path):
    assert fitted(*f"--trainer.{option}".split(" ")) == 0
    kept = {path.name for path in tmp_path.rglob("*.ckpt")}
    assert ("last.ckpt" in kept) == (option not in ("enable_checkpointing false", "fast_dev_run true"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("option", REFUSED)
def test_an_option_that_cannot_work_here_is_refused_in_one_line(option, fitted, capsys):
    if "gpu" in option and torch.cuda.is_available():
        pytest.skip("CUDA is there, so asking for it is no mistake")
    assert fitted(*f"--trainer.{option}".split(" ")) == 2
    error = capsys.readouterr().err
    assert REFUSED[option] in error
    assert "Traceback" not in error


def test_a_diverged_run_ends_with_status_1_and_says_what_to_do(fitted, tmp_path, capsys):
    assert fitted("--model.learning_rate", 1e8, "--trainer.max_epochs", 5) == 1
    assert "Training diverged in epoch" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.ckpt"))


class Elsewhere(Logger):
    """As a logger of W&B offline: it has a place of its own, and no version before it has begun."""

    def __init__(self, save_dir: str = ".") -> None:
        super().__init__()
        self._save_dir = save_dir

    name, version = "project", None

    @property
    def save_dir(self):
        return self._save_dir

    def log_metrics(self, metrics, step=None):
        """Nowhere."""

    def log_hyperparams(self, params, *args, **kwargs):
        """Nowhere."""


@pytest.fixture
def elsewhere(monkeypatch):
    monkeypatch.setattr(lightning.pytorch.loggers, "Elsewhere", Elsewhere, raising=False)
    monkeypatch.setattr(Elsewhere, "__module__", "lightning.pytorch.loggers")
    return ("--trainer.logger", "lightning.pytorch.loggers.Elsewhere")


def test_with_a_logger_of_another_kind_every_run_has_a_folder_of_its_own(fitted, elsewhere, tmp_path):
    for number in range(2):
        assert fitted(*elsewhere) == 0
        run = tmp_path / "runs" / f"version_{number}"
        assert (run / "config.yaml").exists()
        assert {path.name for path in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert not (tmp_path / "config.yaml").exists()


def test_the_folder_that_a_run_is_told_to_use_holds_for_every_logger(fitted, elsewhere, tmp_path, capsys):
    named = ("--trainer.default_root_dir", "mine")
    for logger in (elsewhere, ("--trainer.logger", "false")):
        assert fitted(*named, *logger) == 0
        assert {path.name for path in (tmp_path / "mine").iterdir()} == {"config.yaml", "checkpoints"}
        assert fitted(*named, *logger) == 2
        assert "mine already holds a run" in capsys.readouterr().err
        (tmp_path / "mine").rename(tmp_path / logger[1])


def test_a_run_that_was_stopped_before_its_first_checkpoint_does_not_lock_its_folder(fitted, tmp_path):
    named = ("--trainer.default_root_dir", "mine")
    assert fitted(*named, "--model.learning_rate", 1e8) == 1
    assert (tmp_path / "mine" / "config.yaml").exists()
    assert fitted(*named) == 0
    assert "learning_rate: 0.001" in (tmp_path / "mine" / "config.yaml").read_text()


def test_the_message_of_a_used_folder_names_a_checkpoint_that_is_there(fitted, tmp_path, capsys):
    named = ("--trainer.default_root_dir", "mine")
    assert fitted(*named, "--checkpoint.save_last", "false") == 0
    assert fitted(*named) == 2
    assert "go on with `--ckpt_path mine/checkpoints/best.ckpt`" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore")
def test_the_rate_that_a_finder_found_is_the_one_that_acts_also_after_going_on(zoo, tmp_path):
    rates = []

    class Watch(lightning.pytorch.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    class Finder(LearningRateFinder):
        """Takes a rate for the best, whatever the losses."""

        def lr_find(self, trainer, pl_module):
            pl_module.learning_rate = pl_module.hparams.learning_rate = 0.04

    family = Elman(input_size=1, hidden_size=4, output_size=1)
    path = write_zoo(tmp_path / "zoo", [family], models=10, rollouts=False)
    options = {"schedule": "constant", "warmup": 0.0, "learning_rate": 1e-3}
    module = module_of(Supervised(["trace"]), **options)
    fit(module, ZooDataModule(path), tmp_path, max_epochs=1, callbacks=[Finder(), Watch()])
    assert rates == pytest.approx([0.04] * len(rates))
    last = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["hyper_parameters"]["learning_rate"] == 0.04
    again = module_of(Supervised(["trace"]), **{**options, "learning_rate": 0.04})
    fit(again, ZooDataModule(path), tmp_path, max_epochs=2, callbacks=[Watch()], resume=True)
    assert rates == pytest.approx([0.04] * len(rates))
