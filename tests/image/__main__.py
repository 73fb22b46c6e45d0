"""Builds the Dockerfile for real, without a Docker engine, and asks the image a question with the network off.

python -m tests.image [--bitsandbytes] [--modelscope]

buildah builds on a base that debootstrap makes, with the tiny model fetched from a hub on the loopback. It checks that
the answer is true, that a token given as a secret is nowhere in the image, and that a byte changed on the way ends the
build. With --bitsandbytes that is inside, and the answer is asked for again with weights in 4 bit; with --modelscope
the hub is that one, asked by its own client. Needs root on Debian, or buildah and debootstrap there already.

Images are kept apart from the machine's own, in ~/.cache/worker-qwen-vl/image-test, the base and the layers of the last
run alone, so that the next one is quick and the disk does not fill.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from tests.builder.hub import Hub, ModelScopeHub
from worker.core.settings import EMBEDDED_MODEL

ROOT = Path(__file__).parents[2]
WORK = ROOT / "build" / "image"
BASE, IMAGE = "worker-base", "worker-qwen-vl"
TOKEN = "hf_token_that_no_layer_may_have"
SUITE = "bookworm"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "worker-qwen-vl" / "image-test"
STORE = ("--root", str(CACHE / "store"), "--runroot", str(CACHE / "run"), "--storage-driver", "overlay")
BUILDAH = ("env", "BUILDAH_ISOLATION=chroot", "buildah", *STORE)


def say(text: str) -> None:
    print(f"image-test: {text}", flush=True)


def run(*command: object, **more: object) -> subprocess.CompletedProcess[str]:
    """Its output is shown where it fails."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **more)  # type: ignore[call-overload]
    if done.returncode:
        sys.exit(
            f"image-test: {command[:6]} ended with {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        )
    return done  # type: ignore[no-any-return]


def install_tools() -> None:
    wanted = [name for name in ("buildah", "debootstrap") if shutil.which(name) is None]
    if wanted:
        say(f"installing {' '.join(wanted)}")
        run("apt-get", "update", "-qq")
        run("apt-get", "install", "-y", "-qq", "--no-install-recommends", *wanted)


def make_base() -> None:
    """A Debian with Python, as an image. Made once."""
    if subprocess.run([*BUILDAH, "inspect", "--type", "image", BASE], capture_output=True, check=False).returncode == 0:
        return
    say("making a base image")
    root = WORK / "base"
    shutil.rmtree(root, ignore_errors=True)
    packages = "python3,python3-venv,ca-certificates"
    run("debootstrap", "--variant=minbase", f"--include={packages}", SUITE, root)
    container = run(*BUILDAH, "from", "scratch").stdout.strip()
    run(*BUILDAH, "add", container, root, "/")
    run(*BUILDAH, "commit", "--rm", container, BASE)
    shutil.rmtree(root)


def fetch_packages() -> None:
    """All that requirements.txt names, by this machine's own pip configuration, so that the build needs none."""
    say("fetching packages")
    wheels = WORK / "wheels"
    wheels.mkdir(parents=True, exist_ok=True)
    download = (sys.executable, "-m", "pip", "download", "--quiet", "--dest", wheels)
    for name in ("requirements.txt", "requirements-bitsandbytes.txt", "requirements-modelscope.txt"):
        run(*download, "-r", ROOT / name)
    run(*download, "async-timeout>=4.0.3")  # of redis, on a Python as old as the base's
    (WORK / "pip.conf").write_text("[global]\nno-index = true\nfind-links = /wheels\n", encoding="utf-8")


def build(hub: Hub, name: str, *more: str) -> subprocess.CompletedProcess[str]:
    (WORK / "token").write_text(TOKEN, encoding="utf-8")
    options = ["--network", "host", "--secret", f"id=hf_token,src={WORK / 'token'}", "--tag", name]
    options += ["-v", f"{WORK / 'wheels'}:/wheels:ro", "-v", f"{WORK / 'pip.conf'}:/etc/pip.conf:ro"]
    endpoint = "MODELSCOPE_ENDPOINT" if isinstance(hub, ModelScopeHub) else "HF_ENDPOINT"
    for argument in (f"BASE_IMAGE=localhost/{BASE}", f"MODEL_ID={hub.model}", f"{endpoint}={hub.url}", *more):
        options += ["--build-arg", argument]
    command = [*BUILDAH, "build", "--layers", *options, "."]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def remove_old(*built: str) -> None:
    """Containers, and all images but the base, the one built and the layers that these outputs of builds name."""
    run(*BUILDAH, "rm", "--all")
    named = re.compile(r"^--> (?:Using cache )?([0-9a-f]{11})", re.MULTILINE)
    used = {name for output in built for name in named.findall(output)}
    for image in json.loads(run(*BUILDAH, "images", "--all", "--json").stdout or "null") or ():
        if not image.get("names") and image["id"][:11] not in used:
            subprocess.run([*BUILDAH, "rmi", image["id"]], capture_output=True, check=False)  # a layer in use stays


def check_answer(container: str, command: list[str], *settings: str) -> None:
    """The image's own command answers a question about a picture, with no network but the loopback."""
    given = json.loads((ROOT / "test_input.json").read_text(encoding="utf-8"))
    began = time.monotonic()
    asked = [*(["env", *settings] if settings else []), *command, "--test_input", json.dumps(given)]
    output = run("unshare", "--net", *BUILDAH, "run", container, "--", *asked).stdout
    answer = json.loads(output[output.index("{\n") : output.index("\n}\n") + 2])
    say(f"answered in {time.monotonic() - began:.1f} s: {' '.join([*settings, answer['text']])}")
    if answer["model"] != "tiny-qwen3-vl" or not answer["usage"]["image_tokens"] or "orange" not in answer["text"]:
        sys.exit(f"image-test: that is no true answer: {answer}")


def check_contents(container: str, inspected: str) -> None:
    """No secret anywhere, a manifest, a list of packages; what the folders weigh."""
    if TOKEN in inspected:
        sys.exit("image-test: the token is in the image's history")
    mount = Path(run(*BUILDAH, "mount", container).stdout.strip())
    found = subprocess.run(
        ["grep", "-rlF", TOKEN, mount / "app", mount / "models", mount / "root", mount / "run", mount / "tmp"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    if found:
        sys.exit(f"image-test: the token is in {found}")
    manifest = json.loads((mount / "models" / "tiny-qwen3-vl" / "baked.json").read_text(encoding="utf-8"))
    if manifest["model"] != "tiny/tiny-qwen3-vl" or "torch==" not in (mount / "opt/venv/packages.txt").read_text():
        sys.exit("image-test: the manifest or the list of packages is wrong")
    for folder in ("opt/venv", "models", "app"):
        size = run("du", "-sm", mount / folder).stdout.split()[0]
        say(f"/{folder}: {size} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bitsandbytes", action="store_true")
    parser.add_argument("--modelscope", action="store_true")
    options = parser.parse_args()
    more = ["BITSANDBYTES=1"] if options.bitsandbytes else []
    more += ["MODEL_SOURCE=modelscope"] if options.modelscope else []
    os.umask(0o022)
    WORK.mkdir(parents=True, exist_ok=True)
    install_tools()
    make_base()
    fetch_packages()
    with (ModelScopeHub if options.modelscope else Hub)(EMBEDDED_MODEL) as hub:
        say("building")
        built = build(hub, IMAGE, *more)
        if built.returncode:
            sys.exit(f"image-test: the build failed\n{built.stdout[-3000:]}\n{built.stderr[-3000:]}")
        if hub.tokens != {f"Bearer {TOKEN}"}:
            sys.exit("image-test: the hub has not seen the secret")
        hub.trouble["model.safetensors"] = "changed"
        hub.model = "tiny/changed"
        refused = build(hub, "worker-changed", *more)
        said = refused.stdout + refused.stderr
        if refused.returncode == 0 or not re.search("model.safetensors(: FileIntegrityError| is not the file)", said):
            sys.exit(f"image-test: a changed byte was baked\n{said[-3000:]}")
        say("a changed byte ended the build")
    inspected = run(*BUILDAH, "inspect", "--type", "image", IMAGE).stdout
    command = json.loads(inspected)["OCIv1"]["config"]["Cmd"]
    container = run(*BUILDAH, "from", IMAGE).stdout.strip()
    try:
        check_contents(container, inspected)
        check_answer(container, command)
        check_answer(container, command, "MEDIA_ISOLATE=process")  # as on the platform
        if options.bitsandbytes:
            check_answer(container, command, "QUANTIZATION=4bit")
    finally:
        remove_old(built.stdout, refused.stdout)
    say("passed")


if __name__ == "__main__":
    main()
