"""What only a model can say of answers: likelihood, BERTScore, exposure of secrets."""
