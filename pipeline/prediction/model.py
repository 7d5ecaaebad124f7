"""The classifier that a job scores with: what transformers saved in a folder, and the engine that computes it."""

import json
from dataclasses import dataclass

from pipeline.errors import ConfigError
from pipeline.storage import Folder
from pipeline.students.engines import FILES, Engine, choose_engine
from pipeline.weights import pin_model


@dataclass(frozen=True)
class Model:
    """A classifier as the driver found it."""

    folder: Folder
    engine: Engine
    labels: tuple[str, ...]
    identity: str


def read_model(location: str, engine: Engine | None, gpus: float) -> Model:
    """Return the model in a folder.

    Raises:
        ConfigError: The folder holds no sequence classifier, or not what the engine needs.
    """
    model = Folder.at(location)
    with model.as_local("") as folder:
        if not folder.is_dir():
            raise ConfigError(f"the model {location} is no folder; give one that holds config.json and weights")
        identity = pin_model(str(folder), None).identity
        chosen = engine or choose_engine(folder, gpus)
        if gpus and chosen != "torch":
            raise ConfigError(f"engine {chosen} computes on the CPU; leave out --gpus, or choose --engine torch")
        if chosen != "torch" and not (folder / FILES[chosen]).is_file():
            raise ConfigError(f"engine {chosen} needs {FILES[chosen]} in {location}; choose --engine torch")
        config = json.loads((folder / "config.json").read_text())
    architectures = config.get("architectures") or []
    if not any(name.endswith("ForSequenceClassification") for name in architectures):
        raise ConfigError(f"{location} holds {architectures or 'no architecture'}; a sequence classifier is needed")
    names = config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}  # transformers leaves these two unsaid
    labels = tuple(names[str(index)] for index in range(len(names)))
    if len(labels) < 2 or len(set(labels)) < len(labels):
        raise ConfigError(f"{location} has the classes {list(labels)}; two or more with names of their own are needed")
    return Model(model, chosen, labels, identity)
