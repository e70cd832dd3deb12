"""Fetching the data sets that torchvision can fetch, where `data.download` asks for it and there is a network."""

from __future__ import annotations

from pathlib import Path
from urllib.error import URLError

from prunnet.config.recipe import DataConfig
from prunnet.errors import DataError


def fetched(config: DataConfig, name: str, folder: str) -> None:
    """Makes sure that ROOT/`folder` is there, by torchvision's data set `name`; DataError where that cannot be done."""
    if not config.download or not config.root or (Path(config.root) / folder).exists():
        return
    import torchvision.datasets

    try:
        parts = ({"background": True}, {"background": False}) if name == "Omniglot" else ({},)
        for arguments in parts:
            getattr(torchvision.datasets, name)(config.root, download=True, **arguments)
    except (OSError, URLError, RuntimeError) as error:
        raise DataError(
            f"data.download: {name} cannot be fetched ({type(error).__name__}); without a network, put its files into "
            f"{str(Path(config.root) / folder)!r}"
        ) from None
