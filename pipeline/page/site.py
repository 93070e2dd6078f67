"""Put the tabs together, and serve them in such a way that nothing is sent elsewhere."""

from __future__ import annotations

import hmac
import ipaddress
import os
from pathlib import Path
from typing import Any

# Nothing is sent to Gradio's makers, nor is it counted here what people do.
os.environ.update(
    GRADIO_ANALYTICS_ENABLED="False", GRADIO_ANALYTICS_MAX_EVENTS="1", GRADIO_ANALYTICS_CACHE_FREQUENCY=str(2**31)
)

import gradio as gr
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from config import Config
from pipeline.models.bundled import PREFIX
from pipeline.page import texts, views
from pipeline.page.assistant import Assistant
from pipeline.page.tabs import all_tabs
from pipeline.page.texts import LANGUAGES, language_of
from pipeline.run import files
from pipeline.run.errors import UserError
from pipeline.run.run_folder import RunFolder

PASSWORD_VARIABLE = "APP_PASSWORD"
FEWEST_PASSWORD_CHARS = 12
SYSTEM_FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")
FIXED_FONTS = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")
HERE = Path(__file__).parent
# What a browser refuses to load or send, whatever the page asks for: all that is not of this server.
POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; frame-src 'self'; form-action 'self'; base-uri 'self'; object-src 'none'; frame-ancestors 'self'"
)


class SecurityHeaders:
    """Sends what keeps the page to itself with every answer of the server."""

    def __init__(self, app: ASGIApp) -> None:
        """Wrap an application."""
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = {"content-security-policy": POLICY, "referrer-policy": "no-referrer"}
                message["headers"] += [(name.encode(), value.encode()) for name, value in headers.items()]
            await send(message)

        await self.app(scope, receive, send_with_headers)


def build(assistant: Assistant) -> tuple[gr.Blocks, gr.I18n]:
    """Return the page of a run, and its texts."""
    config = assistant.config
    kinds = all_tabs()
    for kind in kinds:
        texts.add(kind.texts)
    i18n = gr.I18n(**{language: vars(said) for language, said in LANGUAGES.items()})
    with gr.Blocks(title=f"{config.name} · {LANGUAGES['en'].title}", analytics_enabled=False) as page:
        header = gr.HTML()
        blocks, tabs = [], []
        for kind in kinds:
            with gr.Tab(i18n(kind.name), id=kind.name) as block:
                tabs.append(kind(assistant, i18n, block))
            blocks.append(block)
        for tab, own in zip(tabs, blocks, strict=True):
            tab.know_others([block for block in blocks if block is not own])

        def show(request: gr.Request) -> list[Any]:
            filled = [value for tab in tabs for value in tab.load(request)]
            return [header_html(config, language_of(request.headers)), *filled]

        quiet = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        shown = [component for tab in tabs for component in tab.filled_on_load]
        page.load(show, None, [header, *shown], **quiet)
    return page, i18n


def header_html(config: Config, language: str) -> str:
    """Return the head of the page: which preset, which model, how many records."""
    path = RunFolder.of(config).manifest_path("process_data")
    count = files.read_json(path)["metrics"]["records_written"] if path.exists() else None
    return views.render(
        "header", language, run=config.name, model=config.model.name.removeprefix(PREFIX), records=count
    )


def required_password(host: str) -> str | None:
    """Return the password of APP_PASSWORD, without which the page is open to this machine alone.

    Raises:
        UserError: other machines can reach `host`, and there is no good password.
    """
    password = os.environ.get(PASSWORD_VARIABLE)
    if password is None and not is_loopback(host):
        raise UserError(
            f"--host {host} lets other machines in, so the page needs a password: set {PASSWORD_VARIABLE} in the "
            f"environment, to {FEWEST_PASSWORD_CHARS} characters or more."
        )
    if password is not None and len(password) < FEWEST_PASSWORD_CHARS:
        raise UserError(f"{PASSWORD_VARIABLE} must have {FEWEST_PASSWORD_CHARS} characters or more.")
    return password


def is_loopback(host: str) -> bool:
    """Tell whether an address is one that only this machine reaches."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def launch(assistant: Assistant, host: str, port: int | None, open_browser: bool) -> gr.Blocks:
    """Serve the page of a run in the background and return it.

    Args:
        assistant: answers for the run.
        host: address to listen on.
        port: None takes the first free one from 7860 on.
        open_browser: open the page in the browser of this machine.

    Raises:
        UserError: the page would be open to others without a password, or the port is taken.
    """
    password = required_password(host)
    page, i18n = build(assistant)
    # A proxy of the company network must not be asked for an address of this machine.
    os.environ["NO_PROXY"] = ",".join(filter(None, [os.environ.get("NO_PROXY"), "localhost", "127.0.0.1", "::1"]))
    middleware = [Middleware(SecurityHeaders)]
    if is_loopback(host):
        # A page of the internet whose name was made to point to this machine is not answered (DNS rebinding).
        middleware.append(Middleware(TrustedHostMiddleware, allowed_hosts=["localhost", "127.0.0.1", "[::1]"]))
    try:
        page.launch(
            server_name=host,
            server_port=port,
            inbrowser=open_browser,
            auth=None if password is None else lambda _, typed: hmac.compare_digest(typed.encode(), password.encode()),
            auth_message="<br>".join(said.password_hint for said in LANGUAGES.values()),
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            ssr_mode=False,
            run_history=False,
            enable_monitoring=False,
            footer_links=[],
            i18n=i18n,
            theme=theme(),
            css_paths=HERE / "page.css",
            js=(HERE / "page.js").read_text(encoding="utf-8"),
            app_kwargs={"middleware": middleware},
        )
    except OSError as error:
        raise UserError(f"The page cannot listen on {host}, port {port or '7860 to 7959'}: {error}") from error
    return page


def theme() -> gr.themes.Base:
    """Return the colours and fonts: those of the system, none of the internet, and text that stands out enough."""
    return gr.themes.Default(
        primary_hue="blue", neutral_hue="slate", font=SYSTEM_FONTS, font_mono=FIXED_FONTS, radius_size="lg"
    ).set(
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_400",
        block_label_text_color="*neutral_600",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_400",
        input_placeholder_color="*neutral_500",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_700",
        color_accent="*primary_600",
    )
