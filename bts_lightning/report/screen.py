"""The one place that prints names: they appear as they are, whatever they hold."""

from typing import Any

from rich.console import Console
from rich.text import Text

from bts_lightning.errors import visible


class Screen(Console):
    """A console that takes no name for a style and sends no control character of one.

    A path, a case or a fault may hold `[red]`, `[/x]`, `:smile:` or what a terminal obeys. A style
    is given as `style=`.
    """

    def __init__(self, **settings: Any) -> None:
        usual = {"highlight": False, "soft_wrap": True}
        super().__init__(**{**usual, **settings}, markup=False, emoji=False)

    def render_str(self, text: str, **settings: Any) -> Text:
        """Make what is printed of a text, in tables too."""
        return super().render_str(visible(text), **settings)
