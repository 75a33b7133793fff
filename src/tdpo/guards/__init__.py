"""Protection against hostile input: documents are read within limits, and text is escaped wherever it is shown."""
