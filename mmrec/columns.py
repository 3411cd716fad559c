"""Names of the columns that mmrec reads and writes, in one place."""

from __future__ import annotations

from typing import Final

ITEM_ID: Final = "item_id"
USER_ID: Final = "user_id"
TIMESTAMP: Final = "timestamp"
EVENT: Final = "event"
VALUE: Final = "value"
IMAGE: Final = "image"
CAPTION: Final = "caption"
ATTRIBUTES: Final = "attributes"
PUBLISHED_AT: Final = "published_at"

CAPTION_ROW: Final = "caption_row"
FIRST_SEEN: Final = "first_seen"

REQUEST_ID: Final = "request_id"
HISTORY: Final = "history"
CANDIDATES: Final = "candidates"
CANDIDATE: Final = "candidate"
SCORE: Final = "score"
RANK: Final = "rank"
PRESENT: Final = "present"
ERROR_MESSAGE: Final = "error_message"
