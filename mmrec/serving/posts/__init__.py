"""Posts: what is exported and published, and the vectors of what requests bring along."""
