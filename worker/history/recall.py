"""A bot's message answered as part of its conversation: remembered, put behind what was said before, and replied to."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

from worker.core.contract import ChatRequest, ConversationRef, Done, Event, Media, Message, Piece, Text, Upload
from worker.core.engine_protocol import Engine
from worker.core.errors import MediaError, PromptTooLong
from worker.core.media_protocol import MediaOpener, with_opened
from worker.core.opened import Opened
from worker.core.settings import Settings
from worker.history.history import History
from worker.history.store import Turn, fitting_turns

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Remembered:
    """A message that is remembered. request: it alone, behind the bot's system message, with its media opened and its
    `tokens`; turn_id: what a reply to it belongs to; earlier: what was said before."""

    request: ChatRequest
    media: tuple[Opened, ...]
    tokens: int
    turn_id: int
    earlier: Sequence[Turn]


def owned(conversation: ConversationRef, caller: str, cache_salt: str) -> ConversationRef:
    """The conversation as this caller alone can name it."""
    owner = hashlib.blake2b(f"{caller}\0{cache_salt}".encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
    return conversation.model_copy(update={"key": f"{owner}/{conversation.key}"})


class Recall:
    """The conversations of one worker's bot."""

    def __init__(self, history: History, engine: Engine, opener: MediaOpener, settings: Settings) -> None:
        self._history, self._engine, self._opener, self._settings = history, engine, opener, settings

    def is_addressed(self, conversation: ConversationRef) -> bool:
        """Whether a message is one that the bot answers."""
        is_named = self._settings.bot_name.casefold() in conversation.content.casefold()
        return not conversation.is_group or self._settings.group_reply == "always" or is_named

    async def remember(self, request: ChatRequest, conversation: ConversationRef) -> Remembered:
        """Keep a message. Raises MediaError, PromptTooLong: then nothing is remembered."""
        [message] = request.messages
        async with self._history.in_order(conversation.key):
            # What is remembered must open later too: its bytes are read once, opened, and only then kept.
            images = await self._opener.read(request.media)
            message = _with_uploads(message, images)
            alone = request.model_copy(update={"messages": (*self._system_message(), message)})
            _, media = with_opened(alone, await self._opener.open(alone.media))
            counts = await self._engine.count_tokens(alone, media)
            if counts.prompt_tokens > self._room(request):
                detail = f"the message alone has {counts.prompt_tokens} tokens, limit {self._room(request)}"
                raise PromptTooLong(detail=detail)
            text = "".join(part.text for part in message.parts if isinstance(part, Text))
            image_tokens = [item.tokens for item in counts.media]
            words = counts.prompt_tokens - sum(image_tokens)
            turn_id, earlier = await self._history.add(
                conversation.key, text, words, images, image_tokens, conversation.at
            )
            return Remembered(alone, media, counts.prompt_tokens, turn_id, earlier)

    async def with_history(self, remembered: Remembered) -> tuple[ChatRequest, tuple[Opened, ...]]:
        """A message behind as much of what was said before as there is room for, with all media opened."""
        alone, media = remembered.request, remembered.media
        room = self._room(alone)
        turns = self._fitting(remembered, room)
        *system, message = alone.messages
        while turns:
            earlier = await self._history.messages(turns)
            whole = alone.model_copy(update={"messages": (*system, *earlier, message)})
            try:
                _, opened = with_opened(whole, await self._opener.open(whole.media[: len(whole.media) - len(media)]))
                if (await self._engine.count_tokens(whole, (*opened, *media))).prompt_tokens <= room:
                    return whole, (*opened, *media)
            except MediaError as error:
                log.warning("the history has pictures that cannot be opened again: %s", error.code)
                return alone, media
            turns = turns[1 + len(turns) // 8 :]
        return alone, media

    def answering(self, conversation: ConversationRef, remembered: Remembered) -> "Answering":
        """A context in which the message is answered: where that fails, the message is forgotten, since whoever sent it
        is told, and sends it again."""
        return Answering(self._history, conversation.key, remembered.turn_id)

    def _system_message(self) -> tuple[Message, ...]:
        prompt = self._settings.bot_prompt
        return (Message(role="system", parts=(Text(text=prompt),)),) if prompt else ()

    def _fitting(self, remembered: Remembered, room: int) -> list[Turn]:
        settings = self._settings
        num_images = min(settings.history_images, settings.max_images - len(remembered.request.media))
        max_tokens = min(settings.history_tokens, room - remembered.tokens)
        return fitting_turns(remembered.earlier, settings.history_turns, max_tokens, num_images)

    def _room(self, request: ChatRequest) -> int:
        """Tokens that a prompt may have beside the request's answer."""
        return self._engine.info.max_model_len - (request.sampling.max_tokens or 0)


class Answering:
    """See `Recall.answering`."""

    def __init__(self, history: History, key: str, turn_id: int) -> None:
        self._history, self._key, self._turn_id = history, key, turn_id
        self._text: list[str] = []

    async def feed(self, event: Event) -> None:
        """The answer's next event; its end is when it is remembered."""
        match event:
            case Piece():
                if event.index == 0:
                    self._text.append(event.text)
            case Done():
                tokens = event.usage.completion_tokens
                await self._history.reply(self._key, self._turn_id, "".join(self._text), tokens)

    async def __aenter__(self) -> "Answering":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception):  # not where the client has left: the message was said all the same
            await self._history.forget(self._key, self._turn_id)


def _with_uploads(message: Message, images: Sequence[bytes]) -> Message:
    """The message, its pictures as the files that were read."""
    files = iter([Upload(data=image) for image in images])
    parts = tuple(
        part.model_copy(update={"source": next(files)}) if isinstance(part, Media) else part for part in message.parts
    )
    return message.model_copy(update={"parts": parts})
