"""Take pictures of pages with a browser that is there; called by scripts/screenshots.sh.

    python scripts/screenshots.py BROWSER [--height PIXELS] DIRECTORY PAGE.html...

Exits with 1 where a page asks for anything but itself, writes to the console, or is wider than the window.
"""

import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

WIDTHS = (1280, 390)


def main(browser_path: str, arguments: list[str]) -> int:
    height = None
    if arguments[0] == "--height":
        height, arguments = int(arguments[1]), arguments[2:]
    out, pages = Path(arguments[0]), arguments[1:]
    out.mkdir(parents=True, exist_ok=True)
    complaints = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        for page_path in map(Path, pages):
            for width in WIDTHS:
                for scheme in ("light", "dark"):
                    context = browser.new_context(
                        viewport={"width": width, "height": height or 900}, color_scheme=scheme, offline=True
                    )
                    page = context.new_page()
                    page.on("console", lambda message: complaints.append(f"console: {message.text}"))
                    page.on("requestfailed", lambda request: complaints.append(f"asked for {request.url}"))
                    page.goto(page_path.resolve().as_uri())
                    inner = page.evaluate("document.documentElement.scrollWidth")
                    if inner > width:
                        complaints.append(f"{page_path}: {inner} pixels wide in a window of {width}")
                    picture = out / f"{page_path.stem}-{width}-{scheme}.png"
                    page.screenshot(path=str(picture), full_page=height is None)
                    print(picture)
                    context.close()
        browser.close()
    for complaint in complaints:
        print(complaint, file=sys.stderr)
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
