"""What requests are answered: users, scores, recommendations, searches, embeddings, and what is published and fed back."""
