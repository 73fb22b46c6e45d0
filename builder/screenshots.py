"""Pictures of the page to try the worker, for docs/http.md, taken in a real browser.

python -m builder.screenshots

Needs chromium and chromedriver, and what requirements-dev.txt installs.
"""

import socket
import subprocess
import sys
import time
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "docs" / "pictures"
OPTIONS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars")
WAIT_S = 60.0


def take(address: str) -> None:
    """A conversation in the light on a desk, and in the dark on a phone."""
    options = webdriver.ChromeOptions()
    for option in OPTIONS:
        options.add_argument(option)
    browser = webdriver.Chrome(options=options)
    try:
        for name, width, height, scheme in (("desk", 900, 620, "light"), ("phone", 390, 760, "dark")):
            metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": name == "phone"}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
            features = [{"name": "prefers-color-scheme", "value": scheme}]
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
            browser.get(f"{address}/playground")
            wait = WebDriverWait(browser, WAIT_S)
            wait.until(lambda _: browser.find_elements(By.CSS_SELECTOR, "#state.ready"))
            browser.find_element(By.ID, "files").send_keys(str(PICTURES / "test_input.jpg"))
            wait.until(lambda _: browser.find_elements(By.CSS_SELECTOR, "#attached img"))
            browser.find_element(By.ID, "question").send_keys("What is in the picture?" + Keys.ENTER)
            wait.until(lambda _: browser.find_elements(By.CSS_SELECTOR, ".facts"))
            if name == "phone":
                browser.find_element(By.TAG_NAME, "summary").click()
            browser.save_screenshot(str(PICTURES / f"playground_{name}.png"))
    finally:
        browser.quit()


def main() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with subprocess.Popen(
        [sys.executable, "-m", "worker.server", "--port", str(port), "--device", "cpu"], cwd=ROOT
    ) as server:
        try:
            while server.poll() is None:
                with socket.socket() as trial:
                    if trial.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.1)
            take(f"http://127.0.0.1:{port}")
        finally:
            server.terminate()


if __name__ == "__main__":
    main()
