"""Raw feeds to prepared feeds: prepare, divide, describe, audit, synthesise."""
