"""The page at / and the routes that it alone needs: for people who would rather look than read."""
