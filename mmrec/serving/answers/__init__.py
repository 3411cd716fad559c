"""What requests are answered: users, scores, recommendations, searches."""
