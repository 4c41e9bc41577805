"""Files of texts to embeddings, resumable. What ``pellucid embed`` runs."""
