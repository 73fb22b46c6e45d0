"""What to do instead of a route that nobody has: those of other APIs are told apart from slips."""

import difflib
from collections.abc import Iterable

from worker.core.errors import RouteUnknown

_NO = "not served by this model, which answers in words about texts, images and videos"
# What to do, by the beginnings of paths.
_INSTEAD = {
    "not served yet: POST /tokenize counts the tokens of messages": ("/v1/chat/completions/estimate",),
    "a job cannot ask for it: GET the endpoint's own /health, or the HTTP server's": (
        *("/health", "/ping", "/metrics", "/version", "/load"),
    ),
    f"embeddings are {_NO}": ("/v1/embeddings", "/embeddings"),
    f"scores and rankings are {_NO}": ("/v1/rerank", "/v2/rerank", "/rerank", "/v1/score", "/score", "/pooling"),
    f"moderation and classes are {_NO}: ask for choice": ("/v1/moderations", "/classify"),
    f"audio is {_NO}": ("/v1/audio", "/v1/realtime"),
    f"pictures and films are not made here: to ask about one, POST /v1/chat/completions; making is {_NO}": (
        "/v1/images",
        "/v1/videos",
    ),
    f"training is {_NO}": ("/v1/fine_tuning",),
    "files are not kept here: send them within each request": ("/v1/files", "/v1/uploads", "/v1/vector_stores"),
    "batches are not kept here: send each request as a job of its own": ("/v1/batches", "/v1/messages/batches"),
    "nothing is kept here: send the whole conversation with each request": (
        *("/v1/assistants", "/v1/threads", "/v1/conversations", "/v1/responses", "/v1/chat/completions"),
    ),
    "write POST /v1/messages": ("/v1/complete",),
    "decode the ids with the model's own tokenizer": ("/detokenize",),
    "Ollama's API is not served: use its clients' OpenAI mode, POST /v1/chat/completions": (
        *("/api/chat", "/api/generate", "/api/tags", "/api/show", "/api/embed", "/api/embeddings"),
    ),
}
_ALIKE = 0.8  # how much alike a path and a route are, from 0 to 1, for one to be a slip of the other
_MAX_COMPARED = 128  # characters of a path


def no_route(path: str, routes: Iterable[str], where: str | None = None) -> RouteUnknown:
    """The error for a path that no dialect has. routes: those that there are; where: the field that names it."""
    for instead, beginnings in _INSTEAD.items():
        if any(path == begin or path.startswith(f"{begin}/") for begin in beginnings):
            return RouteUnknown(where=where, detail=instead)
    known, path = sorted(routes), path[:_MAX_COMPARED]
    found = [route for route in known if len(path) > 1 and (route.endswith(path) or path.endswith(route))]
    found = found or difflib.get_close_matches(path, known, n=1, cutoff=_ALIKE)
    return RouteUnknown(where=where, detail=f"did you mean {found[0]}?" if found else "GET / lists the routes")
