"""Files on the worker's own disk: only below the folders that the operator allows, wherever links lead."""

import os
from pathlib import Path

import pytest

from worker.core.errors import MediaError, MediaFetchFailed, MediaTooLarge, MediaUrlForbidden, MediaUrlInvalid
from worker.media.local import read


@pytest.fixture
def root(tmp_path: Path) -> Path:
    allowed = tmp_path / "allowed"
    (allowed / "deep").mkdir(parents=True)
    (allowed / "a picture.jpg").write_bytes(b"inside")
    (allowed / "deep" / "b.jpg").write_bytes(b"deeper")
    (tmp_path / "secret").write_bytes(b"outside")
    (tmp_path / "allowed-too").mkdir()
    (tmp_path / "allowed-too" / "c.jpg").write_bytes(b"outside")
    (allowed / "link").symlink_to(tmp_path / "secret")
    (allowed / "folder").symlink_to(tmp_path)
    (allowed / "circle").symlink_to(allowed / "circle")
    os.mkfifo(allowed / "pipe")
    return allowed


def test_what_lies_below_is_read(root: Path) -> None:
    assert read(f"file://{root}/a%20picture.jpg", (root,), 100) == b"inside"
    assert read(f"FILE://localhost{root}/deep/b.jpg", (Path("/nowhere"), root), 6) == b"deeper"
    assert read(f"file://{root}/deep/../deep/b.jpg", (root,), 100) == b"deeper"


REFUSED: dict[str, tuple[str, type[MediaError]]] = {
    "outside": ("file://{root}/../secret", MediaUrlForbidden),
    "outside, written otherwise": ("file://{root}/%2e%2e/secret", MediaUrlForbidden),
    "a folder whose name begins alike": ("file://{root}-too/c.jpg", MediaUrlForbidden),
    "a link that leads outside": ("file://{root}/link", MediaUrlForbidden),
    "through a folder that leads outside": ("file://{root}/folder/secret", MediaUrlForbidden),
    "a circle": ("file://{root}/circle", MediaUrlForbidden),
    "a folder": ("file://{root}/deep", MediaUrlForbidden),
    "a pipe": ("file://{root}/pipe", MediaUrlForbidden),
    "a device": ("file:///dev/zero", MediaUrlForbidden),
    "this process": ("file:///proc/self/environ", MediaUrlForbidden),
    "nothing": ("file://{root}/nothing.jpg", MediaFetchFailed),
    "nothing, outside": ("file:///no/such/file", MediaUrlForbidden),
    "another machine": ("file://other{root}/deep/b.jpg", MediaUrlInvalid),
    "no absolute path": ("file:deep/b.jpg", MediaUrlInvalid),
    "a question": ("file://{root}/deep/b.jpg?x", MediaUrlInvalid),
    "a zero byte": ("file://{root}/deep/b.jpg%00", MediaUrlInvalid),
    "bytes that are no text": ("file://{root}/%ff%fe", MediaUrlInvalid),
}


@pytest.mark.parametrize(("address", "error"), REFUSED.values(), ids=REFUSED.keys())
def test_everything_else_is_refused(root: Path, address: str, error: type[MediaError]) -> None:
    with pytest.raises(MediaError) as failure:
        read(address.replace("{root}", str(root)), (root,), 100)
    assert type(failure.value) is error
    assert str(root) not in failure.value.message


def test_too_large_is_told(root: Path) -> None:
    with pytest.raises(MediaTooLarge):
        read(f"file://{root}/deep/b.jpg", (root,), 5)
