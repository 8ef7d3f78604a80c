"""serve: models answer over HTTP, by the Contract that they were trained with."""
