"""The figures of a study, by what its questions ask: charts as plain data, drawn by the page and matplotlib alike."""
