"""Where W&B's server is and whether there is a key for it, without importing wandb."""

import configparser
import netrc
import os
from pathlib import Path
from urllib.parse import urlsplit

from bts_lightning.errors import UserError
from bts_lightning.files import expanded

# W&B's own servers, before its move and since.
_PUBLIC_HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")


def has_credentials() -> bool:
    """Look where wandb itself looks, without importing it or asking the network."""
    mode = os.environ.get("WANDB_MODE")
    if mode in ("offline", "disabled", "dryrun"):
        return False
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    address = os.environ.get("WANDB_BASE_URL") or _saved_address()
    hosts = (urlsplit(address).netloc,) if address else _PUBLIC_HOSTS
    file = os.environ.get("NETRC")
    try:
        known = netrc.netrc(expanded(file) if file else None)
    except (OSError, netrc.NetrcParseError):
        return False
    return any(known.authenticators(host) for host in hosts)


def check_server() -> None:
    """Refuse a server that a file in the current folder chooses: wandb would send the key there."""
    if os.environ.get("WANDB_BASE_URL") or not has_credentials():
        return
    here = Path(os.environ.get("WANDB_DIR") or ".")
    for file in (here / "wandb" / "settings", here / ".wandb" / "settings"):
        address = _address_in(file)
        if address is not None and address != _saved_address():
            raise UserError(
                f"{file} sends your W&B key to {address}; delete that line, or say that you mean "
                f"it: WANDB_BASE_URL={address}"
            )


def _saved_address() -> str | None:
    """Read where `wandb login --host` has written down a server."""
    folder = os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb"
    return _address_in(expanded(folder) / "settings")


def _address_in(file: Path) -> str | None:
    settings = configparser.ConfigParser(interpolation=None)
    try:
        settings.read(file)
    except (configparser.Error, OSError, UnicodeDecodeError):
        return None
    return settings.get("default", "base_url", fallback=None)
