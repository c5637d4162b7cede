"""Data: text, documents, tables and images altered, and read for the task that they belong to."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from random import Random

from compressor.data.reading import DataRequest, load_data, model_batches
from tests.fuzz.mutations import alter_bytes, alter_entry, alter_json, alter_text, as_text, is_plain, odd, write
from tests.fuzz.watch import READS
from tests.pico import IMAGE, make_pico, sample_text

_IMAGES = 3


class Data:
    """Makes data and reads them."""

    codes = (3, 5)
    allowed = (READS,)  # the user names the file, which may be a link

    def __init__(self, scratch: Path) -> None:
        """Make the models whose tokenizer or processor reads the data, and the data as they should be."""
        home = scratch / "data"
        self._models = {
            "text-generation": make_pico("llama", home / "llama", num_hidden_layers=1),
            "feature-extraction": make_pico("bert", home / "bert", num_hidden_layers=1),
            "text-classification": make_pico(
                "bert", home / "labels", num_hidden_layers=1, architecture="BertForSequenceClassification"
            ),
            "image-classification": make_pico("vit", home / "vit", num_hidden_layers=1),
        }
        lines = sample_text(24).splitlines()
        pairs = [f"{a},{b},{i / 4}" for i, (a, b) in enumerate(zip(lines, reversed(lines), strict=True))]
        self._sources: list[tuple[str, str, str]] = [
            ("text-generation", "text.txt", "\n".join(lines)),
            ("text-generation", "text.jsonl", "\n".join(json.dumps({"text": line}) for line in lines)),
            ("feature-extraction", "pairs.csv", "\n".join(["sentence1,sentence2,score", *pairs])),
            ("feature-extraction", "plain.txt", "\n".join(lines)),
            ("feature-extraction", "pairs.tsv", "\n".join(pairs).replace(",", "\t")),
            ("text-classification", "labels.csv", "\n".join(["text,label", *(f"{t},{len(t) % 2}" for t in lines)])),
        ]
        self._images = _write_images(home / "images")

    def attempt(self, rng: Random, folder: Path) -> str:
        """Read altered data to the last batch; raises what that raises."""
        choice = rng.randrange(len(self._sources) + 2)
        if choice < len(self._sources):
            task, name, text = self._sources[choice]
            path = folder / name
            write(path, text)
            for _ in range(rng.choice((1, 1, 3))):
                _alter(rng, path)
        else:
            task, path = "image-classification", Path(shutil.copytree(self._images, folder / "images"))
            for _ in range(rng.choice((1, 1, 2))):
                _alter(rng, rng.choice(sorted(path.iterdir())))
        samples = rng.choice((None, 1, 2, 3))
        purpose = rng.choice(("calibration", "evaluation"))
        request = DataRequest(str(path), (), samples, rng.choice((1, 8, 16)), 0, purpose)  # type: ignore[arg-type]
        data = load_data(request, task, self._models[task])
        for _ in model_batches(data):
            pass
        return "accepted"


def _write_images(folder: Path) -> Path:
    """Write a few images and the table of their labels."""
    from PIL import Image

    folder.mkdir(parents=True)
    rng = Random(0)
    for index, name in enumerate(("a.png", "b.jpg", "c.bmp")):
        side = IMAGE + index
        Image.frombytes("RGB", (side, side), rng.randbytes(3 * side * side)).save(folder / name)
    (folder / "labels.csv").write_text("file,label\na.png,0\nb.jpg,1\nc.bmp,2\n")
    return folder


def _alter(rng: Random, path: Path) -> None:
    way = rng.random()
    if way < 0.08 or not is_plain(path):
        alter_entry(rng, path)
    elif path.suffix in (".png", ".jpg", ".bmp") or way < 0.35:
        path.write_bytes(alter_bytes(rng, path.read_bytes()))
    elif path.suffix == ".jsonl" and way < 0.7:
        lines = path.read_bytes().decode("utf-8", "surrogateescape").split("\n")
        at = rng.randrange(len(lines))
        try:
            lines[at] = alter_json(rng, lines[at])
        except (ValueError, RecursionError):  # it was altered before
            lines[at] = as_text(odd(rng))
        write(path, "\n".join(lines))
    else:
        write(path, alter_text(rng, path.read_bytes().decode("utf-8", "surrogateescape")))
