"""Free text: overlap with the gold answer, sections, scripts; questions and answers, language adaptation."""
