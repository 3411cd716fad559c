#!/usr/bin/env bash
# The main job from end to end on a feed whose truth is known: synthesise, prepare, train, evaluate, score posts that
# nobody has seen, export, search.  Everything goes to ./demo; run it again and it starts afresh.
set -euo pipefail
out=demo
say() { printf '\n\033[1m$ %s\033[0m\n' "$*"; "$@"; }

rm -rf "$out"
say mmrec convert-weights efficientnet_lite0
say mmrec-data synthesize --out "$out/feed" --items 2400 --users 2000 --events 12 --subjects 10 --looks 10 \
  --popularity 0.2
# Every click of the test window is a question, not only the first of each user: narrower intervals for the same training.
say mmrec-data prepare "$out/feed" --out "$out/prepared" --caption title,description \
  --targets successive --test-share 0.15
say mmrec-data audit "$out/prepared"

train() { say mmrec train configs/demo.yaml --feed "$out/prepared" --out "$out/runs/$1" "${@:2}"; }
train fused
train text_only --set encoders.image=none --set encoders.item_id=none
train image_only --set encoders.text=none --set encoders.item_id=none
train id_only --set encoders.text=none --set encoders.image=none
say mmrec evaluate "$out/runs/fused" --split test

say python scripts/demo_posts.py "$out" --number 5
say mmrec score "$out/runs/fused" --requests "$out/new/requests.jsonl" --out "$out/scores.csv"
head -n 6 "$out/scores.csv"
say mmrec recommend "$out/runs/fused" -k 5 --out "$out/top.csv"
say mmrec export "$out/runs/fused" --out "$out/vectors" --store faiss
say mmrec search "$out/vectors" --text "$(python scripts/demo_posts.py "$out" --first-caption)" -k 3

# The new posts join the feed: only they get new vectors, and search finds them, without any training.
say mmrec-data prepare "$out/grown_feed" --out "$out/grown" --caption title,description
say mmrec export "$out/runs/fused" --feed "$out/grown" --out "$out/vectors" --store faiss --only-new --map
say mmrec search "$out/vectors" --image "$(ls "$out"/grown_feed/images/new-0.*)" \
  --text "$(python scripts/demo_posts.py "$out" --first-caption)" -k 3

say python scripts/demo_summary.py "$out"
echo
echo "Open $out/runs/fused/evaluation/test/report.html"
echo "Or look at users, posts and the map: $(command -v mmrec) serve $out/runs/fused --vectors $out/vectors --data $out/data,"
echo "then open http://127.0.0.1:8000"
