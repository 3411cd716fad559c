"""What answers, put together: a run and its export as a pair, checked, given what was published, and swapped for another."""
