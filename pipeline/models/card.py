"""What the card of a model states: README.md beside its weights."""

from __future__ import annotations

from pathlib import Path

from pipeline.models import bundled


def languages(name: str) -> set[str]:
    """Return the languages that a model states to be made for, as codes of ISO 639-1.

    Empty where its card states none, or others than codes of two letters ("multilingual"), or cannot be had.

    Args:
        name: a folder, the name of a model on the hub, or bundled/NAME.
    """
    codes = {str(code).lower().replace("_", "-").partition("-")[0] for code in _stated_languages(name)}
    return codes if all(len(code) == 2 for code in codes) else set()


def _stated_languages(name: str) -> list[object]:
    import huggingface_hub
    import yaml

    place = bundled.resolve(name)
    try:
        if Path(place).is_dir():
            path = str(Path(place) / "README.md")
        else:
            # No request where the card is here already, as it is once the model has been loaded.
            cached = huggingface_hub.try_to_load_from_cache(place, "README.md")
            path = cached if isinstance(cached, str) else huggingface_hub.hf_hub_download(place, "README.md")
        stated = (huggingface_hub.metadata_load(path) or {}).get("language")
    except (OSError, ValueError, yaml.YAMLError):
        return []
    return stated if isinstance(stated, list) else [] if stated is None else [stated]
