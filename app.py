"""Talk to the models in the browser.

Opens a page over whatever the stages have made for a preset: ask, search, compare, follow a training. Only this machine
reaches it; --host lets others in, and then the environment variable APP_PASSWORD must hold a password.

    python app.py
"""

from __future__ import annotations

from dataclasses import dataclass

from config import Config
from pipeline.run.command_line import run_stage


@dataclass(frozen=True)
class AppOptions:
    """Options of the page."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 is every address of this machine, and demands a password in APP_PASSWORD."""
    port: int | None = None
    """Port to listen on; None takes the first free one from 7860 on."""
    open_browser: bool = True
    """Open the page in the browser of this machine."""


def run(config: Config, options: AppOptions) -> None:
    """Serve the page until Ctrl-C."""
    from pipeline.page import assistant, site

    page = site.launch(assistant.Assistant(config), options.host, options.port, options.open_browser)
    print(f"The page is at {page.local_url} (Ctrl-C ends it)", flush=True)
    page.block_thread()


def main() -> None:
    """Run the page from the command line."""
    run_stage("app", __doc__, run, AppOptions)


if __name__ == "__main__":
    main()
