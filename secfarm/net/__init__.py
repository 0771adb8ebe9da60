"""Sockets: TLS contexts, listening, dialling, and the pump between a transport and a sans-I/O session."""
