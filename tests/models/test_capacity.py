"""What memory holds: the default of MAX_MODEL_LEN, by numbers of published models and real cards."""

import logging
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from transformers.models.qwen3_5.configuration_qwen3_5 import Qwen3_5TextConfig

from builder.models import CARDS, capacity, cards, checkpoints, kv_bytes, num_parameters
from builder.published import MODELS, config, model
from tests.models import published
from worker.checkpoint.memory import free_bytes
from worker.core.errors import ModelError
from worker.core.settings import MIB, Settings
from worker.engine.engine import continuous_parts
from worker.engine.scheduler import Scheduler
from worker.models import capacity as capacity_of_worker
from worker.models.capacity import Capacity, fitting_len, sizes_for
from worker.models.families import FAMILIES
from worker.models.kv_pools import KVPools
from worker.models.kv_widths import ARENA, POOLS, SMALLEST_WIDTH, token_bytes
from worker.models.loading import load
from worker.models.native.shapes import read
from worker.models.sizes import Sizes, log_sizes, sizes_on_gpu

L4 = CARDS[1]
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("name", "gib"),
    [
        ("Qwen3-VL-2B-Instruct", 4_255_140_312 / 2**30),  # of the file; of the others what the index says
        ("Qwen3-VL-8B-Instruct", 17_534_247_392 / 2**30),
        ("Qwen2.5-VL-7B-Instruct", 16_584_333_312 / 2**30),
    ],
)
def test_parameters_are_those_of_the_published_weights(name: str, gib: float) -> None:
    assert num_parameters(model(name)) * 2 / 2**30 == pytest.approx(gib, rel=1e-3)


def test_an_8b_starts_on_24_gb_and_answers_several_at_once() -> None:
    """Its own limit of 262,144 tokens alone would be 36 GiB of keys and values."""
    found = capacity(model("Qwen3-VL-8B-Instruct"), L4)
    assert found is not None
    room, _ = found
    assert (room.limit, room.model_len) == (262_144, 8_192)
    assert room.at_once(room.model_len) >= 2
    assert room.at_once(2_048) >= 8


@pytest.mark.parametrize("of", MODELS, ids=lambda of: of.name)
def test_the_default_fits_every_card_that_the_weights_fit(of: published.PublishedModel) -> None:
    rooms = [None if (found := capacity(of, card)) is None else found[0] for card in CARDS]
    fitting = [room for room in rooms if room is not None]
    assert [room is not None for room in rooms] == sorted(room is not None for room in rooms)
    for room in fitting:
        assert SMALLEST_WIDTH <= room.model_len <= of.context
        assert room.holds(room.model_len, 1)
        assert room.model_len < 8_192 or room.model_len == of.context or room.at_once(room.model_len) >= 2
    assert all(one.model_len <= other.model_len for one, other in pairwise(fitting))


@pytest.mark.parametrize(("tokens", "length", "at_once"), [
    (5 * 8_192, 8_192, 4), (5 * 8_192 - 1, 8_192, 2), (3 * 2_048, 2_048, 2), (3 * 2_048 - 1, 2_048, 1),
    (10**9, 100_000, 4_096), (2 * 256, 256, 1),
])  # fmt: skip
def test_four_at_once_or_two_or_one(tokens: int, length: int, at_once: int) -> None:
    room = Capacity(tokens * 1_000, 1_000, 100_000, POOLS)
    assert room.model_len == length
    assert min(room.at_once(length), 4_096) == at_once


def test_more_memory_is_never_a_shorter_default() -> None:
    lengths = [Capacity(tokens * 1_000, 1_000, 200_000, POOLS).model_len for tokens in range(512, 2_000_000, 997)]
    assert lengths == sorted(lengths)
    assert len(set(lengths)) > 15


def test_the_engine_has_the_room_that_the_default_was_chosen_by(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(Settings(device="cpu"))
    assert model.sizes is not None
    room = model.sizes.room
    monkeypatch.setattr(capacity_of_worker, "free_bytes", lambda _: 4 * MIB)  # somebody else took the rest
    assert continuous_parts(model, Settings(device="cpu")).scheduler.max_bytes == room
    assert continuous_parts(model, Settings(device="cpu", kv_cache_mib=7)).scheduler.max_bytes == 7 * MIB
    assert continuous_parts(replace(model, sizes=None), Settings(device="cpu")).scheduler.max_bytes == MIB


def test_the_document_shows_the_tables() -> None:
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    assert checkpoints() in page
    assert cards() in page


def test_the_scheduler_counts_the_same() -> None:
    room = Capacity(100 * MIB, 3_000, 8_192, POOLS)
    scheduler: Scheduler = Scheduler(
        KVPools(2, 3_000, torch.device("cpu"), torch.float32, lambda _: None), 16, 100 * MIB, 3_000
    )
    for length in (256, 300, 5_000):
        for count in (1, 3, 4, 5):
            assert room.holds(length, count) == (scheduler.bytes_alone(length, length, count) <= scheduler.max_bytes)


def test_the_log_says_the_numbers(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    room = Capacity(3_000 * MIB, 147_456, 262_144, POOLS)
    assert fitting_len(Settings(), room, 16) == 6_144
    assert (
        "context length 6,144 tokens (by memory, the model's limit is 262,144); the KV cache (3,000 MiB) holds "
        "21,333 tokens: 2 concurrent requests of that length, or 8 of 2,048 tokens; MAX_NUM_SEQS allows 16"
        in caplog.text
    )
    assert fitting_len(Settings(max_model_len=20_000), room, 16) == 20_000
    assert "the KV cache does not hold MAX_MODEL_LEN tokens" in caplog.text
    with pytest.raises(
        ModelError, match=r"30 MiB are left for the KV cache, enough for 213 tokens\. Use a smaller model"
    ):
        fitting_len(Settings(), Capacity(30 * MIB, 147_456, 262_144, POOLS), 16)


def test_the_line_of_the_log_in_the_documents_is_the_one_that_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    found = capacity(model("Qwen3-VL-4B-Instruct"), next(card for card in CARDS if "4090" in card.name))
    assert found is not None
    fitting_len(Settings(), *found)
    assert caplog.messages[0] in (ROOT / "docs" / "options.md").read_text(encoding="utf-8")


def test_the_readmes_table_is_what_is_computed() -> None:
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    header, _, *rows = page[page.index("| model | 16 GB") :].split("\n\n")[0].splitlines()
    names = {"16 GB": "A4000", "24 GB (RTX 4090)": "4090", "48 GB": "L40S", "80 GB": "A100"}
    columns = [next(card for card in CARDS if names[cell.strip()] in card.name) for cell in header.split("|")[2:-1]]
    assert len(rows) == 6
    for row in rows:
        name, *cells = (cell.strip() for cell in row.split("|")[1:-1])
        of = next(of for of in MODELS if of.name in (name, f"{name}-Instruct"))
        for card, cell in zip(columns, cells, strict=True):
            found = capacity(of, card)
            fits = "-"
            if found is not None:
                room, most = found
                fits = f"{room.model_len:,} × {min(most, room.at_once(room.model_len))}"
            assert cell == fits, (name, card.name)


def test_a_start_takes_what_memory_holds() -> None:
    whole, small = (load(Settings(device="cpu", kv_cache_mib=mib)) for mib in (None, 10))
    limit = whole.spec.max_model_len
    expected = Capacity(10 * MIB, small.runner.bytes_per_token, limit, POOLS).model_len
    assert small.spec.max_model_len == small.info().max_model_len == expected < limit


def test_the_bytes_of_a_token_are_those_of_the_models_own_shapes() -> None:
    for of in MODELS:
        native = FAMILIES[of.kind].native
        if native is not None:
            text, _ = read(config(of), native.layout)
            assert kv_bytes(of) == token_bytes(text.layers, text.kv_heads, text.head_dim, 2)
            continue
        text = Qwen3_5TextConfig(**config(of)["text_config"])
        attending = sum(kind == "full_attention" for kind in text.layer_types)
        assert kv_bytes(of) == token_bytes(attending, text.num_key_value_heads, text.head_dim, 2)


def test_what_is_free_on_a_gpu_is_less_the_reserve() -> None:
    settings = Settings(vision_reserve_mib=1000, feature_cache_mib=100, prefix_cache_mib=24)
    assert sizes_on_gpu(settings, 2_000 * MIB, 1_000, ARENA).room == 876 * MIB
    assert sizes_on_gpu(settings, 100 * MIB, 1_000, ARENA).room == 0
    assert sizes_for(Settings(), torch.device("cpu"), 1, 1_000, POOLS).room <= free_bytes(torch.device("cpu")) // 3


@pytest.mark.parametrize(("free_gib", "rows", "prefixes", "features"), [
    (1, 16, 512, 256), (8, 16, 512, 256), (12, 32, 512, 256), (20, 56, 1_024, 256), (60, 64, 4_608, 1_024),
    (120, 64, 8_192, 2_048),
])  # fmt: skip
def test_a_gpu_with_more_memory_decodes_more_at_once_and_keeps_more(
    free_gib: int, rows: int, prefixes: int, features: int, caplog: pytest.LogCaptureFixture
) -> None:
    """An 8B model's tokens of 147,456 bytes; what a setting says is not changed by memory."""
    caplog.set_level(logging.INFO)
    sizes = sizes_on_gpu(Settings(), free_gib * 1024 * MIB, 147_456, ARENA)
    assert (sizes.max_num_seqs, sizes.prefix_cache_mib, sizes.feature_cache_mib) == (rows, prefixes, features)
    assert sizes.concurrency == 3 * rows
    both = sizes_on_gpu(Settings(kv_cache_mib=20_000), 2**36, 320 * 1024, ARENA, num_devices=2)
    assert (both.max_num_seqs, both.room) == (24, 20_000 * MIB)
    given = Settings(max_num_seqs=5, prefix_cache_mib=0, feature_cache_mib=7, kv_cache_mib=100)
    sizes = sizes_on_gpu(given, free_gib * 1024 * MIB, 147_456, ARENA)
    assert sizes == sizes.under(given) == Sizes(5, 0, 7, 100 * MIB)
    log_sizes(Settings(kv_cache_mib=100), sizes)
    assert "MAX_NUM_SEQS 5 (by memory), CONCURRENCY 15 (by memory), KV_CACHE_MIB 100, " in caplog.text
