"""Who says so: keys, signatures over them, and the envelope that carries both. Bytes in, values out."""
