"""Settings of the model, the engine, jobs, the log and the platform: name, type, default and meaning."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from worker.core.setting_hints import Expected
from worker.core.setting_types import Count, Device, Group, ModelId, Positive, Revision, Seconds, Token, WebAddress
from worker.core.units import MIB

_DTYPES = {"fp32": "float32", "float": "float32", "bf16": "bfloat16", "fp16": "float16", "half": "float16"}


def _dtype(name: str) -> str:
    """A dtype by its usual short names, too."""
    return _DTYPES.get(name.lower(), name.lower())


class ModelSettings(Group):
    """Which model is served, where it is loaded from, and how."""

    heading = "Model"

    model_path: Path | None = Field(
        None,
        description="Checkpoint folder to serve; takes precedence over `MODEL_ID`. If neither is set: the model in "
        "the image, else the tiny demonstration model; a deployed worker only serves the latter if `MODEL_ID` names it",
    )
    model_id: ModelId | None = Field(
        None,
        description="Model to serve by its name on the Hugging Face Hub, such as `Qwen/Qwen3-VL-8B-Instruct`; "
        "searched for in the image, RunPod's model cache and the hub's cache. `tiny-qwen3-vl` is the demonstration "
        "model",
    )
    model_revision: Revision | None = Field(
        None,
        description="Branch, tag or commit of the model. Unset: `main`, or the newest snapshot in a cache. For a "
        "model inside the image, a commit hash is compared with the baked one; branches and tags are not checked",
    )
    model_name: str | None = Field(
        None,
        description="Name of the model in answers and in `/v1/models`; unset: the last part of `MODEL_ID`, or the "
        "folder's name. It does not choose the model",
    )
    hf_token: Token | None = Field(
        None, repr=False, description="Hugging Face token for private and gated models, used for downloads at the start"
    )
    hf_endpoint: WebAddress | None = Field(
        None, description="Address of a mirror of the Hugging Face Hub, for downloads at the start"
    )
    baked_models: Path = Field(Path("/models"), description="Folder of the image with the baked checkpoints")
    platform_cache: Path = Field(
        Path("/runpod-volume/huggingface-cache/hub"), description="Where RunPod mounts its cached models"
    )
    hub_cache: Annotated[Path, AfterValidator(Path.expanduser)] = Field(
        Path("~/.cache/huggingface/hub"),
        validate_default=True,
        description="The Hugging Face cache, which downloads go to; on a network volume, a folder below "
        "`/runpod-volume`",
    )
    check_hashes: bool = Field(
        False, description="Verify the SHA-256 of a baked model's files at every start, not only their sizes"
    )
    allow_download: bool = Field(False, description="Download the model at the start if it is found nowhere else")
    lazy_load: bool = Field(False, description="Load the model on the first request instead of at the start")
    device: Device = Field(
        "auto",
        description="`auto` (CUDA if available; a model too large for one GPU is spread over all of them, layer by "
        "layer, which is slow), `cpu`, `cuda` or `cuda:N`",
    )
    dtype: Annotated[Literal["auto", "float32", "bfloat16", "float16"], BeforeValidator(_dtype)] = Field(
        "auto", description="`auto` is the checkpoint's own; float32 on a CPU without instructions for that"
    )
    quantization: Annotated[
        Literal["none", "8bit", "4bit"],
        Expected("none, 8bit or 4bit; checkpoints that are quantized already need no setting"),
    ] = Field(
        "none",
        description="Quantize the weights to 8 or 4 bits at load with bitsandbytes, for GPUs with little memory; the "
        "image needs `--build-arg BITSANDBYTES=1` (docs/image.md)",
    )
    attention: Literal["auto", "sdpa", "flash_attention_2", "eager"] = Field(
        "auto",
        description="Attention kernels for prefill and the vision encoder; `auto` is FlashAttention 2 on CUDA if it "
        "is installed, else torch's SDPA",
    )
    model_code: Literal["auto", "native", "transformers"] = Field(
        "auto",
        description="Which implementation runs the model: `native` is this worker's own (Qwen3-VL, Qwen2.5-VL, "
        "Qwen2-VL), faster to start and to run; `transformers` is the library's; `auto` uses `native` where possible. "
        "`model_code` in responses says which one it was",
    )
    cuda_graphs: bool = Field(
        True,
        description="Capture decode steps as CUDA graphs (native model code only); they take some device memory",
    )
    max_model_len: Positive | None = Field(
        None,
        description="Max context length, prompt and answer together, in tokens. Unset: the longest at which four "
        "requests fit in memory; if that is below 8,192 tokens, at which two fit; below 2,048, one; never above the "
        "model's own limit (docs/models.md)",
    )


class EngineSettings(Group):
    """How many requests are decoded together, and the memory for them."""

    heading = "Engine"

    max_num_seqs: Positive | None = Field(
        None,
        description="Max concurrent sequences, decoded in one batch. Unset: 16; on a GPU up to 64, as many as find "
        "room for 2,048 tokens each",
    )
    max_queue: Positive = Field(
        256,
        description="Max requests that wait for the engine, in addition to `MAX_NUM_SEQS` running ones; more are "
        "rejected with `QUEUE_FULL`",
    )
    kv_cache_mib: Positive | None = Field(
        None,
        description="KV cache size. Unset: free device memory after loading the weights, minus `VISION_RESERVE_MIB` "
        "and the two caches below (on CPU a quarter of the available memory)",
    )
    vision_reserve_mib: Positive = Field(
        1536, description="Device memory kept free for the vision encoder and for activations of prefill"
    )
    prefill_chunk: Positive = Field(
        1024, description="Max prompt tokens computed between two decode steps (chunked prefill)"
    )
    feature_cache_mib: Count | None = Field(
        None,
        description="Vision-encoder output cache: images seen before are not encoded again; 0 turns it off. Unset: "
        "256; on a GPU 2 % of the free memory, up to 2,048",
    )
    prefix_cache_mib: Count | None = Field(
        None,
        description="Prefix cache: the KV cache of earlier prompts, so that a shared prefix is not computed twice; 0 "
        "turns it off. Unset: 512; on a GPU 8 % of the free memory, up to 8,192",
    )
    prefix_sharing: Literal["all", "caller", "off"] = Field(
        "caller",
        description="Which requests share the prefix cache and the vision-encoder output cache: `caller`: those with "
        "the same API key; `all`: all requests; `off`: none. Requests with different `cache_salt` never share",
    )
    engine_stuck_s: Seconds = Field(
        180.0,
        description="Seconds without progress after which the engine counts as hung: all its requests fail, and the "
        "worker exits to be replaced",
    )
    sampling_preset: Literal["checkpoint", "card"] = Field(
        "checkpoint",
        description="Default sampling parameters: those of the checkpoint's `generation_config.json`, or those that "
        "the family's model card recommends (docs/models.md)",
    )
    max_tokens_default: Positive = Field(512, description="`max_tokens` of requests that do not set it")
    max_tokens_thinking: Positive = Field(
        32_768,
        description="`max_tokens` of requests that do not set it and whose answer begins with thinking; less where the "
        "context or the KV cache has less",
    )
    loop_guard: bool = Field(
        True,
        description="End answers that repeat themselves for ever (`finish_reason` `repetition`); a request's "
        "`loop_guard` takes precedence",
    )
    prepare_threads: Positive = Field(4, description="Threads that build prompts: chat template, tokenizer, patches")


class JobSettings(Group):
    """How long a request may take, and how its answer is delivered."""

    heading = "Jobs and answers"

    concurrency: Positive | None = Field(
        None,
        description="Max jobs taken from RunPod at once; above `MAX_NUM_SEQS`, so that media of waiting jobs is "
        "fetched while the GPU works. Unset: three times `MAX_NUM_SEQS`; 48 with `LAZY_LOAD`",
    )
    stream_interval_ms: Count = Field(
        100,
        description="Minimum time between two chunks of a stream; it grows up to five times in long responses. The "
        "first and last chunks are sent immediately",
    )
    max_job_s: Seconds = Field(
        570.0,
        description="Max seconds of a job; then the text so far is the answer, with `finish_reason` `time`. Keep it "
        "below the endpoint's execution timeout",
    )
    drain_s: Seconds = Field(20.0, description="Seconds that running requests get to finish at shutdown (SIGTERM)")
    progress_after_s: Seconds = Field(
        3.0, description="Seconds without output after which a job's phase is reported to RunPod as progress"
    )
    late_jobs_s: Seconds = Field(
        20.0, description="Seconds to finish jobs that RunPod hands over while the worker is shutting down"
    )
    gpu_usd_per_second: Annotated[float, Field(gt=0, le=1000)] | None = Field(
        None, description="Price of a second of this worker in US dollars; with it, answers say what they cost"
    )
    max_result_bytes: Positive = Field(
        15 * MIB, description="Max size of an answer, or of all chunks of a stream; beyond it `RESULT_TOO_LARGE`"
    )
    max_chunk_bytes: Positive = Field(900_000, description="Max size of one chunk of a stream")


class LogSettings(Group):
    """What is logged, and in which form."""

    heading = "Logging"

    log_level: Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"], BeforeValidator(str.upper)] = Field(
        "INFO", description="Least severe level logged"
    )
    log_format: Annotated[Literal["auto", "json", "text"], BeforeValidator(str.lower)] = Field(
        "auto", description="`json`: one JSON object per line; `auto`: `json` on RunPod, `text` elsewhere"
    )
    log_prompts: bool = Field(
        False, description="Log the text of requests (never media). Off, no content of requests reaches the log"
    )
    runpod_log_level: Annotated[
        Literal["NOTSET", "TRACE", "DEBUG", "INFO", "WARN", "ERROR"], BeforeValidator(str.upper)
    ] = Field("INFO", description="Log level of RunPod's SDK; at `DEBUG` it logs inputs and outputs")


class PlatformSettings(Group):
    """Set by RunPod, not by you."""

    heading = "Set by the platform"

    runpod_webhook_get_job: str | None = Field(
        None, description="Set on queue-based endpoints: jobs are taken from this address"
    )
    runpod_endpoint_id: str | None = Field(None, description="Set on every serverless worker")
