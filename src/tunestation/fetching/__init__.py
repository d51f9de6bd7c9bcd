"""Models and data from hubs and the web, as plain files that are whole or absent."""
