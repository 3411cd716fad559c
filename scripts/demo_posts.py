"""Make a few posts that the demo's feed does not hold, requests that ask some of its users about them, and a grown feed.

The grown feed is the demo's with the new posts added, as a site's feed is the day after.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
from itertools import islice
from pathlib import Path

from data_tools.synthesize import SynthesizeOptions, synthesize


def main() -> None:
    """Write DEMO/new, DEMO/new/requests.jsonl and DEMO/grown_feed, or print the first new caption."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("demo", type=Path, help="folder of the demo")
    parser.add_argument("--number", type=int, default=5, help="new posts")
    parser.add_argument("--first-caption", action="store_true", help="print the caption of the first new post")
    asked = parser.parse_args()
    new = asked.demo / "new"
    if not asked.first_caption:
        options = SynthesizeOptions(items=16, users=1, seed=99, bad_rows=0, bad_pictures=0, without_picture=0.0)
        synthesize(new, options=options)
    with (new / "items.csv").open(encoding="utf-8", newline="") as file:
        posts = [row for row in csv.DictReader(file) if row["title"]]
    if asked.first_caption:
        print(f"{posts[0]['title']}. {posts[0]['description']}")
        return
    with (asked.demo / "feed" / "interactions.csv").open(encoding="utf-8", newline="") as file:
        users = list(dict.fromkeys(row["user_id"] for row in islice(csv.DictReader(file), 100) if row["user_id"]))[:3]
    candidates = [
        {
            "item_id": f"new-{number}",
            "caption": f"{post['title']}. {post['description']}",
            "image": next(path.relative_to(new).as_posix() for path in (new / "images").glob(f"{post['item_id']}*")),
        }
        for number, post in enumerate(posts[: asked.number])
    ]
    lines = [json.dumps({"request_id": user, "user_id": user, "candidates": candidates}) for user in users]
    (new / "requests.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    grow(asked.demo / "feed", asked.demo / "grown_feed", posts=posts[: asked.number], pictures=new / "images")


def grow(feed: Path, out: Path, *, posts: list[dict[str, str]], pictures: Path) -> None:
    """Write a feed with a few more posts, ``new-0`` and so on; pictures are linked, not copied."""
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(feed, out, copy_function=os.link, ignore=shutil.ignore_patterns("truth", "items.csv"))
    with (feed / "items.csv").open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        names, rows = list(reader.fieldnames or []), list(reader)
    for number, post in enumerate(posts):
        picture = next(pictures.glob(f"{post['item_id']}*"))
        place = f"images/new-{number}{picture.suffix}"
        shutil.copyfile(picture, out / place)
        rows.append(post | {"item_id": f"new-{number}", "published_at": rows[0]["published_at"], "image": place})
    with (out / "items.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
