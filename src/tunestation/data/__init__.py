"""From rows of files to packs of token ids: readers, formats, templates, encoding, packing."""
