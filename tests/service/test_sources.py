"""Sources: what is allowed, what is built, and what is said when it is not."""

from __future__ import annotations

import pickle
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import cloudpickle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from evaluation.errors import DataError
from service.errors import SourceError
from service.source_name import SourceName
from service.sources import DATA_FORMS, MODEL_FORMS, Sources

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "zoo"
needs_zoo = pytest.mark.skipif(
    not SHARED.is_dir(), reason="needs the zoo of trained networks beside the checkout"
)


@pytest.fixture
def zoo(tmp_path: Path) -> Iterator[Path]:
    """A folder with a user's module, taken off the import path afterwards."""
    (tmp_path / "my_zoo.py").write_text(
        textwrap.dedent(
            """
            from os import getcwd
            from torch import nn
            from torch.utils.data import TensorDataset
            import torch

            number = 3
            def net(): return nn.Linear(2, 3)
            def not_a_net(): return "hello"
            def needs(argument): return nn.Linear(argument, 3)
            def broken(): raise KeyError("no such thing")
            def broken_inside(): return int(None)
            def _set(n): return TensorDataset(torch.zeros(n, 2), torch.zeros(n).long())
            def data(): return {"train": _set(5), "test": _set(3)}
            def data_full():
                return {"train": _set(5), "test": _set(3), "validation": _set(2),
                        "finetune": _set(5), "evaluate": lambda o, t: o}
            def no_test(): return {"train": _set(5)}
            def no_train(): return {"test": _set(5)}
            def typo(): return {"train": _set(5), "test": _set(3), "val": _set(2)}
            def empty(): return {"train": _set(5), "test": _set(0)}
            def uneven(): return {"train": _set(5), "test": _set(1), "finetune": _set(4)}
            def no_dict(): return _set(5)
            def no_length(): return {"train": iter([1]), "test": _set(1)}
            def bad_metric(): return {"train": _set(5), "test": _set(1), "evaluate": 3}
            """
        )
    )
    (tmp_path / "sick_zoo.py").write_text("raise RuntimeError('cannot start')\n")
    before = list(sys.path)
    yield tmp_path
    sys.path[:] = before
    for name in ("my_zoo", "sick_zoo"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("", "form"),
        ("resnet18", "unknown kind"),
        ("tim:resnet18", "did you mean 'timm'"),
        ("timm:", "not of the form timm:NAME"),
        ("timm:resnet18000", "did you mean 'resnet1"),
        ("timm:hf-hub:someone/thing", "not of the form"),
        ("timm:../../etc/passwd", "not of the form"),
        ("timm:local-dir", "no network"),
        ("torchvision:resnet81", "did you mean 'resnet"),
        ("torchvision:fasterrcnn_resnet50_fpn", "no network"),
        ("timm:resnet18?num_classes=ten", "whole number"),
        ("timm:resnet18?num_classes=0", "between 1 and"),
        ("timm:resnet18?num_class=10", "did you mean 'num_classes'"),
        ("timm:resnet18?pretrained=true", "unknown option"),
        ("timm:resnet18?num_classes=1&num_classes=2", "twice"),
        ("timm:resnet18?", "not of the form"),
        ("timm:resnet18?num_classes", "name=value"),
        ("timm:resnet18?drop_rate=nan", "between"),
        ("torchvision:inception_v3?aux_logits=1", "true or false"),
        ("python:os:system", "not allowed"),
        ("python:os", "not of the form"),
        ("python:os:", "not of the form"),
        ("python:a b:c", "not of the form"),
        ("python:my_zoo:net.weight", "not of the form"),
        ("python:my_zoo:class", "not of the form"),
        ("python:service.demo_networks:train_digits_cnn", "not allowed"),
        ("digits", "unknown kind"),
        ("x" * 1000, "short"),
    ],
)
def test_a_bad_model_source_is_refused_at_once(source: str, words: str) -> None:
    with pytest.raises(SourceError, match=words):
        Sources().check_model(source)
    with pytest.raises(SourceError):
        Sources().model_factory(source)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("digit", "did you mean 'digits'"),
        ("digits:all", "not of the form digits"),
        ("digits?size=3", "take no options"),
        ("imagefolder:cats", "registered: dogs"),
        ("imagefolder:dog", "did you mean 'dogs'"),
        ("imagefolder:/etc", "not of the form"),
        ("imagefolder:dogs?size=3", "between"),
        ("torchvision:CIFAR11", "did you mean 'CIFAR10"),
        ("torchvision:CIFAR10", "--allow torchvision"),
        ("python:os:environ", "not allowed"),
        ("timm:resnet18", "unknown kind"),
    ],
)
def test_a_bad_data_source_is_refused_at_once(source: str, words: str, tmp_path: Path) -> None:
    sources = Sources(image_folders={"dogs": tmp_path})
    with pytest.raises(SourceError, match=words):
        sources.check_data(source)
    with pytest.raises(SourceError):
        sources.data(source)


@given(st.text(max_size=40))
def test_any_text_is_a_name_or_a_source_error(text: str) -> None:
    for forms in (MODEL_FORMS, DATA_FORMS):
        try:
            name = SourceName.parse(text, forms)
        except SourceError:
            continue
        assert name.kind in forms
        assert not set(name.name) & set("/\\ %")


@pytest.mark.parametrize(
    "pattern", ["python", "python:", "timm:resnet18", "python:a:b:c", "python:a b", "*", "os"]
)
def test_a_pattern_that_cannot_be_right_stops_the_start(pattern: str) -> None:
    with pytest.raises(SourceError, match="cannot allow"):
        Sources(allow=(pattern,))


def test_a_code_path_must_be_a_folder(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no folder"):
        Sources(code_paths=(tmp_path / "absent",))


@pytest.mark.parametrize(
    ("source", "shape"),
    [
        ("timm:resnet18", (3, 224, 224)),
        ("timm:resnet18?in_chans=1", (1, 224, 224)),
        ("timm:vit_tiny_patch16_224?img_size=32", (3, 32, 32)),
        ("torchvision:mobilenet_v2", (3, 224, 224)),
        ("torchvision:inception_v3", (3, 299, 299)),
        ("torchvision:vit_b_16?image_size=64", (3, 64, 64)),
        ("python:service.demo_networks:digits_cnn", None),
    ],
)
def test_default_input(source: str, shape: tuple[int, int, int] | None) -> None:
    assert Sources().default_input(source) == shape


def test_library_networks_are_built_with_random_weights_and_options() -> None:
    sources = Sources()
    network = sources.model_factory("timm:resnet10t?num_classes=7")()
    assert isinstance(network, nn.Module)
    assert network.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 7)
    narrow = sources.model_factory("torchvision:mobilenet_v2?width_mult=0.35&num_classes=5")()
    assert sum(p.numel() for p in narrow.parameters()) < 1_000_000


def test_an_option_the_network_does_not_take() -> None:
    with pytest.raises(SourceError, match=r"cannot be built.*img_size"):
        Sources().model_factory("timm:resnet10t?img_size=32")()


def test_a_factory_travels_to_another_process(zoo: Path) -> None:
    sources = Sources(allow=("python:my_zoo",), code_paths=(zoo,))
    for source in ("python:my_zoo:net", "python:service.demo_networks:digits_cnn"):
        factory = pickle.loads(pickle.dumps(sources.model_factory(source)))
        assert isinstance(factory(), nn.Module)
    again = cloudpickle.loads(cloudpickle.dumps(sources))
    assert isinstance(again.model_factory("python:my_zoo:net")(), nn.Linear)


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        ("nothing", "has no 'nothing'"),
        ("number", "not callable"),
        ("needs", "without arguments"),
        ("broken", "KeyError"),
        ("broken_inside", r"broken_inside\(\) failed: TypeError"),
        ("not_a_net", "gave str, not a torch.nn.Module"),
        ("getcwd", "not defined by my_zoo itself"),
        ("TensorDataset", "not defined by my_zoo itself"),
    ],
)
def test_what_is_wrong_with_a_python_factory(zoo: Path, factory: str, words: str) -> None:
    sources = Sources(allow=("python:my_zoo",), code_paths=(zoo,))
    with pytest.raises(SourceError, match=words):
        sources.model_factory(f"python:my_zoo:{factory}")()


def test_a_module_that_fails_to_import_or_is_not_there(zoo: Path) -> None:
    sources = Sources(allow=("python:*",), code_paths=(zoo,))
    with pytest.raises(SourceError, match="import failed: RuntimeError: cannot start"):
        sources.model_factory("python:sick_zoo:net")()
    with pytest.raises(SourceError, match=r"no module named 'nowhere_zoo'.*--code-path"):
        sources.check_model("python:nowhere_zoo:net")


def test_checking_a_python_source_runs_none_of_it(zoo: Path) -> None:
    Sources(allow=("python:*",), code_paths=(zoo,)).check_model("python:sick_zoo:net")
    assert "sick_zoo" not in sys.modules


def test_patterns_allow_a_module_one_factory_or_everything(zoo: Path) -> None:
    one = Sources(allow=("python:my_zoo:net",), code_paths=(zoo,))
    one.check_model("python:my_zoo:net")
    with pytest.raises(SourceError, match="not allowed"):
        one.check_model("python:my_zoo:needs")
    with pytest.raises(SourceError, match="not allowed"):
        one.check_data("python:my_zoo:data")
    every = Sources(allow=("python:*",), code_paths=(zoo,))
    every.check_data("python:my_zoo:data")
    # Named in full, or everything allowed: also what the module only imports.
    with pytest.raises(SourceError, match="gave str"):
        every.model_factory("python:my_zoo:getcwd")()


def test_a_code_path_cannot_stand_in_for_an_installed_package(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('hijacked')\n")
    code = (
        "import sys; from pathlib import Path; from service.sources import Sources\n"
        f"s = Sources(allow=('python:*',), code_paths=(Path({str(tmp_path)!r}),))\n"
        "s.check_model('python:json:loads'); import json; print(json.__file__); print(sys.path[-1])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    json_file, last = done.stdout.split()
    assert not json_file.startswith(str(tmp_path))
    assert last == str(tmp_path.resolve())


def test_digits_are_split_the_same_everywhere() -> None:
    bundle = Sources().data("digits")
    assert (len(bundle.train), len(bundle.test)) == (1442, 355)  # type: ignore[arg-type]
    image, label = bundle.train[0]
    assert image.shape == (1, 8, 8)
    assert image.dtype == torch.float32
    assert isinstance(label, int)
    images = bundle.train.images  # type: ignore[attr-defined]
    assert abs(float(images.mean())) < 0.01
    assert abs(float(images.std()) - 1) < 0.01
    test = torch.bincount(torch.tensor(bundle.test.targets))  # type: ignore[attr-defined]
    train = torch.bincount(torch.tensor(bundle.train.targets))  # type: ignore[attr-defined]
    assert len(test) == len(train) == 10
    assert ((test / (test + train) - 0.2).abs() < 0.01).all()


def test_data_of_a_python_factory(zoo: Path) -> None:
    sources = Sources(allow=("python:my_zoo",), code_paths=(zoo,))
    plain = sources.data("python:my_zoo:data")
    assert (plain.validation, plain.finetune, plain.evaluate) == (None, None, None)
    full = sources.data("python:my_zoo:data_full")
    assert len(full.validation) == 2  # type: ignore[arg-type]
    assert full.evaluate is not None


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        ("no_test", "gave no 'test' split"),
        ("no_train", "gave no 'train' split"),
        ("typo", "unknown split 'val'; known: train, test, validation"),
        ("empty", "'test' is empty"),
        ("uneven", "'finetune' has 4 examples and 'train' 5"),
        ("no_dict", "gave TensorDataset, not a dict"),
        ("no_length", "'train' has no length"),
        ("bad_metric", "'evaluate' is not callable"),
    ],
)
def test_what_is_wrong_with_a_data_factory(zoo: Path, factory: str, words: str) -> None:
    sources = Sources(allow=("python:my_zoo",), code_paths=(zoo,))
    with pytest.raises(DataError, match=words):
        sources.data(f"python:my_zoo:{factory}")


def _pictures(root: Path, split: str, *classes: str) -> None:
    for shade, name in enumerate(classes):
        (root / split / name).mkdir(parents=True)
        Image.new("L", (40, 30), 60 * shade).save(root / split / name / "one.png")


def test_an_image_folder(tmp_path: Path) -> None:
    _pictures(tmp_path, "train", "cat", "dog")
    _pictures(tmp_path, "val", "cat", "dog")
    sources = Sources(image_folders={"pets": tmp_path})
    bundle = sources.data("imagefolder:pets?size=16")
    image, label = bundle.train[1]
    assert image.shape == (3, 16, 16)
    assert label == 1
    assert bundle.validation is None
    _pictures(tmp_path, "test", "cat", "dog")
    assert sources.data("imagefolder:pets?size=16").validation is not None


def test_what_is_wrong_with_an_image_folder(tmp_path: Path) -> None:
    sources = Sources(image_folders={"pets": tmp_path, "gone": tmp_path / "gone"})
    with pytest.raises(DataError, match="gone"):
        sources.data("imagefolder:gone")
    with pytest.raises(DataError, match="no folder train/"):
        sources.data("imagefolder:pets")
    _pictures(tmp_path, "train", "cat", "dog")
    with pytest.raises(DataError, match="no folder test/"):
        sources.data("imagefolder:pets")
    _pictures(tmp_path, "test", "cat", "cow")
    with pytest.raises(DataError, match="different classes: cow, dog"):
        sources.data("imagefolder:pets")
    (tmp_path / "val").mkdir()
    with pytest.raises(DataError) as caught:
        Sources(image_folders={"pets": tmp_path}).data("imagefolder:pets")
    assert str(tmp_path) not in str(caught.value)


def test_torchvision_data_is_read_and_a_failed_download_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision import datasets

    class Fake:
        def __init__(self, root: str, train: bool, transform: object, download: bool) -> None:
            if not download:
                raise RuntimeError("not found")
            raise OSError("no network here")

    monkeypatch.setattr(datasets, "CIFAR10", Fake)
    sources = Sources(torchvision_root=tmp_path / "sets")
    sources.check_data("torchvision:CIFAR10")
    with pytest.raises(DataError, match="download failed: no network here"):
        sources.data("torchvision:CIFAR10")


def test_every_torchvision_set_we_name_exists() -> None:
    import inspect

    from torchvision import datasets

    from service.image_sets import TORCHVISION_SETS

    for name, known in TORCHVISION_SETS.items():
        parameters = inspect.signature(getattr(datasets, name)).parameters
        assert {known.splits[0], "transform", "download"} <= set(parameters), name


@needs_zoo
def test_the_zoo_as_an_operator_would_allow_it() -> None:
    before = list(sys.path)
    try:
        sources = Sources(allow=("python:cifar_zoo",), code_paths=(SHARED,))
        network = sources.model_factory("python:cifar_zoo:resnet20")()
        assert network.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
        sources.check_data("python:cifar_zoo:cifar10")
    finally:
        sys.path[:] = before
