"""Every setting, under its heading: name, type, default and meaning. `settings.py` reads them."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

MIB = 2**20

Device = Annotated[str, StringConstraints(pattern=r"^(auto|cpu|cuda(:\d+)?)$")]
Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Group(BaseModel):
    """Settings that belong together, under one heading of the table."""

    # Only `Settings` is ever validated: no time is spent on building its groups.
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    heading: ClassVar[str]


class ModelSettings(Group):
    """Which model is served, and how it is loaded."""

    heading = "Model"

    model_path: Path | None = Field(
        None,
        description="Checkpoint folder to serve; takes precedence over `MODEL_ID`. Neither: the model in the image, "
        "else the embedded tiny one",
    )
    model_id: Annotated[str, StringConstraints(pattern=r"^\w[\w.-]*/\w[\w.-]*$")] | None = Field(
        None,
        description="Model to serve by its name on the hub, as `Qwen/Qwen3-VL-8B-Instruct`: looked for in the image, "
        "the platform's cache and the hub's cache",
    )
    model_revision: Annotated[str, StringConstraints(pattern=r"^[\w.-]+$")] | None = Field(
        None,
        description="Branch, tag or commit of it; unset: `main`, or the newest that is there. "
        "A baked model is what was baked: a name of a branch or tag is not compared with it, another commit is not it",
    )
    model_name: str | None = Field(
        None, description="Name in answers and for the OpenAI route; unset takes the folder's"
    )
    baked_models: Path = Field(Path("/models"), description="Folder of the image whose folders are checkpoints")
    platform_cache: Path = Field(
        Path("/runpod-volume/huggingface-cache/hub"), description="Where the platform puts the models that it caches"
    )
    hub_cache: Annotated[Path, AfterValidator(Path.expanduser)] = Field(
        Path("~/.cache/huggingface/hub"), validate_default=True, description="The hub's own cache, where downloads go"
    )
    check_hashes: bool = Field(
        False, description="Compares the hashes of a baked model's files at every start, not only their sizes"
    )
    allow_download: bool = Field(False, description="Downloads the model at the start where it is nowhere else")
    lazy_load: bool = Field(False, description="Loads the model with the first request, not at the start")
    device: Device = Field(
        "auto",
        description="`auto` (CUDA where there is one; all GPUs where the model is larger than one, the slow way), "
        "`cpu`, `cuda` or `cuda:N`",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="`auto` is float32 on the CPU, on a GPU the checkpoint's own"
    )
    quantization: Literal["none", "8bit", "4bit"] = Field(
        "none", description="Weights in 8 or 4 bit by bitsandbytes, for small cards (docs/image.md)"
    )
    attention: Literal["auto", "sdpa", "flash_attention_2", "eager"] = Field(
        "auto",
        description="Attention over prompts and in the vision tower; `auto` is FlashAttention 2 on CUDA where "
        "it is installed, else torch's own",
    )
    model_code: Literal["auto", "native", "transformers"] = Field(
        "auto",
        description="Whose model code runs the model: `native` is this worker's own, quicker to start and to run, for "
        "Qwen3-VL, Qwen2.5-VL and Qwen2-VL; `auto` takes it where it can",
    )
    cuda_graphs: bool = Field(
        True,
        description="Record decode steps as CUDA graphs once the same rows have taken some, with the worker's own "
        "model code; they take some memory of the device",
    )
    max_model_len: Positive | None = Field(
        None,
        description="Most tokens of prompt + answer; unset: the longest at which four requests fit in memory, at most "
        "the model's own limit; below 8,192 tokens, at which two fit; below 2,048, one (docs/models.md)",
    )


class EngineSettings(Group):
    """How many requests are answered at once, and the memory for them."""

    heading = "Engine"

    max_num_seqs: Positive = Field(16, description="Sequences decoded at once")
    max_queue: Positive = Field(
        256, description="Requests that may wait for the engine; more are refused with QUEUE_FULL"
    )
    kv_cache_mib: Positive | None = Field(
        None,
        description="Memory for keys and values; unset: what is free after the weights, less the reserve below "
        "(on the CPU a quarter of what is free)",
    )
    vision_reserve_mib: Positive = Field(
        1536, description="Device memory kept free of keys and values for the vision tower and a prompt's activations"
    )
    prefill_chunk: Positive = Field(
        1024, description="Tokens of prompts computed between two tokens of running answers"
    )
    feature_cache_mib: Count = Field(
        256, description="Memory for what the vision tower said of pictures seen before; 0: none is kept"
    )
    prefix_cache_mib: Count = Field(
        512,
        description="Memory for keys and values of earlier prompts, so that a shared beginning is not computed "
        "twice; 0: none is kept",
    )
    prefix_sharing: Literal["all", "caller", "off"] = Field(
        "caller",
        description="Whose earlier prompts and pictures may make a request quicker: `caller`, those of the same key of "
        "the HTTP server; `all`, everybody's, where all keys are one user's; `off`, nobody's. Those with another "
        "`cache_salt` never",
    )
    engine_stuck_s: Seconds = Field(
        180.0,
        description="Seconds that one turn of the engine may take; a device that hangs longer has every job get its "
        "error and the worker ask to be replaced",
    )
    sampling_preset: Literal["checkpoint", "card"] = Field(
        "checkpoint",
        description="How tokens are chosen where a request does not say it: by the checkpoint's "
        "generation_config.json, or as the family's model cards advise (docs/models.md)",
    )
    max_tokens_default: Positive = Field(512, description="`max_tokens` where the request has none")
    prepare_threads: Positive = Field(4, description="Threads that decode pictures and build prompts")


class JobSettings(Group):
    """How long a request may take, and how its answer is delivered."""

    heading = "Jobs and answers"

    concurrency: Positive = Field(
        48,
        description="Jobs taken from the platform at once; more than `MAX_NUM_SEQS`, "
        "so that media is fetched while the device works",
    )
    stream_interval_ms: Count = Field(
        100,
        description="Least time between two chunks of a stream, which grows to five times as much in a long one; "
        "the first and the last do not wait",
    )
    max_job_s: Seconds = Field(
        570.0,
        description="Seconds from a job's arrival after which the text so far is its answer (`finish_reason` "
        "`time`); keep it below the endpoint's execution timeout",
    )
    drain_s: Seconds = Field(
        20.0, description="Seconds that running jobs may still take when the worker is told to stop"
    )
    progress_after_s: Seconds = Field(
        3.0, description="Seconds without a word after which a job's phases are told to the platform as progress"
    )
    late_jobs_s: Seconds = Field(
        20.0, description="Seconds to finish jobs that the platform handed over while the worker was being stopped"
    )
    max_result_bytes: Positive = Field(
        15 * MIB, description="Bytes of an answer, and of all chunks of a stream; more fails with RESULT_TOO_LARGE"
    )
    max_chunk_bytes: Positive = Field(900_000, description="Bytes of a chunk of a stream")


class LogSettings(Group):
    """What is logged."""

    heading = "Log"

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="Least severe level that is logged"
    )
    log_prompts: bool = Field(
        False, description="Logs the words of requests (never pictures); without it no content reaches the log"
    )
    runpod_log_level: Literal["NOTSET", "TRACE", "DEBUG", "INFO", "WARN", "ERROR"] = Field(
        "INFO", description="The same for the platform's SDK; at DEBUG it logs inputs and answers"
    )


class MediaSettings(Group):
    """What a request may show, and what fetching and decoding may cost."""

    heading = "Pictures and videos"

    max_images: Positive = Field(16, description="Pictures in a request")
    max_videos: Positive = Field(2, description="Videos in a request")
    max_frames: Positive = Field(
        256, le=768, description="Frames in a list that makes a video, and frames of a video file that are seen"
    )
    max_image_bytes: Positive = Field(20 * MIB, description="Bytes of a picture")
    max_job_bytes: Positive = Field(192 * MIB, description="Bytes of all media of a request")
    max_job_pixels: Positive = Field(
        400_000_000, description="Pixels of all pictures and frames of a request before they are resized"
    )
    max_image_pixels: Positive = Field(50_000_000, description="Pixels of a picture before it is resized")
    max_image_side: Positive = Field(16_384, description="Pixels of a picture's longer side")
    max_image_tokens: Positive = Field(
        1280, description="Tokens that a picture may become; larger ones are resized to it"
    )
    max_video_tokens: Positive = Field(
        16_384,
        description="Tokens that a video may become, at most half of what the model takes; larger ones are resized",
    )
    max_media_tokens: Positive | None = Field(
        None,
        description="Tokens of all pictures and videos of a request, known before they are decoded; unset: as many as "
        "the model takes",
    )
    max_video_bytes: Positive = Field(128 * MIB, description="Bytes of a video file")
    max_video_s: Seconds = Field(600.0, description="Seconds of a video file")
    max_video_packets: Positive = Field(36_000, description="Frames in a video file, seen or not")
    max_video_frame_pixels: Positive = Field(4096 * 2160, description="Pixels of a frame of a video file")
    max_video_side: Positive = Field(4096, description="Pixels of a frame's longer side")
    max_video_fps: Annotated[float, Field(gt=0, le=240)] = Field(
        8.0, description="Frames a second of a video file that are seen, at most"
    )
    media_isolate: Literal["auto", "thread", "process"] = Field(
        "auto",
        description="`process`: pictures and videos are decoded in child processes of limited memory, each of which a "
        "codec's crash or a time-out ends alone. `auto` is that on the platform and at the HTTP server, else `thread`",
    )
    max_fetches: Positive = Field(16, description="Addresses fetched at once, over all requests")
    decode_memory_bytes: Positive = Field(
        2048 * MIB,
        description="Memory of all pictures and videos: a quarter for their files, a half for decoders at work, a "
        "quarter for their pixels at the model's size until their requests end",
    )
    decode_timeout_s: Seconds = Field(10.0, description="Seconds to decode a picture")
    video_decode_timeout_s: Seconds = Field(60.0, description="Seconds to decode a video file")
    connect_timeout_s: Seconds = Field(5.0, description="Seconds to connect to an address")
    read_timeout_s: Seconds = Field(10.0, description="Seconds without a byte from an address")
    image_timeout_s: Seconds = Field(20.0, description="Seconds to fetch a picture, all in all")
    video_timeout_s: Seconds = Field(90.0, description="Seconds to fetch a video file, all in all")
    max_redirects: Count = Field(3, description="Redirects followed, each checked anew")
    media_allowed_domains: str = Field(
        "", description="Comma-separated domains (with their subdomains) that may be fetched; empty: any public one"
    )
    allowed_media_paths: str = Field(
        "",
        description="Colon-separated folders below which requests may name files as `file:///…`; empty: none may",
    )
    media_allow_loopback: bool = Field(
        False, description="Lets pictures come from this machine, on any port: for tests and local use only"
    )


class ServerSettings(Group):
    """Where the HTTP server listens, and what it takes."""

    heading = "HTTP server"

    host: str = Field("127.0.0.1", description="Address at which the HTTP server listens")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(8000, description="Port of the HTTP server; 0: any free one")
    api_key: str = Field(
        "",
        repr=False,
        description="Comma-separated keys of the HTTP server; without one it listens on this machine alone",
    )
    qpikey: str = Field("", repr=False, description="The same, under the name that an older service had")
    auth: Literal["on", "off"] = Field("on", description="`off` lets the HTTP server listen anywhere without a key")
    api_key_file: Path | None = Field(
        None,
        description="File with more keys, one a line, which is read again when it changes. Behind a key may stand the "
        "name of who has it: keys of one name are one caller",
    )
    max_wrong_keys: Positive = Field(
        30,
        description="Failed authentications a minute of an address; beyond them only keys that the address has used "
        "before are accepted. An address inside of a network may be a proxy's, so valid keys are accepted from it "
        "unless `TRUSTED_PROXIES` is set",
    )
    trusted_proxies: str = Field(
        "",
        description="Comma-separated addresses or networks of proxies whose `X-Forwarded-For` says where a request "
        "comes from; empty: nobody's",
    )
    allowed_hosts: str = Field(
        "",
        description="Comma-separated names by which the HTTP server is called, `*` for any. Empty: any with a key; "
        "without one `localhost`, `HOST` and addresses in numbers",
    )
    cors_origins: str = Field(
        "",
        description="Comma-separated origins whose pages may call the HTTP server, `*` for any. Empty: any with a key, "
        "without one its own alone",
    )
    max_connections: Positive = Field(
        2048,
        description="Connections of the HTTP server, at most what the limit of descriptors leaves; a newcomer takes "
        "the place of the one that has waited longest without a request",
    )
    head_timeout_s: Seconds = Field(10.0, description="Seconds for a request's line and headers at the HTTP server")
    idle_timeout_s: Seconds = Field(75.0, description="Seconds that a connection is kept between two requests")
    max_body_bytes: Positive = Field(256 * MIB, description="Bytes of a form with a file at the HTTP server")
    max_json_bytes: Positive = Field(64 * MIB, description="Bytes of a body in JSON at the HTTP server")
    max_bodies_bytes: Positive = Field(
        1024 * MIB,
        description="Bytes received of all requests that the HTTP server works on; what is made of them may take "
        "several times as much. Half of them for one of several keys",
    )
    body_timeout_s: Seconds = Field(
        30.0,
        description="Seconds to receive a body at the HTTP server, plus one for each 16 KiB received",
    )
    body_whole_s: Seconds = Field(300.0, description="Seconds for a whole body at the HTTP server, at any rate")
    send_timeout_s: Seconds = Field(
        60.0, description="Seconds that a client of the HTTP server may leave a part of its answer unread"
    )
    max_requests: Positive = Field(
        512,
        description="Concurrent requests of the HTTP server; more are refused with QUEUE_FULL. At most 3/8 of the "
        "connections; as many may be uploads, so that there is always a connection to evict",
    )
    max_requests_per_key: Positive | None = Field(
        None,
        description="Concurrent requests of one key; unset: all of `MAX_REQUESTS`, or half of them where there are "
        "several keys",
    )
    tokens_per_minute: Positive | None = Field(
        None,
        description="Tokens a minute of one key, of prompts and answers. They are known when an answer ends, so a key "
        "may exceed them; then it gets RATE_LIMITED until the deficit is refilled. Unset: any number",
    )
    playground: bool = Field(True, description="Serves a page to try the worker, `/playground`, at the HTTP server")


class BotSettings(Group):
    """What the bot remembers, and when it answers."""

    heading = "Chat bot"

    history_url: Annotated[str, StringConstraints(pattern=r"^(memory://|sqlite:///.+|rediss?://.+)$")] = Field(
        "memory://",
        repr=False,
        description="Where the bot's conversations are kept: `memory://`, `sqlite:///relative/path`, "
        "`sqlite:////absolute/path`, or `redis://host:port/db`, which several workers may share",
    )
    history_ttl_s: Seconds = Field(86_400.0, description="Seconds after which a message to the bot is forgotten")
    history_turns: Positive = Field(20, description="Messages of a conversation that the bot remembers")
    history_tokens: Positive = Field(
        4096, description="Tokens of earlier messages, pictures and replies that a prompt of the bot may begin with"
    )
    history_images: Count = Field(4, description="Pictures of earlier messages in a prompt of the bot")
    history_mib: Positive = Field(
        256, description="Memory or disk for all conversations; the oldest messages go first. Redis has its own limit"
    )
    group_reply: Literal["always", "mention"] = Field(
        "always", description="Whether the bot answers every message of a group, or those with its name in them"
    )
    bot_name: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)] = Field(
        "Qwen", description="The bot's name in groups"
    )
    bot_prompt: str = Field("", description="System message of the bot's conversations; empty: none")


class PlatformSettings(Group):
    """What the platform tells a worker."""

    heading = "Set by the platform"

    runpod_webhook_get_job: str | None = Field(
        None, description="Set by the platform; its presence means that jobs come from there"
    )
