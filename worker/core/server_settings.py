"""Settings of the HTTP server and of the chat bot's history."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, StringConstraints

from worker.core.setting_hints import Expected
from worker.core.setting_types import Count, Group, Positive, Seconds
from worker.core.units import MIB


class ServerSettings(Group):
    """Where the HTTP server listens, and who may use it."""

    heading = "HTTP server"

    host: str = Field("127.0.0.1", description="Address to listen on; `0.0.0.0` for all interfaces")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(8000, description="Port to listen on; 0: any free one")
    api_key: str = Field(
        "", repr=False, description="Comma-separated API keys. Without one the server only listens on this machine"
    )
    qpikey: str = Field("", repr=False, description="Another name of `API_KEY`, of an earlier service")
    auth: Annotated[Literal["on", "off"], BeforeValidator(str.lower)] = Field(
        "on", description="`off` lets the server listen anywhere without a key"
    )
    api_key_file: Path | None = Field(
        None,
        description="File with more API keys, one a line, optionally followed by their owner's name; it is read again "
        "when it changes. Keys with the same owner are one caller",
    )
    max_wrong_keys: Positive = Field(
        30,
        description="Max failed authentications per minute and address; after that the address can only authenticate "
        "with keys it has already used. Private addresses may be proxies: unless `TRUSTED_PROXIES` is set, valid keys "
        "are always accepted from them",
    )
    trusted_proxies: str = Field(
        "",
        description="Comma-separated addresses or networks of proxies whose `X-Forwarded-For` is believed; empty: none",
    )
    allowed_hosts: str = Field(
        "",
        description="Comma-separated `Host` names that are accepted, `*` for any. Empty: any if an API key is set, "
        "otherwise only `localhost`, `HOST` and IP addresses",
    )
    cors_origins: str = Field(
        "",
        description="Comma-separated origins whose pages may call the server, `*` for any. Empty: any if an API key "
        "is set, otherwise only its own",
    )
    playground: bool = Field(True, description="Serve a page to try the model at `/playground`")


class ServerLimits(Group):
    """How much the HTTP server accepts, of everybody and of each key."""

    heading = "HTTP server limits"

    max_requests: Positive = Field(
        512,
        description="Max concurrent requests; more are rejected with `QUEUE_FULL`. Limited to 3/8 of the connections; "
        "as many uploads may be in progress in addition",
    )
    max_requests_per_key: Positive | None = Field(
        None, description="Max concurrent requests of one key; unset: half of `MAX_REQUESTS` if there are several keys"
    )
    tokens_per_minute: Positive | None = Field(
        None,
        description="Tokens per minute and key, prompts and answers. They are counted when an answer ends, so a key "
        "can exceed them; then it gets `RATE_LIMITED` until the deficit is refilled. Unset: unlimited",
    )
    max_connections: Positive = Field(
        2048,
        description="Max connections, limited by the file descriptors available; a new one replaces the one that has "
        "been idle longest",
    )
    max_json_bytes: Positive = Field(64 * MIB, description="Max size of a JSON body")
    max_body_bytes: Positive = Field(256 * MIB, description="Max size of a form with a file")
    max_bodies_bytes: Positive = Field(
        1024 * MIB,
        description="Max total size of request bodies in memory, as received (parsed bodies take more); with several "
        "keys, each may use half of it",
    )
    head_timeout_s: Seconds = Field(10.0, description="Max seconds to receive a request's headers")
    body_timeout_s: Seconds = Field(
        30.0, description="Max seconds to receive a body, plus one for each 16 KiB received"
    )
    body_whole_s: Seconds = Field(300.0, description="Max seconds to receive a body, however large")
    send_timeout_s: Seconds = Field(
        60.0, description="Max seconds that a write to a client that does not read may block"
    )
    idle_timeout_s: Seconds = Field(75.0, description="Seconds that an idle connection is kept open (keep-alive)")


class BotSettings(Group):
    """What the chat bot of the `/api/chat` routes remembers, and when it answers."""

    heading = "Chat bot"

    history_url: Annotated[
        str,
        StringConstraints(pattern=r"^(memory://|sqlite:///.+|rediss?://.+)$"),
        Expected("memory://, sqlite:///path or redis://host:port/db"),
    ] = Field(
        "memory://",
        repr=False,
        description="Where conversations are stored: `memory://`, `sqlite:///relative/path`, "
        "`sqlite:////absolute/path`, or `redis://host:port/db`, which several workers can share",
    )
    history_ttl_s: Seconds = Field(86_400.0, description="Seconds after which a message is forgotten")
    history_turns: Positive = Field(20, description="Max messages of a conversation that are remembered")
    history_tokens: Positive = Field(4096, description="Max tokens of history in a prompt, images included")
    history_images: Count = Field(4, description="Max images of earlier messages in a prompt")
    history_mib: Positive = Field(
        256,
        description="Memory or disk for all conversations; the oldest messages are dropped. Redis has its own limit",
    )
    group_reply: Literal["always", "mention"] = Field(
        "always", description="Whether the bot answers every message of a group, or only those that mention its name"
    )
    bot_name: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)] = Field(
        "Qwen", description="The bot's name in groups"
    )
    bot_prompt: str = Field("", description="System prompt of the bot; empty: none")
